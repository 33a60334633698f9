"""Folders of pictures that are only labelled: by several processes, killed and continued, with damaged pictures."""

from __future__ import annotations

import errno
import functools
import io
import os
import resource
import signal
import sys
import time
import tracemalloc
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from conftest import Started, assert_user_error, call_main, run_script, start_script, write_frame
from PIL import Image
from runs import assert_equal_scores, files_below, official_scores, start
from tiny_sets import describe

import evaluate
from evaluation.labelling import OUTCOMES, label_pictures
from evaluation.prediction_files import PredictionWriter
from frames.cityscapes import find_samples
from frames.classes import CITYSCAPES
from frames.images import picture_size, read_image
from frames.samples import Sample
from inference.engine import Engine

NAMES = [f"c_{index:06d}_000000" for index in range(160)]


def flags(data: Path, weights: Path, results: Path, *more: object) -> list[str]:
    """Flags of evaluate.py that label the test split into a folder."""
    fixed = ("--data_path", data, "--model_weight", weights, "--device", "cpu", "--split", "test", "--workers", 0)
    return [str(flag) for flag in (*fixed, "--save_dir", results, *more)]


def in_two(data: Path, weights: Path, results: Path, *more: object) -> list[Started]:
    """Starts evaluate.py in two processes."""
    return start(2, call_main, "evaluate.py", *flags(data, weights, results, *more), cwd=data)


