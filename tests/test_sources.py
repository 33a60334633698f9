"""What --input_pic can name, and pictures of every kind."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest

from dataset import DataError, Sample, read_image
from utils import UserError
from viewing.sources import name_apart, open_source, read_picture
from viewing.video import Frame, Problem

RNG = np.random.default_rng(0)
COLOR = RNG.integers(0, 256, (40, 48, 3), np.uint8)


def save(path: Path, image: np.ndarray = COLOR) -> Path:
    """Writes a picture, with its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), image)
    return path


def names(data_path: object, input_pic: object) -> list[str]:
    """The names of the results."""
    return [sample.name for sample in open_source(str(data_path), str(input_pic)).samples]


def png(color_type: int, channels: int) -> bytes:
    """A PNG of 40x48 whose color type OpenCV does not write."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = b"".join(b"\0" + bytes(48 * channels) for _ in range(40))
    header = struct.pack(">IIBBBBB", 48, 40, 8, color_type, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def test_folder_with_the_folders_in_it(tmp_path: Path) -> None:
    """Frame 10 before frame 2; our own results, hidden files and other files taken for pictures."""
    for name in ("f10.png", "f2.png", "sub/f1.JPG", "f2_result.png", ".hidden.png"):
        save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("x")
    assert names("nowhere", tmp_path) == ["f2", "f10", "sub/f1"]


def test_pattern_below_the_data_set_or_anywhere(frames: Path, tmp_path: Path, monkeypatch) -> None:
    """A pattern that only works from one folder; a bracket in the data set's own name taken for a pattern."""
    assert names(frames, "val/*/*_leftImg8bit.png") == [f"valstadt_000000_00000{index}" for index in range(2)]
    assert names(frames, "**/*000000_leftImg8bit.png") == [
        f"{split}/{split}stadt/{split}stadt_000000_000000" for split in ("test", "train", "val")
    ]
    monkeypatch.chdir(tmp_path)
    save(tmp_path / "a[1]" / "leftImg8bit" / "x1.png")
    assert names("a[1]", "x?.png") == ["x1"]
    assert names("nowhere", "*/*/x*.png") == ["x1"]
    save(tmp_path / "is[it].png")
    assert names("nowhere", "is[it].png") == ["is[it]"]


def test_no_two_results_of_one_name(tmp_path: Path) -> None:
    """A result overwritten by that of another picture."""
    paths = [tmp_path / name for name in ("a/x.png", "b/x.png", "b/y.jpg")]
    assert [s.name for s in name_apart([Sample(path.stem, path, None) for path in paths])] == ["a/x", "b/x", "b/y"]
    paths += [tmp_path / name for name in ("a/x.jpg", "a/X.png", "a/x_leftImg8bit.png")]
    for name in ("x.png", "x.jpg", "x_leftImg8bit.png", "sub/x.png"):
        save(tmp_path / "in" / name)
    assert sorted(names("nowhere", tmp_path / "in")) == ["sub/x.png", "x.jpg", "x.png", "x_leftImg8bit.png"]


def test_ground_truth_comes_along(frames: Path) -> None:
    """Only a single picture gets its label, or labels of the test split are drawn as truth."""
    labelled = {
        sample.name: sample.label is not None
        for sample in open_source("nowhere", str(frames)).samples
        if "leftImg8bit" in str(sample.image)
    }
    assert len(labelled) == 6 and all(found == ("test" not in name) for name, found in labelled.items())
    first = next(open_source(str(frames), "val").frames())
    assert first.label.shape == first.image.shape[:2]
    assert next(open_source(str(frames), "val").frames(labels=False)).label is None


def test_label_of_another_size_is_a_problem(frames: Path) -> None:
    """A label of another size is drawn as ground truth, shifted against the picture."""
    label = next((frames / "gtFine" / "val").rglob("*_labelIds.png"))
    cv2.imwrite(str(label), np.zeros((32, 96), np.uint8))
    problems = [item for item in open_source(str(frames), "val").frames() if isinstance(item, Problem)]
    assert len(problems) == 1 and "is 64x96" in problems[0].text and "32x96; expected equal sizes" in problems[0].text


