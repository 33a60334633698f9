"""Results of the viewer: what costs one of them, what ends the run, and what they never replace."""

from __future__ import annotations

import errno
import os
import shutil

import cv2
import numpy as np
import pytest
from conftest import assert_user_error
from makers import make_video
from runs import VAL, view

import viewer
from frames.classes import CITYSCAPES
from utils import UserError
from viewing.video import VideoFile


@pytest.fixture
def fixed_size(monkeypatch):
    """Weights that take pictures of 64x96 only, as deploy.py exports them without --dynamic."""

    def predict(image: np.ndarray) -> np.ndarray:
        if image.shape[:2] != (64, 96):
            size = "x".join(map(str, image.shape[:2]))
            raise UserError(f"fixed.onnx was exported for 64x96, the picture is {size} (height x width)")
        return np.zeros(image.shape[:2], np.uint8)

    predict.classes = CITYSCAPES
    monkeypatch.setattr(viewer, "load_predictor", lambda *_: predict)
    return "fixed.onnx"


def test_picture_of_another_size_costs_only_itself(frames, fixed_size, tmp_path) -> None:
    """One picture that a fixed-size export does not take, and nothing is drawn."""
    shutil.copytree(frames / "leftImg8bit" / "val" / "valstadt", tmp_path / "in")
    cv2.imwrite(str(tmp_path / "in" / "a.png"), np.zeros((64, 64, 3), np.uint8))
    result = view(frames, fixed_size, tmp_path, "--input_pic", "in")
    assert result.returncode == 0, result.stderr
    assert "a.png" in result.stderr and all(str(noun) in result.stderr for noun in ("64x96", "64x64"))
    assert "2 frames, 1 skipped" in result.stdout and len(list(tmp_path.glob("viewer_results/*"))) == 2
    assert_user_error(view(frames, fixed_size, tmp_path, "--input_pic", "in/a.png"), "64x96")
    (tmp_path / "only").mkdir()
    for name in "ab":
        shutil.copy(tmp_path / "in" / "a.png", tmp_path / "only" / f"{name}.png")
    assert_user_error(view(frames, fixed_size, tmp_path, "--input_pic", "only"), "2")


def test_video_of_another_size_ends_at_once(frames, fixed_size, tmp_path) -> None:
    """Thousands of frames are refused one by one, each with a line; or a camera runs on for ever."""
    path = tmp_path / "a.avi"
    video = VideoFile(path, 10)
    for _ in range(20):
        video.write(np.zeros((64, 128, 3), np.uint8))
    video.close()
    result = view(frames, fixed_size, tmp_path, "--input_pic", "a.avi")
    assert_user_error(result, "a_000000: ", "64x96", "64x128")
    assert len(result.stderr.splitlines()) == 1 and not list(tmp_path.glob("*.webm"))


def test_picture_that_no_memory_holds_costs_only_itself(frames, weights, tmp_path, monkeypatch) -> None:
    """A panorama among photos ends the run with PyTorch's RuntimeError; other errors of ours are hidden by it."""
    shutil.copytree(frames / "leftImg8bit" / "val" / "valstadt", tmp_path / "in")
    cv2.imwrite(str(tmp_path / "in" / "a.png"), np.zeros((64, 960, 3), np.uint8))
    reason = "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."

    def predict(image: np.ndarray) -> np.ndarray:
        if image.shape[1] > 96:
            raise RuntimeError(reason)
        return np.zeros(image.shape[:2], np.uint8)

    predict.classes = CITYSCAPES
    monkeypatch.setattr(viewer, "load_predictor", lambda *_: predict)
    result = view(frames, weights, tmp_path, "--input_pic", "in")
    assert result.returncode == 0 and "64x960" in result.stderr
    reason = "shapes differ"
    assert view(frames, weights, tmp_path, "--input_pic", "in").returncode == 1


def test_name_that_the_system_refuses_costs_only_that_result(frames, weights, tmp_path) -> None:
    """A picture's name of 250 letters, or a folder in the place of its result, ends the run."""
    folder = tmp_path / "in"
    folder.mkdir()
    for name in ("a", "b", "m" * 240, "n" * 250):
        shutil.copy(frames / "leftImg8bit" / VAL, folder / f"{name}.png")
    (tmp_path / "out" / "b_result.png").mkdir(parents=True)
    result = view(frames, weights, tmp_path, "--input_pic", "in", "--output", "out")
    assert result.returncode == 0, result.stderr
    lines = [line for line in result.stderr.splitlines() if line.startswith("skipped: cannot write out/")]
    assert len(lines) == 2 and "b_result.png (Is a directory)" in lines[0] and "(File name too long)" in lines[1]
    assert "2 frames, 2 skipped" in result.stdout
    made = sorted(path.name[0] for path in (tmp_path / "out").iterdir() if path.is_file())
    assert made == ["a", "m"]
    only = view(frames, weights, tmp_path, "--input_pic", "in/n*.png", "--output", "out")
    assert_user_error(only, "_result.png")
    for flags in (["in/a.png", "--output", "o" * 300 + ".png"], ["in/" + "n" * 250 + ".png"], ["x" * 300 + ".png"]):
        assert_user_error(view(frames, weights, tmp_path, "--input_pic", *flags))


def test_full_disk_ends_the_run(frames, weights, tmp_path, monkeypatch) -> None:
    """Thousands of pictures are predicted, and every result is lost."""

    def full(path: object, data: bytes) -> None:
        try:
            raise OSError(errno.ENOSPC, "No space left on device")
        except OSError as error:
            raise UserError(f"cannot write {path} ({error.strerror})") from None

    monkeypatch.setattr(viewer, "write_file", full)
    assert_user_error(view(frames, weights, tmp_path, "--input_pic", "val"))


def test_what_is_read_is_never_replaced(frames, weights, tmp_path) -> None:
    """A result takes the place of a picture, its label, the weights or the video, by a link or another spelling."""
    picture = frames / "leftImg8bit" / VAL
    label = next((frames / "gtFine" / "val").rglob("*000000_gtFine_labelIds.png"))
    own = shutil.copy(weights, tmp_path / "own.pth")
    make_video(tmp_path / "v.avi")
    for number, read in enumerate((picture, label, own, tmp_path / "v.avi")):
        ending, given = (".avi", "v.avi") if number == 3 else (".png", VAL)
        links = [tmp_path / f"{number}{way}{ending}" for way in ("hard", "soft")]
        os.link(read, links[0])
        links[1].symlink_to(read)
        for link in (*links, tmp_path / "frames" / ".." / links[0].name):
            result = view(frames, own, tmp_path, "--input_pic", given, "--output", link)
            assert_user_error(result, "--output", link)
    folder = tmp_path / "in"
    folder.mkdir()
    for name in "ab":
        shutil.copy(picture, folder / f"{name}.png")
    os.link(folder / "b.png", folder / "a_result.png")
    before = (folder / "b.png").read_bytes()
    result = view(frames, own, tmp_path, "--input_pic", "in", "--output", "in")
    assert result.returncode == 0 and "a_result.png" in result.stderr
    assert (folder / "a_result.png").read_bytes() == before and "1 frames, 1 skipped" in result.stdout
    again = view(frames, own, tmp_path, "--input_pic", "in", "--output", "in")
    assert again.returncode == 0 and all(
        str(noun) in again.stderr for noun in ("2", "_result.png")
    )  # its own results are replaced