def picture(seed: int, height: int = 64, width: int = 96) -> np.ndarray:
    """Noise in RGB."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


@pytest.fixture
def many(tmp_path: Path) -> Path:
    """A data set of 160 test frames: links to seven pictures."""
    root = tmp_path / "many"
    first = [write_frame(root, "test", name, picture(seed), None)[0] for seed, name in enumerate(NAMES[:7])]
    for index, name in enumerate(NAMES[7:]):
        os.link(first[index % 7], first[0].with_name(f"{name}_leftImg8bit.png"))
    return root


def test_killed_processes_go_on_where_they_were(many, weights, tmp_path) -> None:
    """Frames made twice or never after kill -9, half a file taken for a whole one, or rubbish that nobody removes."""
    assert run_script("evaluate.py", *flags(many, weights, tmp_path / "alone"), cwd=tmp_path).returncode == 0
    results = tmp_path / "killed"
    running = in_two(many, weights, results, "--workers", 1)
    while len(list(results.glob("c_*.png"))) < 20 and all(process.returncode is None for process in running):
        time.sleep(0.005)
    for process in running:
        process.send_signal(signal.SIGKILL)
    assert [process.wait()[0] for process in running] == [-signal.SIGKILL] * 2
    before = {path.name: path.stat().st_mtime_ns for path in results.glob("c_*.png")}
    assert 20 <= len(before) < 160
    halved = results / next(iter(before))
    halved.write_bytes(halved.read_bytes()[:-20])
    del before[halved.name]
    (results / f".{NAMES[159]}_pred_labelIds.png.77.tmp").write_bytes(b"half")
    (first, out, errors), second = (process.wait() for process in in_two(many, weights, results, "--skip_existing"))
    assert (first, second[0]) == (0, 0), errors + second[2]
    made = f"{160 - len(before)} labelled, {len(before)} already there, 0 left out"
    assert made in out and second[1] == ""
    assert files_below(results) == files_below(tmp_path / "alone") and len(files_below(results)) == 160
    after = {path.name: path.stat().st_mtime_ns for path in results.iterdir()}
    assert all(after[name] == moment for name, moment in before.items())


def noise_network(results: Path) -> Engine:
    """A network whose labels are noise, and that finds every earlier prediction on the disk."""
    done = []

    def logits(images: torch.Tensor) -> torch.Tensor:
        assert len(list(results.glob("*.png"))) == len(done)
        done.append(1)
        return torch.randn(1, len(CITYSCAPES), *(length // 8 for length in images.shape[1:3]))

    return Engine(logits, False, "noise")


def test_predictions_are_written_at_once_and_memory_does_not_grow(tmp_path) -> None:
    """Predictions that wait in memory for the end of a run: gone with it, or millions of them."""
    cv2.imwrite(str(tmp_path / "picture.png"), picture(0, 128, 128))
    peaks = []
    for count in (20, 160):
        samples = [Sample(name, tmp_path / "picture.png", None) for name in NAMES[:count]]
        writer = PredictionWriter(tmp_path / str(count), samples, CITYSCAPES)
        tracemalloc.start()
        counts = label_pictures(noise_network(writer.folder), samples, writer)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert counts == dict(zip(OUTCOMES, (count, 0, 0), strict=True))
    assert len(files_below(writer.folder)) == 160 and peaks[1] - peaks[0] < 100_000, peaks


def unlabelled(root: Path) -> Path:
    """Describes a folder of pictures without labels, in two folders and several formats, one turned by EXIF data."""
    exif = Image.Exif()
    exif[0x0112] = 6
    for index, name in enumerate(("a/one.png", "a/two.jpg", "b/one.webp", "b/turned.jpg", "c/turned.png", "c/t.tif")):
        path = root / "pictures" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        turned = {"exif": exif.tobytes()} if "turned" in name else {}
        Image.fromarray(picture(index)).save(path, **turned)
    return describe(root, train="pictures", test="pictures", names=list(CITYSCAPES.names))


def test_what_is_there_is_kept_only_if_it_is_a_prediction_of_the_picture(weights, tmp_path) -> None:
    """A truncated file that stays for ever, the prediction of another picture or network, or all made once more."""
    data, results = unlabelled(tmp_path), tmp_path / "r"
    given = flags(data, weights, results, "--color_dir", tmp_path / "colors")
    first = run_script("evaluate.py", *given, cwd=tmp_path)
    assert first.returncode == 0 and all(str(noun) in first.stdout for noun in ("6", "0")), first.stderr
    expected = files_below(results) | files_below(tmp_path / "colors")
    assert len(expected) == 12
    again = run_script("evaluate.py", *given, "--skip_existing", cwd=tmp_path)
    assert again.returncode == 0 and all(str(noun) in again.stdout for noun in ("0", "6")), again.stderr

    one, two = results / "a" / "one_pred_labelIds.png", results / "a" / "two_pred_labelIds.png"
    flipped = bytearray(one.read_bytes())
    flipped[len(flipped) // 2] ^= 64
    one.write_bytes(flipped)  # the same size and a whole end
    cv2.imwrite(str(two), np.full((64, 96), 33, np.uint8))  # a label id, where the values are train ids
    cv2.imwrite(str(results / "b" / "one_pred_labelIds.png"), np.zeros((96, 64), np.uint8))
    cv2.imwrite(str(results / "b" / "turned_pred_labelIds.png"), np.zeros((64, 96), np.uint8))
    (tmp_path / "colors" / "c" / "color_t.png").unlink()
    third = run_script("evaluate.py", *given, "--skip_existing", cwd=tmp_path)
    assert third.returncode == 0, third.stderr
    assert files_below(results) | files_below(tmp_path / "colors") == expected


def test_the_size_of_a_picture_is_that_of_its_pixels(tmp_path) -> None:
    """A turned picture whose prediction is made again by every run, because its header has the other size."""
    unlabelled(tmp_path)
    sizes = {path.name: picture_size(path) for path in (tmp_path / "pictures").rglob("*.*")}
    for path in (tmp_path / "pictures").rglob("*.*"):
        assert picture_size(path) == read_image(path).shape[:2], path
    assert sizes["turned.jpg"] == (96, 64) and sizes["one.png"] == (64, 96)


def test_a_damaged_picture_is_left_out_of_labels_and_ends_a_score(frames, weights, tmp_path) -> None:
    """A night of labelling that one truncated file ends; or a score of the frames that could be read."""
    for index, name in enumerate(("small", "half", "text", "deep")):
        image = np.zeros((20, 40, 3) if name == "small" else (64, 96, 3), np.uint16 if name == "deep" else np.uint8)
        path, _ = write_frame(frames, "test", f"{name}_00000{index}_000000", image, None)
        path.write_bytes({"half": path.read_bytes()[:-9], "text": b"text"}.get(name, path.read_bytes()))
    ended = [process.wait() for process in in_two(frames, weights, tmp_path / "r")]
    lines = [line for _, _, errors in ended for line in errors.splitlines() if line.startswith("left out: ")]
    assert [status for status, _, _ in ended] == [1, 1] and len(lines) == 4, ended
    assert all(str(noun) in ended[0][1] for noun in ("1", "0", "4")) and ended[1][1] == ""
    for name, words in (("small", "expected at least 32x32"), ("half", "truncated"), ("deep", "16 bits")):
        assert any(f"/{name}_" in line and words in line for line in lines), lines
    assert [path.name for path in (tmp_path / "r").iterdir()] == ["teststadt_000000_000000_pred_labelIds.png"]

    path = find_samples(frames, "val")[1].image
    path.write_bytes(path.read_bytes()[:-9])
    given = flags(frames, weights, tmp_path / "v", "--split", "val")
    assert_user_error(run_script("evaluate.py", *given, cwd=tmp_path), path, "truncated")


def test_scores_never_leave_frames_out(frames, weights, tmp_path) -> None:
    """A score of those frames alone that an earlier run had not reached."""
    given = flags(frames, weights, tmp_path / "v", "--split", "val", "--skip_existing")
    assert_user_error(run_script("evaluate.py", *given, cwd=tmp_path), "--skip_existing", "--split")


def hold(results: Path, data: Path) -> None:
    """Holds the folder of predictions until a file is there."""
    with PredictionWriter(results, find_samples(data, "test"), CITYSCAPES).alone():
        (results / "held").touch()
        end = time.monotonic() + 60
        while not (results / "end").exists() and time.monotonic() < end:
            time.sleep(0.01)


def test_two_runs_never_mix_their_predictions(frames, weights, tmp_path, monkeypatch) -> None:
    """A run that removes what another one writes, and a folder that holds half of each."""
    results = tmp_path / "r"
    other = Started(hold, results, frames, cwd=tmp_path)
    while not (results / "held").exists() and other.returncode is None:
        time.sleep(0.01)
    for more in ((), ("--skip_existing",), ("--split", "val")):
        result = run_script("evaluate.py", *flags(frames, weights, results, *more), cwd=tmp_path)
        assert_user_error(result, results)
    assert not list(results.glob("*.png"))
    (results / "end").touch()
    assert other.wait()[0] == 0 and not (results / ".lock").exists()
    assert run_script("evaluate.py", *flags(frames, weights, results), cwd=tmp_path).returncode == 0

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.lockf", refuse)
    result = run_script("evaluate.py", *flags(frames, weights, results), cwd=tmp_path)
    assert result.returncode == 0 and "takes no locks (No locks available)" in result.stderr
    monkeypatch.setitem(sys.modules, "fcntl", None)
    result = run_script("evaluate.py", *flags(frames, weights, results), cwd=tmp_path)
    assert result.returncode == 0 and result.stderr == "" and not (results / ".lock").exists()


def test_a_full_disk_keeps_what_is_whole(frames, weights, tmp_path) -> None:
    """Half a prediction under its name, or a run that goes on without writing."""
    write_frame(frames, "test", "z_000000_000000", picture(9, 640, 960), None)  # the last one, a larger file
    data, results = frames, tmp_path / "r"
    assert run_script("evaluate.py", *flags(data, weights, tmp_path / "whole"), cwd=tmp_path).returncode == 0
    whole = files_below(tmp_path / "whole")
    size = max(map(len, whole.values())) - 1
    limit = functools.partial(resource.setrlimit, resource.RLIMIT_FSIZE, (size, size))
    result = start_script("evaluate.py", *flags(data, weights, results), cwd=tmp_path, first=limit).result()
    assert_user_error(result, "z_000000_000000_pred_labelIds.png")
    kept = files_below(results)
    assert len(kept) == 1 and kept.items() < whole.items()
    again = run_script("evaluate.py", *flags(data, weights, results, "--skip_existing"), cwd=tmp_path)
    assert "1 labelled" in again.stdout and files_below(results) == whole


def test_what_a_killed_run_leaves_disturbs_nobody(frames, weights, tmp_path) -> None:
    """The official script that stops at two predictions of a frame, or a submission with half a file in it."""
    given = flags(frames, weights, tmp_path / "r", "--split", "val", "--json", tmp_path / "scores.json")
    ended = [process.wait() for process in start(2, call_main, "evaluate.py", *given, cwd=tmp_path)]
    assert [status for status, _, _ in ended] == [0, 0] and ended[1][1] == "" and "class mIoU" in ended[0][1], ended
    left = [".lock", *(f".{kind}.png.99.tmp" for kind in ("valstadt_000000_000000_pred_labelIds", "color_x"))]
    for name in left:
        (tmp_path / "r" / name).write_bytes(b"half")
    scores = evaluate.json.loads((tmp_path / "scores.json").read_text())
    assert_equal_scores(scores, official_scores(frames, tmp_path / "r", tmp_path / "export"))
    assert run_script("evaluate.py", *given, cwd=tmp_path).returncode == 0
    assert evaluate.json.loads((tmp_path / "scores.json").read_text()) == scores
    assert sorted(path.name for path in (tmp_path / "r").iterdir()) == [
        f"valstadt_000000_00000{index}_pred_labelIds.png" for index in range(2)
    ]


EXIF = b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01"  # little-endian, one entry, 0x0112; then its type, count and value


@pytest.mark.parametrize(
    "exif",
    [EXIF + b"\x02\0\x02\0\0\x006\0\0\0" + bytes(4), EXIF + b"\x01\0\x02\0\0\0\x06\x06\0\0" + bytes(4), b"Exif\0\0II"],
    ids=["text", "bytes", "cut"],
)
def test_an_odd_orientation_does_not_end_the_search_for_what_is_missing(exif, tmp_path):
    """One camera that writes its EXIF tag as text would end a run over a million pictures with a traceback."""
    content = io.BytesIO()
    Image.new("RGB", (40, 64)).save(content, "JPEG", exif=exif)
    path = tmp_path / "odd.jpg"
    path.write_bytes(content.getvalue())
    assert picture_size(path) == read_image(path).shape[:2]
