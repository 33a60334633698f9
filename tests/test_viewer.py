"""What people look at."""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time

import cv2
import numpy as np
import pytest
from conftest import ROOT, assert_user_error, run_script

import viewer
from dataset import PALETTE, find_samples, read_image, read_pair
from viewing.drawing import LEGEND_ROW
from viewing.sources import open_source
from viewing.video import VideoFile, frame_count, open_capture

VAL = "val/valstadt/valstadt_000000_000000_leftImg8bit.png"


def view(frames, weights, cwd, *flags, **variables):
    """Runs viewer.py on the CPU."""
    base = ["--data_path", frames, "--model_weight", weights, "--device", "cpu"]
    return run_script("viewer.py", *base, *flags, cwd=cwd, **variables)


def make_video(path, count=5):
    """Writes a video of 64x96 frames of noise, each brighter than the last."""
    video = VideoFile(path, 10)
    for index in range(count):
        video.write("", np.random.default_rng(0).integers(10 * index, 10 * index + 40, (64, 96, 3), np.uint8))
    video.close()
    return path


def test_panels_are_picture_truth_and_prediction(frames, weights, tmp_path) -> None:
    """Channels swapped, panels in another order, or ground truth in the wrong colors."""
    result = view(frames, weights, tmp_path, "--input_pic", VAL)
    assert result.returncode == 0, result.stderr
    assert result.stdout == "valstadt_000000_000000_result.png: input | ground truth | prediction\n"
    drawn = read_image(tmp_path / "valstadt_000000_000000_result.png")
    image, label = read_pair(find_samples(frames, "val")[0])
    assert drawn.shape[1] == 3 * 96 and drawn.shape[0] >= 64 + LEGEND_ROW
    np.testing.assert_array_equal(drawn[:64, :96], image)
    np.testing.assert_array_equal(drawn[:64, 96:192], PALETTE[label])
    colors = {tuple(color) for color in drawn[:64, 192:].reshape(-1, 3)}
    assert colors <= {tuple(color) for color in PALETTE[:19]}


def test_test_split_has_no_truth_panel(frames, weights, tmp_path) -> None:
    """The dummy labels of the test split drawn as if they were ground truth."""
    result = view(frames, weights, tmp_path, "--input_pic", "test/teststadt/teststadt_000000_000000_leftImg8bit.png")
    assert result.returncode == 0 and "ground truth" not in result.stdout
    assert read_image(tmp_path / "teststadt_000000_000000_result.png").shape[1] == 2 * 96


def test_any_picture_of_any_size(frames, weights, tmp_path) -> None:
    """A photograph that is no multiple of 32, lies outside the data set, or is grey, which has to be said."""
    cv2.imwrite(str(tmp_path / "photo.jpg"), np.random.default_rng(0).integers(0, 256, (77, 131), np.uint8))
    result = view(frames, weights, tmp_path, "--input_pic", "photo.jpg", "--no-legend")
    assert result.returncode == 0, result.stderr
    assert read_image(tmp_path / "photo_result.png").shape == (77, 2 * 131, 3)
    assert "photo: grey, converted to RGB" in result.stdout


def test_overlay_and_output(frames, weights, tmp_path) -> None:
    """The blended picture has one panel, is as wide as it was asked to be, and goes where it was asked to."""
    flags = ["--input_pic", VAL, "--overlay", "--output", "new/over.jpg", "--width", "64"]
    result = view(frames, weights, tmp_path, *flags)
    assert result.returncode == 0, result.stderr
    assert read_image(tmp_path / "new" / "over.jpg").shape[1] == 64


def test_folder_keeps_names_and_skips_what_is_damaged(frames, weights, tmp_path) -> None:
    """One bad picture ends the run or is left out silently; two results under one name."""
    folder = tmp_path / "in"
    good = (frames / "leftImg8bit" / VAL).read_bytes()
    (folder / "sub").mkdir(parents=True)
    for name in ("a.png", "sub/a.png", "sub/b.png"):
        (folder / name).write_bytes(good)
    (folder / "cut.png").write_bytes(good[:900])
    cv2.imwrite(str(folder / "small.png"), np.zeros((20, 40, 3), np.uint8))
    result = view(frames, weights, tmp_path, "--input_pic", "in")
    assert result.returncode == 0, result.stderr
    written = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*_result.png"))
    assert written == [f"viewer_results/{name}_result.png" for name in ("a", "sub/a", "sub/b")]
    skipped = [line for line in result.stderr.splitlines() if line.startswith("skipped: ")]
    assert len(skipped) == 2 and "cut.png is truncated" in skipped[0] and "small.png is 20x40" in skipped[1]
    *_, last = result.stdout.splitlines()
    assert last.startswith("3 frames, 2 skipped, ") and "frames/s; decode " in last and last.endswith("ms a frame")


