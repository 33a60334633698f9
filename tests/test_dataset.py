"""Labels and files."""

from __future__ import annotations

import os
import shutil
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import Started, assert_user_error, random_frame, refused, run_script, write_frame
from dying_loader import load
from PIL import Image
from torch.utils.data import DataLoader

from evaluation.prediction_files import PredictionWriter
from frames.check import check_frames
from frames.cityscapes import find_samples
from frames.classes import CITYSCAPES, CITYSCAPES_TRAIN_IDS
from frames.images import png_header, read_image, read_label
from frames.samples import Sample, check_headers, read_pair
from frames.workers import FrameSet, naming_dead_workers
from utils import UserError, message_of


def test_frames_are_paired_by_name_and_sorted(frames) -> None:
    """Pairing by position breaks with one foreign file; glob order differs between file systems."""
    (frames / "leftImg8bit" / "train" / "trainstadt" / "notes.txt").write_text("x")
    samples = find_samples(frames, "train")
    assert [sample.name for sample in samples] == [f"trainstadt_000000_{i:06d}" for i in range(3)]
    assert all(sample.name in sample.label.name and sample.name in sample.image.name for sample in samples)


def test_label_ids_win_over_train_ids(tmp_path) -> None:
    """On real Cityscapes the two files differ at 0.3-0.6 % of the pixels: reading the wrong one changes scores."""
    image, ids = random_frame(np.random.default_rng(1))
    train_ids = CITYSCAPES.labels.table[ids]
    train_ids[:8] = 3
    write_frame(tmp_path, "train", "a_000000_000000", image, ids)
    write_frame(tmp_path, "train", "a_000000_000000", image, train_ids, kind="labelTrainIds")
    write_frame(tmp_path, "train", "a_000000_000001", image, train_ids, kind="labelTrainIds")
    first, second = find_samples(tmp_path, "train")
    assert (first.labels, second.labels) == (CITYSCAPES.labels, CITYSCAPES_TRAIN_IDS)
    np.testing.assert_array_equal(read_pair(first)[1], CITYSCAPES.labels.table[ids])
    np.testing.assert_array_equal(read_pair(second)[1], train_ids)


def test_dummy_labels_of_the_test_split_are_not_read(frames) -> None:
    """Cityscapes ships test labels without content: scored, they would look like a result."""
    label = next((frames / "gtFine" / "test").rglob("*labelIds.png"))
    label.write_bytes(b"")
    (sample,) = find_samples(frames, "test")
    assert sample.label is None and (read_pair(sample)[1] == 255).all()