@pytest.mark.parametrize(
    ("input_pic", "words"),
    [
        ("", "--input_pic is empty"),
        ("none.png", "no picture at"),
        ("*.none", "0 files, none of them a picture"),
        ("full", "2 files, none of them a picture"),
        ("full", "1 may be videos"),
        ("99", "camera 99 cannot be opened"),
    ],
)
def test_input_that_is_not_there(input_pic: str, words: str, tmp_path: Path, monkeypatch) -> None:
    """An empty run that ends with success, or a number taken for a file name."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "a.txt").write_text("x")
    (tmp_path / "full" / "a.mp4").write_text("x")
    with pytest.raises(UserError, match=words.replace("*", r"\*")):
        open_source("nowhere", input_pic)


def test_a_file_of_digits_is_not_a_camera(tmp_path: Path, monkeypatch) -> None:
    """A folder called 00 or 1 is taken for a camera."""
    monkeypatch.chdir(tmp_path)
    save(tmp_path / "0" / "x.png")
    assert names("nowhere", "0") == ["x"]


def test_pictures_that_are_converted(tmp_path: Path) -> None:
    """Grey and alpha pictures refused, or converted without a note; RGB pictures changed by the way of reading."""
    for path in (save(tmp_path / "c.png"), save(tmp_path / "c.jpg"), save(tmp_path / "c.webp")):
        image, note = read_picture(path)
        np.testing.assert_array_equal(image, read_image(path))
        assert note == ""
    for path in (save(tmp_path / "g.png", COLOR[..., 0]), save(tmp_path / "g.jpg", COLOR[..., 0])):
        image, note = read_picture(path)
        np.testing.assert_array_equal(image, read_image(path))
        assert "grey" in note and image.shape == COLOR.shape
    with_alpha = np.dstack([COLOR, COLOR[..., 0]])
    for path in (save(tmp_path / "a.png", with_alpha), save(tmp_path / "a.tif", with_alpha)):
        image, note = read_picture(path)
        assert "alpha" in note and image.shape == COLOR.shape
    np.testing.assert_array_equal(read_picture(tmp_path / "a.png")[0], COLOR[..., ::-1])
    (tmp_path / "two.png").write_bytes(png(4, 2))
    image, note = read_picture(tmp_path / "two.png")
    assert "alpha" in note and image.shape == COLOR.shape


def test_a_photo_is_turned_upright(tmp_path: Path) -> None:
    """The EXIF orientation is ignored by some ways of reading."""
    data = save(tmp_path / "a.jpg").read_bytes()
    turned = struct.pack("<2sHIHHHIHHI", b"II", 42, 8, 1, 0x112, 3, 1, 6, 0, 0)
    exif = b"Exif\0\0" + turned
    (tmp_path / "b.jpg").write_bytes(data[:2] + b"\xff\xe1" + struct.pack(">H", 2 + len(exif)) + exif + data[2:])
    upright = read_picture(tmp_path / "b.jpg")[0]
    np.testing.assert_array_equal(upright, np.rot90(read_picture(tmp_path / "a.jpg")[0], -1))


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_sixteen_bits_are_refused(channels: int, tmp_path: Path) -> None:
    """A depth map or a raw picture of 12 bits, divided by 256, is predicted as a night scene."""
    image = RNG.integers(0, 4096, (40, 48, channels), np.uint16)
    with pytest.raises(DataError, match="16 bits a channel, expected 8"):
        read_picture(save(tmp_path / "a.png", image))
    with pytest.raises(DataError, match="32 bits a channel, expected 8"):
        read_picture(save(tmp_path / "a.tif", image[..., :1].astype(np.float32)))


def test_size_that_no_memory_holds(tmp_path: Path) -> None:
    """A damaged or malicious header raises an exception of OpenCV's own."""
    data = bytearray(png(2, 3))
    data[16:24] = struct.pack(">II", 60000, 60000)
    data[29:33] = struct.pack(">I", zlib.crc32(bytes(data[12:29])))
    (tmp_path / "a.png").write_bytes(data)
    with pytest.raises(DataError, match=r"a\.png cannot be decoded"):
        read_picture(tmp_path / "a.png")


def test_problems_take_the_place_of_their_frames(tmp_path: Path) -> None:
    """One damaged picture ends the run over a folder."""
    save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"")
    save(tmp_path / "c.png", COLOR[:20])
    save(tmp_path / "d.png")
    kinds = list(open_source("nowhere", str(tmp_path)).frames())
    assert [type(item) for item in kinds] == [Frame, Problem, Problem, Frame]
    assert "b.png is an empty file" in kinds[1].text and "20x48" in kinds[2].text and "32x32" in kinds[2].text


def test_video_frames_that_are_too_small(tmp_path: Path) -> None:
    """The network's own error out of its deepest layer."""
    writer = cv2.VideoWriter(str(tmp_path / "a.avi"), cv2.VideoWriter.fourcc(*"MJPG"), 10, (48, 20))
    writer.write(COLOR[:20])
    writer.release()
    with pytest.raises(UserError, match=r"a frame of .*a\.avi is 20x48"):
        list(open_source("nowhere", str(tmp_path / "a.avi")).frames())