def test_folder_without_a_good_picture(frames, weights, tmp_path) -> None:
    """An empty run that ends well."""
    (tmp_path / "in").mkdir()
    for name in ("a.png", "b.png"):
        (tmp_path / "in" / name).write_text("no picture")
    result = view(frames, weights, tmp_path, "--input_pic", "in", "--output", "out.webm")
    assert_user_error(result, "b.png", "none of 2 frames could be used")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["frames", "in"]


def test_video_in_video_out(frames, weights, tmp_path) -> None:
    """A video of another length, speed or size than it was asked for, or one that never takes its name."""
    make_video(tmp_path / "drive.avi", 6)
    result = view(frames, weights, tmp_path, "--input_pic", "drive.avi", "--overlay", "--frames", "4", "--width", "80")
    assert result.returncode == 0, result.stderr
    capture = open_capture(tmp_path / "drive_result.webm")
    assert frame_count(capture) == 4 and capture.get(cv2.CAP_PROP_FPS) == 10
    shades = [capture.read()[1][:50] for _ in range(4)]
    assert shades[0].shape[1] == 80 and shades[0].mean() < shades[1].mean() < shades[3].mean()
    first, last = result.stdout.splitlines()
    assert first.startswith("drive_result.webm, ") and first.endswith("x80 at 10 frames/s: overlay")
    assert last.startswith("4 frames, ") and all(
        f"{stage} " in last for stage in ("decode", "predict", "draw", "write")
    )
    assert "tag" not in result.stderr and not list(tmp_path.glob(".*"))


def test_video_that_ends_early(frames, weights, tmp_path) -> None:
    """A video that was cut off, drawn as if it were whole."""
    data = make_video(tmp_path / "whole.avi", 20).read_bytes()
    (tmp_path / "cut.avi").write_bytes(data[: len(data) // 2])
    result = view(frames, weights, tmp_path, "--input_pic", "cut.avi", "--output", "out/")
    assert result.returncode == 0, result.stderr
    made = len(list((tmp_path / "out").glob("cut_0000??_result.png")))
    assert 3 < made < 15 and f"cut.avi announces 20 frames, {made} could be decoded" in result.stderr


@pytest.mark.parametrize("kind", ["missing", "text", "truncated", "small", "empty", "deep"])
def test_picture_that_is_none(frames, weights, tmp_path, kind: str) -> None:
    """cv2.imread returns None for all of these, or something else than was taken, and the next line crashes."""
    path = tmp_path / "picture.png"
    if kind == "text":
        path.write_text("no picture")
    elif kind == "truncated":
        path.write_bytes((frames / "leftImg8bit" / VAL).read_bytes()[:900])
    elif kind == "small":
        cv2.imwrite(str(path), np.zeros((20, 40, 3), np.uint8))
    elif kind == "empty":
        path.touch()
    elif kind == "deep":
        cv2.imwrite(str(path), np.zeros((64, 64), np.uint16))
    words = {
        "missing": "no picture at", "text": "damaged or no picture", "truncated": "truncated", "small": "20x40",
        "empty": "an empty file", "deep": "16 bits a channel, expected 8",
    }  # fmt: skip
    assert_user_error(view(frames, weights, tmp_path, "--input_pic", "picture.png"), "picture.png", words[kind])
    assert not list(tmp_path.glob("*_result.png"))


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--input_pic", "text.mp4"], ["text.mp4", "cannot be opened as a video", "convert it"]),
        (["--input_pic", "99"], ["camera 99 cannot be opened"]),
        (["--input_pic", "nothing/*.png"], ["nothing/*.png: 0 files, none of them a picture"]),
        (["--input_pic", VAL, "--output", "x.webm", "--codec", "ZZZZ"], ["cannot write .webm with the codec ZZZZ"]),
        (["--input_pic", VAL, "--show"], ["--show found no display"]),
        (["--input_pic", VAL, "--width", "3"], ["--width is 3, expected a number from 64"]),
    ],
)
def test_what_cannot_be_done_is_one_line(frames, weights, tmp_path, flags, words) -> None:
    """A traceback, a page of the libraries' own messages, or an empty result."""
    (tmp_path / "text.mp4").write_text("no video")
    result = view(frames, weights, tmp_path, *flags, DISPLAY="", WAYLAND_DISPLAY="")
    assert_user_error(result, *words)
    assert len(result.stderr.splitlines()) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["frames", "text.mp4"]