@pytest.mark.parametrize("damage", ["half", "no end", "empty", "text"])
@pytest.mark.parametrize("kind", ["picture", "label"])
def test_damaged_files_are_named(frames, damage: str, kind: str, capfd) -> None:
    """A decoder that fills in what is missing trains on grey pictures without a word."""
    sample = find_samples(frames, "train")[1]
    path = sample.image if kind == "picture" else sample.label
    data = path.read_bytes()
    path.write_bytes({"half": data[: len(data) // 2], "no end": data[:-12], "empty": b"", "text": b"hello"}[damage])
    with pytest.raises(UserError, match=path.name):
        read_pair(sample)
    if damage != "text":  # what is no PNG at all may still be another format: only decoding tells
        with pytest.raises(UserError, match=path.name):
            check_headers(find_samples(frames, "train"))


def test_corrupt_middle_is_named(frames) -> None:
    """A flipped byte inside the compressed data fails the checksum: no picture may come of it."""
    sample = find_samples(frames, "train")[0]
    data = bytearray(sample.image.read_bytes())
    data[len(data) // 2] ^= 0xFF
    sample.image.write_bytes(data)
    with pytest.raises(UserError, match=sample.image.name):
        read_image(sample.image)


def test_other_channels_are_converted_and_depths_refused(tmp_path) -> None:
    """A grey or transparent picture with another shape, or 12 bits of 16 divided by 256, which are black."""
    cv2.imwrite(str(tmp_path / "deep.png"), np.full((40, 50, 3), 2570, np.uint16))
    with refused("deep.png", "16", "8"):
        read_image(tmp_path / "deep.png")
    for name, picture in {
        "grey.png": np.full((40, 50), 100, np.uint8),
        "alpha.png": np.full((40, 50, 4), 100, np.uint8),
    }.items():
        cv2.imwrite(str(tmp_path / name), picture)
        assert read_image(tmp_path / name).shape == (40, 50, 3) and (read_image(tmp_path / name) == 100).all()


def test_label_values_outside_the_table_name_the_file(frames) -> None:
    """A label of train ids, or of another data set, gives a device-side assert instead of a message."""
    sample = find_samples(frames, "val")[0]
    label = cv2.imread(str(sample.label), cv2.IMREAD_UNCHANGED)
    label[3, 4] = 77
    cv2.imwrite(str(sample.label), label)
    with refused("labelIds.png", "[77]", "0-33"):
        read_label(sample.label)
    label[3, 4] = 19
    with refused("0-18"):
        read_label(sample.label, CITYSCAPES_TRAIN_IDS)


def test_one_frame_name_in_two_folders(tmp_path) -> None:
    """IDD numbers the frames of each folder anew: half of them dropped, or pictures with another folder's label."""
    rng = np.random.default_rng(0)
    ids = {}
    for folder in ("273", "201"):
        image, ids[folder] = random_frame(rng)
        for path in write_frame(tmp_path, "train", f"{folder}_x", image, ids[folder]):
            path.rename(path.with_name(path.name.replace(f"{folder}_x", "frame0014")))
    samples = find_samples(tmp_path, "train")
    assert [(sample.folder, sample.name) for sample in samples] == [("201", "frame0014"), ("273", "frame0014")]
    for sample in samples:
        np.testing.assert_array_equal(read_pair(sample)[1], CITYSCAPES.labels.table[ids[sample.folder]])
    writer = PredictionWriter(tmp_path / "results", samples, CITYSCAPES)
    for sample in samples:
        writer.write(*writer.encode_labels(sample, np.zeros((4, 4), np.uint8)))
    written = sorted(path.relative_to(tmp_path).as_posix() for path in (tmp_path / "results").rglob("*.png"))
    assert written == [f"results/{folder}/frame0014_pred_labelIds.png" for folder in ("201", "273")]


def palette_png(path: Path, indices: np.ndarray, bits: int) -> None:
    """Writes a label as labelme, VOC or GTA5 tools do: indices into a palette whose colors say something else."""
    image = Image.fromarray(indices, "P")
    image.putpalette(np.random.default_rng(0).integers(0, 256, 768).tolist())
    image.save(path, bits=bits)


@pytest.mark.parametrize("kind", ["palette", "palette of 4 bits", "one bit", "interlaced"])
def test_labels_mean_what_the_official_script_reads(frames, kind: str) -> None:
    """The 1 of a single bit read as 255, or the color of a palette instead of its index."""
    sample = find_samples(frames, "train")[0]
    ids = cv2.imread(str(sample.label), cv2.IMREAD_UNCHANGED)
    if kind == "palette":
        palette_png(sample.label, ids, 8)
    elif kind == "palette of 4 bits":
        palette_png(sample.label, ids := ids % 16, 4)
    elif kind == "one bit":
        Image.fromarray(ids > 20).save(sample.label)
        ids = (ids > 20).astype(np.uint8)
    else:
        Image.fromarray(ids).save(sample.label, interlace=1)
    official = np.array(Image.open(sample.label)).astype(np.uint8)
    np.testing.assert_array_equal(official, ids)
    np.testing.assert_array_equal(read_pair(sample)[1], CITYSCAPES.labels.table[official])
    check_headers(find_samples(frames, "train"))


@pytest.mark.parametrize("ending", [".png", ".jpg"])
def test_bytes_after_the_end_are_no_damage(tmp_path, ending: str) -> None:
    """A file that a camera pads with zeros refused; or half a JPEG taken for whole for its thumbnail's end."""
    image = np.random.default_rng(0).integers(0, 256, (64, 96, 3), np.uint8)
    data = cv2.imencode(ending, image)[1].tobytes()
    path = tmp_path / f"a_000000_000000_leftImg8bit{ending}"
    path.write_bytes(data + bytes(200_000))
    assert read_image(path).shape == (64, 96, 3)
    if ending == ".png":
        assert png_header(path, "picture")[:2] == (64, 96)
        return
    thumbnail = b"\xff\xe1" + (len(data) + 2).to_bytes(2, "big") + data
    whole = data[:2] + thumbnail + data[2:]
    path.write_bytes(whole)
    assert read_image(path).shape == (64, 96, 3)
    path.write_bytes(whole[:-800])
    with refused("truncated"):
        read_image(path)


def test_pictures_of_any_format_in_the_layout(frames) -> None:
    """IDD 20k II has .jpg, some tools write .PNG: a data set without pictures; both of one frame: which one?"""
    first, second, _ = find_samples(frames, "train")
    image = cv2.imread(str(first.image))
    cv2.imwrite(str(first.image.with_suffix(".jpg")), image, [cv2.IMWRITE_JPEG_QUALITY, 100])
    with refused("_leftImg8bit.jpg", "_leftImg8bit.png"):
        find_samples(frames, "train")
    first.image.unlink()
    second.image.rename(second.image.with_suffix(".PNG"))
    second.label.rename(second.label.with_suffix(".PNG"))
    samples = find_samples(frames, "train")
    assert [sample.image.suffix for sample in samples] == [".jpg", ".PNG", ".png"]
    assert all(read_pair(sample)[0].shape == (64, 96, 3) for sample in samples)


def test_what_systems_leave_behind_is_no_frame(frames) -> None:
    """`._x.png` of a Mac beside every file: a damaged picture, or frames that are scored twice."""
    before = find_samples(frames, "train")
    for path in list(frames.rglob("*.png")):
        path.with_name(f"._{path.name}").write_bytes(b"Mac OS X")
        folder = path.parent.with_name("@eaDir")
        folder.mkdir(exist_ok=True)
        (folder / path.name).write_bytes(path.read_bytes())
    assert find_samples(frames, "train") == before
    (frames / "leftImg8bit" / "train" / "again").symlink_to(frames / "leftImg8bit" / "train" / "trainstadt")
    assert [sample.name for sample in find_samples(frames, "train")] == [sample.name for sample in before]


def test_what_is_no_regular_file_is_named(frames) -> None:
    """A run that waits for a pipe for ever, or a link to nothing that is dropped without a word."""
    first, second, _ = find_samples(frames, "train")
    first.image.unlink()
    os.mkfifo(first.image)
    second.label.unlink()
    second.label.symlink_to("gone.png")
    for path in (first.image, second.label):
        with pytest.raises(UserError, match=path.name):
            check_frames([first if path == first.image else second], "train", CITYSCAPES, 0, False)
        with pytest.raises(UserError, match=path.name):
            (read_image if path == first.image else read_label)(path)


def test_a_header_of_a_giant_is_an_error_in_one_line(tmp_path) -> None:
    """A traceback of OpenCV's limit, or 14 GB of memory, for a few damaged bytes."""
    data = bytearray(cv2.imencode(".png", np.zeros((64, 96, 3), np.uint8))[1].tobytes())
    data[16:24] = (70000).to_bytes(4, "big") * 2
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    (tmp_path / "a.png").write_bytes(data)
    with pytest.raises(UserError, match=r"a\.png (cannot be decoded|is damaged)") as error:
        read_image(tmp_path / "a.png")
    assert "\n" not in str(error.value)


# Each bad data set, made from a good one, and what the message must name.
def _rgb_label(root):
    path = sorted(root.rglob("*trainstadt*labelIds.png"))[1]
    cv2.imwrite(str(path), np.zeros((64, 96, 3), np.uint8))
    return path.name, "3 channel"


def _deep_label(root):
    path = sorted(root.rglob("*valstadt*labelIds.png"))[0]
    cv2.imwrite(str(path), np.zeros((64, 96), np.uint16))
    return path.name, "uint16"


def _foreign_value(root):
    path = sorted(root.rglob("*trainstadt*labelIds.png"))[2]
    cv2.imwrite(str(path), np.full((64, 96), 99, np.uint8))
    return path.name, "[99]"


def _other_size(root):
    path = sorted(root.rglob("*trainstadt*labelIds.png"))[2]
    cv2.imwrite(str(path), np.full((64, 90), 7, np.uint8))
    return path.name, "64x90"


def _no_label(root):
    path = sorted(root.rglob("*trainstadt*labelIds.png"))[1]
    path.unlink()
    return "no label", "trainstadt_000000_000001"


def _no_picture(root):
    path = sorted(root.rglob("*valstadt*_leftImg8bit.png"))[1]
    path.unlink()
    return "no picture", "valstadt_000000_000001"


def _truncated(root):
    path = sorted(root.rglob("*valstadt*_leftImg8bit.png"))[1]
    path.write_bytes(path.read_bytes()[:500])
    return path.name, "truncated"


def _zero_bytes(root):
    path = sorted(root.rglob("*trainstadt*labelIds.png"))[2]
    path.write_bytes(b"")
    return path.name, "empty"


def _without_split(root):
    shutil.rmtree(root / "leftImg8bit" / "val")
    return "leftImg8bit/val", "expected"


def _empty_split(root):
    for path in (root / "leftImg8bit" / "train").rglob("*.png"):
        path.unlink()
    return "holds no picture", "leftImg8bit"


def _missing(root):
    shutil.rmtree(root)
    return "no data set", "--data_path"


def _one_frame(root):
    for path in root.rglob("trainstadt_000000_00000[12]*"):
        path.unlink()
    return "1 training frame", "at least 2"


BAD_DATA = [_rgb_label, _deep_label, _foreign_value, _other_size, _no_label, _no_picture, _truncated, _zero_bytes,
            _without_split, _empty_split, _missing, _one_frame]  # fmt: skip


@pytest.mark.parametrize("spoil", BAD_DATA, ids=lambda function: function.__name__.strip("_"))
def test_bad_data_stops_training_in_one_line(frames, tmp_path, spoil) -> None:
    """A broken data set ends in a traceback, or after hours; it must end at the start, naming the file."""
    words = spoil(frames)
    output = tmp_path / "out"
    flags = ["--crop_h", 32, "--crop_w", 64, "--batch_size", 2, "--epochs", 1, "--workers", 1, "--device", "cpu"]
    result = run_script("train.py", "--data_path", frames, "--output_dir", output, *flags, cwd=tmp_path)
    assert_user_error(result, *words)
    assert not list(output.glob("*.pth")) and not list(output.glob("*.csv"))


@pytest.mark.parametrize("spoil", [_rgb_label, _deep_label, _other_size, _truncated, _zero_bytes])
def test_what_a_header_tells_is_found_before_the_first_batch(frames, spoil) -> None:
    """A label in colors somewhere in the data set, which ends a run only when its frame is drawn."""
    words = spoil(frames)
    with pytest.raises(UserError) as error:
        for split in ("train", "val"):
            check_headers(find_samples(frames, split))
    assert all(word in str(error.value) for word in words), error.value


@pytest.mark.parametrize(
    ("how", "start", "seconds"),
    [
        ("SIGKILL", "fork", 0),
        ("SIGKILL", "fork", 2),  # during the step: PyTorch raises it out of a signal handler
        ("SIGSEGV", "fork", 0),
        ("exit", "fork", 0),
        pytest.param("SIGKILL", "spawn", 0, marks=pytest.mark.slow),
    ],
)
def test_a_worker_that_dies_ends_in_one_line(frames, how: str, start: str, seconds: int) -> None:
    """A worker that "exited unexpectedly", hours into a run, and 2,975 files to suspect."""
    samples = find_samples(frames, "train")
    result = Started(load, str(frames), samples[2].name, how, start, seconds, cwd=frames).result()
    died = "exit code 3" if how == "exit" else {"SIGKILL": "Killed", "SIGSEGV": "Segmentation"}[how]
    # Before it there may be what PyTorch's handler of faults, or a thread of the other worker, has to say.
    assert result.returncode == 2 and result.stderr.count("error: ") == 1 and result.stderr.count("Traceback") <= 1
    line = result.stderr.partition("error: ")[2]
    assert line.count("\n") == 1 and died in line and "--workers" in line


def test_a_worker_that_dies_while_it_hands_over_a_batch(frames, monkeypatch) -> None:
    """A lost connection that arrives before the signal that says why: a traceback instead of one line."""
    loader = DataLoader(FrameSet(find_samples(frames, "train")))

    def signal_handler(_: float) -> None:
        raise RuntimeError("DataLoader worker (pid 123) is killed by signal: Killed. ")

    monkeypatch.setattr("frames.workers.time.sleep", signal_handler)
    lost = ConnectionResetError(104, "Connection reset by peer")
    with refused("123"), naming_dead_workers(loader):
        raise lost
    monkeypatch.setattr("frames.workers.time.sleep", lambda _: None)
    with pytest.raises(ConnectionResetError), naming_dead_workers(loader):
        raise lost


def test_only_deaths_are_reworded(frames) -> None:
    """A guard that hides a fault of ours, or loses the message of a damaged file."""
    loader = DataLoader(FrameSet(find_samples(frames, "train")), num_workers=1)
    with pytest.raises(RuntimeError, match="shape mismatch"), naming_dead_workers(loader):
        raise RuntimeError("shape mismatch")
    data = loader.dataset
    data.samples[1].label.write_bytes(b"")
    with pytest.raises(UserError) as error, naming_dead_workers(loader):
        list(loader)
    assert data.samples[1].label.name in message_of(error.value)


def test_a_label_that_exif_data_did_not_turn_is_explained(tmp_path) -> None:
    """A picture of 40x60 in every other program, said to be 60x40."""
    image = Image.fromarray(np.zeros((40, 60, 3), np.uint8))
    exif = image.getexif()
    exif[0x0112] = 6  # orientation: a quarter turn
    image.save(tmp_path / "x.jpg", exif=exif)
    cv2.imwrite(str(tmp_path / "x.png"), np.full((40, 60), 7, np.uint8))
    sample = Sample("x", tmp_path / "x.jpg", tmp_path / "x.png")
    with refused("x.jpg", "60x40", "x.png", "40x60", "EXIF"):
        read_pair(sample)


def test_a_file_in_place_of_the_folder_is_not_called_missing(tmp_path) -> None:
    """A description given to a script that reads the folder layout only, said not to be there."""
    (tmp_path / "data.yaml").write_text("train: images")
    with refused("data.yaml"):
        find_samples(tmp_path / "data.yaml", "val")