def test_output_that_cannot_be_written_or_would_disturb(frames, weights, tmp_path) -> None:
    """A result picture in the results root is a second prediction to the official script."""
    (tmp_path / "file").write_text("x")
    flags = ["--input_pic", VAL]
    assert_user_error(view(frames, weights, tmp_path, *flags, "--output", "file/x.png"), "cannot write to")
    assert_user_error(view(frames, weights, tmp_path, *flags, "--output", "x.tif"), "--output")
    inside = view(frames, weights, tmp_path, *flags, CITYSCAPES_RESULTS=str(tmp_path))
    assert_user_error(inside, "$CITYSCAPES_RESULTS", "--output")


def test_outputs_that_do_not_fit_the_input(frames, tmp_path, monkeypatch) -> None:
    """Many results in one file, the input overwritten, or flags of a video that do nothing."""
    monkeypatch.chdir(tmp_path)
    folder, single = (open_source(str(frames), name) for name in ("val", VAL))
    video = open_source(str(frames), str(make_video(tmp_path / "a.webm")))
    for source, output, fps, words in (
        (folder, "x.png", None, "one picture, but the input may hold several"),
        (video, "x.jpg", None, "one picture, but the input may hold several"),
        (folder, "x.txt", None, "or a slash"),
        (video, "a.webm", None, "which is the input"),
        (single, str(single.samples[0].image), None, "which is the input"),
        (folder, "x", 5.0, "--fps and --codec are for videos"),
    ):
        with pytest.raises(viewer.UserError, match=words):
            viewer.open_output(source, output, fps, None)
    monkeypatch.setenv("CITYSCAPES_RESULTS", str(tmp_path))
    with pytest.raises(viewer.UserError, match="CITYSCAPES_RESULTS"):
        viewer.open_output(folder, None, None, None)
    assert str(viewer.open_output(folder, "x.webm", None, None)).endswith("at 10 frames/s")


def test_interrupted_run_keeps_what_was_made(frames, weights, tmp_path) -> None:
    """Ctrl-C leaves a video that no player opens, or a traceback."""
    (tmp_path / "in").mkdir()
    for index in range(3000):
        os.link(frames / "leftImg8bit" / VAL, tmp_path / "in" / f"{index}.png")
    command = [sys.executable, str(ROOT / "viewer.py"), "--model_weight", str(weights), "--device", "cpu"]
    flags = ["--input_pic", "in", "--output", "out.webm"]
    run = subprocess.Popen([*command, *flags], cwd=tmp_path, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob(".out*")) and time.monotonic() < deadline and run.poll() is None:
        time.sleep(0.02)
    time.sleep(0.3)
    run.send_signal(signal.SIGINT)
    stdout, stderr = run.communicate(timeout=60)
    assert run.returncode == 130, (stdout, stderr)
    assert "interrupted; what was made until then is kept" in stderr and "Traceback" not in stderr
    count = frame_count(open_capture(tmp_path / "out.webm"))
    assert 0 < count < 3000 and f"\n{count} frames, " in stdout
    assert not list(tmp_path.glob(".out*"))


class Screen:
    """Stands for the window: what was shown, and what the user does at which picture."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, key_at: int = 10**6, close_at: int = 10**6):
        self.shown = 0
        for name in ("namedWindow", "resizeWindow"):
            monkeypatch.setattr(cv2, name, lambda *_: None)
        monkeypatch.setattr(cv2, "imshow", lambda *_: setattr(self, "shown", self.shown + 1))
        monkeypatch.setattr(cv2, "waitKey", lambda _: ord("q") if self.shown >= key_at else -1)
        monkeypatch.setattr(cv2, "getWindowProperty", lambda *_: float(self.shown < close_at))


@pytest.mark.parametrize("how", ["q", "closed", "end"])
def test_window_ends_the_run(how: str, tmp_path, monkeypatch) -> None:
    """A window that cannot be closed, or that stays after the last frame of a video."""
    frames = 20 if how != "end" else 6
    source = open_source("nowhere", str(make_video(tmp_path / "a.avi", frames)))
    screen = Screen(monkeypatch, **{"q": {"key_at": 3}, "closed": {"close_at": 3}, "end": {}}[how])
    args = argparse.Namespace(overlay=False, legend=True, width=None, frames=None, show=True)

    def slow(image: np.ndarray) -> np.ndarray:
        time.sleep(0.02)
        return np.zeros(image.shape[:2], np.uint8)

    run = viewer.Run(args, source, None, slow)
    run.view()
    assert screen.shown >= 3 and run.frames == (6 if how == "end" else run.frames) <= 12
