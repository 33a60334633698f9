"""The viewer: its panels, files, messages and window."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Callable

import cv2
import numpy as np
import pytest
from conftest import assert_user_error, refused
from makers import make_video
from runs import VAL, view

import viewer
from frames.cityscapes import cityscapes_folder, find_samples
from frames.classes import CITYSCAPES
from frames.images import read_image
from frames.samples import read_pair
from inference.predictor import load_predictor
from utils import UserError
from viewer import SCREEN_WIDTH, Window
from viewing.drawing import LEGEND_ROW
from viewing.sources import open_source
from viewing.video import VideoFile, frame_count, open_capture


def test_panels_are_picture_truth_and_prediction(frames, weights, tmp_path) -> None:
    """Swapped channels, panels in another order, or ground truth in wrong colors."""
    result = view(frames, weights, tmp_path, "--input_pic", VAL)
    assert result.returncode == 0, result.stderr
    assert result.stdout == "valstadt_000000_000000_result.png: input | ground truth | prediction\n"
    drawn = read_image(tmp_path / "valstadt_000000_000000_result.png")
    image, label = read_pair(find_samples(frames, "val")[0])
    assert drawn.shape[1] == 3 * 96 and drawn.shape[0] >= 64 + LEGEND_ROW
    np.testing.assert_array_equal(drawn[:64, :96], image)
    np.testing.assert_array_equal(drawn[:64, 96:192], CITYSCAPES.palette[label])
    colors = {tuple(color) for color in drawn[:64, 192:].reshape(-1, 3)}
    assert colors <= {tuple(color) for color in CITYSCAPES.palette[:19]}


def test_test_split_has_no_truth_panel(frames, weights, tmp_path) -> None:
    """The dummy labels of the test split drawn as if they were ground truth."""
    result = view(frames, weights, tmp_path, "--input_pic", "test/teststadt/teststadt_000000_000000_leftImg8bit.png")
    assert result.returncode == 0 and "ground truth" not in result.stdout
    assert read_image(tmp_path / "teststadt_000000_000000_result.png").shape[1] == 2 * 96


def test_any_picture_of_any_size(frames, weights, tmp_path) -> None:
    """A photo of odd size or outside the data set is refused, or a grey one is converted without a note."""
    cv2.imwrite(str(tmp_path / "photo.jpg"), np.random.default_rng(0).integers(0, 256, (77, 131), np.uint8))
    result = view(frames, weights, tmp_path, "--input_pic", "photo.jpg", "--no-legend")
    assert result.returncode == 0, result.stderr
    assert read_image(tmp_path / "photo_result.png").shape == (77, 2 * 131, 3)
    assert "photo: grey, converted to RGB" in result.stdout


def test_overlay_and_output(frames, weights, tmp_path) -> None:
    """An overlay of several panels, of another width than --width, or in another place than --output."""
    flags = ["--input_pic", VAL, "--overlay", "--output", "new/over.jpg", "--width", "64"]
    result = view(frames, weights, tmp_path, *flags)
    assert result.returncode == 0, result.stderr
    assert read_image(tmp_path / "new" / "over.jpg").shape[1] == 64


def test_folder_keeps_names_and_skips_what_is_damaged(frames, weights, tmp_path) -> None:
    """A damaged picture ends the run or is skipped silently; two results get one name."""
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
    assert (
        len(skipped) == 2
        and "cut.png" in skipped[0]
        and all(str(noun) in skipped[1] for noun in ("small.png", "20x40"))
    )
    *_, last = result.stdout.splitlines()
    assert last.startswith("3 frames, 2 skipped, ") and "frames/s; decode " in last and last.endswith("ms a frame")


def test_folder_without_a_good_picture(frames, weights, tmp_path) -> None:
    """A run without a result that ends with success."""
    (tmp_path / "in").mkdir()
    for name in ("a.png", "b.png"):
        (tmp_path / "in" / name).write_text("no picture")
    result = view(frames, weights, tmp_path, "--input_pic", "in", "--output", "out.webm")
    assert_user_error(result, "b.png", "2")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["frames", "in"]


def test_video_in_video_out(frames, weights, tmp_path) -> None:
    """A video of a wrong length, frame rate or size, or one that keeps its temporary name."""
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


def test_pictures_in_a_video_all_have_the_same_panels(frames, weights, tmp_path) -> None:
    """Ground truth for some of the frames: panels that jump, squeezed into the size of the first."""
    for pattern, count, panels in (("*/*/*_000000_leftImg8bit.png", 3, 2), ("val", 2, 3)):
        result = view(frames, weights, tmp_path, "--input_pic", pattern, "--no-legend", "--output", "out.webm")
        assert result.returncode == 0 and ("ground truth" in result.stdout) == (panels == 3), result.stderr
        capture = open_capture(tmp_path / "out.webm")
        assert frame_count(capture) == count and capture.read()[1].shape == (64, 96 * panels, 3)


def test_video_that_ends_early(frames, weights, tmp_path) -> None:
    """A truncated video is drawn without a message."""
    data = make_video(tmp_path / "whole.avi", 20).read_bytes()
    (tmp_path / "cut.avi").write_bytes(data[: len(data) // 2])
    result = view(frames, weights, tmp_path, "--input_pic", "cut.avi", "--output", "out/")
    assert result.returncode == 0, result.stderr
    made = len(list((tmp_path / "out").glob("cut_0000??_result.png")))
    assert 3 < made < 15 and all(str(noun) in result.stderr for noun in ("20", made))


@pytest.mark.parametrize("kind", ["missing", "text", "truncated", "small", "empty", "deep"])
def test_file_that_is_not_a_picture(frames, weights, tmp_path, kind: str) -> None:
    """cv2.imread returns None or a converted array for these, and a later line fails."""
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
        (["--input_pic", "text.mp4"], ["text.mp4"]),
        (["--input_pic", "99"], ["99"]),
        (["--input_pic", "nothing/*.png"], ["nothing/*.png", "0"]),
        (["--input_pic", VAL, "--output", "x.webm", "--codec", "ZZZZ"], [".webm", "ZZZZ"]),
        (["--input_pic", VAL, "--show"], ["--show"]),
        (["--input_pic", VAL, "--width", "3"], ["--width", "3", "64"]),
    ],
)
def test_impossible_requests_are_refused_in_one_line(frames, weights, tmp_path, flags, words) -> None:
    """A traceback, many messages of the libraries, or an empty result."""
    (tmp_path / "text.mp4").write_text("no video")
    result = view(frames, weights, tmp_path, *flags, DISPLAY="", WAYLAND_DISPLAY="")
    assert_user_error(result, *words)
    assert len(result.stderr.splitlines()) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["frames", "text.mp4"]


def test_output_that_cannot_be_written_or_would_disturb(frames, weights, tmp_path) -> None:
    """A result picture in $CITYSCAPES_RESULTS counts as a second prediction in the official evaluation."""
    (tmp_path / "file").write_text("x")
    flags = ["--input_pic", VAL]
    assert_user_error(view(frames, weights, tmp_path, *flags, "--output", "file/x.png"))
    assert_user_error(view(frames, weights, tmp_path, *flags, "--output", "x.tif"), "--output")
    inside = view(frames, weights, tmp_path, *flags, CITYSCAPES_RESULTS=str(tmp_path))
    assert_user_error(inside, "$CITYSCAPES_RESULTS", "--output")


def test_outputs_that_do_not_fit_the_input(frames, tmp_path, monkeypatch) -> None:
    """Many results in one file, an overwritten input, or video flags without effect."""
    monkeypatch.chdir(tmp_path)
    folder, single = (open_source(cityscapes_folder(str(frames)), name) for name in ("val", VAL))
    video = open_source(cityscapes_folder(str(frames)), str(make_video(tmp_path / "a.webm")))
    for source, output, fps, words in (
        (folder, "x.png", None, ""),
        (video, "x.jpg", None, ""),
        (folder, "x.txt", None, "or a slash"),
        (video, "a.webm", None, ""),
        (single, str(single.samples[0].image), None, ""),
        (folder, "x", 5.0, "--fps|--codec"),
    ):
        with refused(*words.split("|")):
            viewer.open_output(source, output, fps, None)
    monkeypatch.setenv("CITYSCAPES_RESULTS", str(tmp_path))
    with refused("CITYSCAPES_RESULTS"):
        viewer.open_output(folder, None, None, None)
    assert str(viewer.open_output(folder, "x.webm", None, None)).endswith("at 10 frames/s")


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupted_run_keeps_what_was_made(number: int, status: int, frames, weights, tmp_path, monkeypatch) -> None:
    """Ctrl-C leaves a traceback, a video that no player opens, or loses frames that were predicted."""
    (tmp_path / "in").mkdir()
    for index in range(20):
        os.link(frames / "leftImg8bit" / VAL, tmp_path / "in" / f"{index}.png")

    def interrupted_at_the_fifth(*arguments: object) -> Callable[[np.ndarray], np.ndarray]:
        predict = load_predictor(*arguments)
        seen = []

        def wrapped(image: np.ndarray) -> np.ndarray:
            seen.append(image)
            if len(seen) == 5:
                os.kill(os.getpid(), number)
            return predict(image)

        wrapped.classes = CITYSCAPES
        return wrapped

    monkeypatch.setattr(viewer, "load_predictor", interrupted_at_the_fifth)
    previous = signal.signal(number, signal.default_int_handler)  # else SIGTERM would end pytest
    try:
        result = view(frames, weights, tmp_path, "--input_pic", "in", "--output", "out.webm")
    finally:
        signal.signal(number, previous)
    assert result.returncode == status, result.stderr
    assert "interrupted; what was made until then is kept" in result.stderr and "Traceback" not in result.stderr
    assert frame_count(open_capture(tmp_path / "out.webm")) == 5 and "\n5 frames, " in result.stdout
    assert not list(tmp_path.glob(".out*"))


def test_video_that_cannot_be_finished_leaves_nothing(frames, weights, tmp_path, monkeypatch) -> None:
    """A full disk stays full of the temporary file."""

    def fail(video: VideoFile) -> None:
        raise UserError(f"cannot write {video.path}")

    monkeypatch.setattr(VideoFile, "close", fail)
    result = view(frames, weights, tmp_path, "--input_pic", VAL, "--output", "out.webm")
    assert_user_error(result, "out.webm")
    assert [path.name for path in tmp_path.iterdir()] == ["frames"]


class Screen:
    """Replaces OpenCV's window: counts pictures and polls, and plays the user at a given picture or poll."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, key_at: int = 10**6, close_at: int = 10**6, poll: int = 10**6):
        self.shown = 0
        self.polls = 0
        for name in ("namedWindow", "resizeWindow"):
            monkeypatch.setattr(cv2, name, lambda *_: None)
        monkeypatch.setattr(cv2, "imshow", lambda *_: setattr(self, "shown", self.shown + 1))
        monkeypatch.setattr(cv2, "waitKey", self.wait)
        monkeypatch.setattr(cv2, "getWindowProperty", lambda *_: float(self.shown < close_at))
        self.key_at = key_at
        self.key_at_poll = poll

    def wait(self, wait_ms: int) -> int:
        self.polls += 1
        return ord("q") if self.shown >= self.key_at or self.polls >= self.key_at_poll else -1


@pytest.mark.parametrize("how", ["q", "closed", "end"])
def test_window_ends_the_run(how: str, tmp_path, monkeypatch) -> None:
    """A window that cannot be closed, that stays after the last frame of a video, or that spoils the file."""
    count = 6 if how == "end" else 20
    name = str(make_video(tmp_path / "a.avi", count))
    screen = Screen(monkeypatch, **{"q": {"key_at": 3}, "closed": {"close_at": 3}, "end": {}}[how])

    def slow(image: np.ndarray) -> np.ndarray:
        time.sleep(0.02)
        return np.zeros(image.shape[:2], np.uint8)

    slow.classes = CITYSCAPES
    args = viewer.build_parser().parse_args(["--input_pic", name, "--show"])
    shown = viewer.Viewer(
        args, open_source(cityscapes_folder("nowhere"), name), VideoFile(tmp_path / "b.avi", 10), slow
    )
    shown.run()
    assert screen.shown >= 3
    assert shown.frames == 6 if how == "end" else 3 <= shown.frames <= 12
    assert frame_count(open_capture(tmp_path / "b.avi")) == shown.frames


def test_window_has_the_shape_of_the_picture(monkeypatch) -> None:
    """A window that opens upright for a picture that is not, or wider than the screen."""
    Screen(monkeypatch)
    sizes: list[tuple[int, ...]] = []
    monkeypatch.setattr(cv2, "resizeWindow", lambda _, *size: sizes.append(size))
    for height, width in ((480, 640), (1000, 5000)):
        window = Window()
        window.latest = np.zeros((height, width, 3), np.uint8)
        window.refresh()
    assert sizes == [(640, 480), (SCREEN_WIDTH, SCREEN_WIDTH // 5)]


def test_window_of_pictures_stays_until_it_is_closed(frames, weights, tmp_path, monkeypatch) -> None:
    """The last picture vanishes before anybody has seen it."""
    monkeypatch.setattr(viewer, "check_display", lambda: None)
    screen = Screen(monkeypatch, poll=5)
    result = view(frames, weights, tmp_path, "--input_pic", VAL, "--show", "--no-write")
    assert result.returncode == 0 and result.stdout.startswith("nothing written: "), result.stderr
    assert screen.shown == 1 and screen.polls == 5


def test_interlaced_video(frames, weights, tmp_path) -> None:
    """Uninitialised memory is drawn, with exit status 0."""
    writer = cv2.VideoWriter(str(tmp_path / "a.avi"), cv2.CAP_FFMPEG, cv2.VideoWriter.fourcc(*"dvsd"), 25, (720, 576))
    for shade in (50, 90, 130):
        writer.write(np.full((576, 720, 3), shade, np.uint8))
    writer.release()
    result = view(
        frames, weights, tmp_path, "--input_pic", "a.avi", "--output", "out/", "--no-legend", "--width", "200"
    )
    assert result.returncode == 0 and not result.stderr, result.stderr
    drawn = [read_image(tmp_path / "out" / f"a_{index:06d}_result.png")[:, :100] for index in range(3)]
    assert [round(float(image.mean()), -1) for image in drawn] == [50, 90, 130]


def test_codec_that_opencv_lacks_is_said_once(frames, weights, tmp_path) -> None:
    """The reason is said twice, or after lines of FFmpeg's own."""
    data = make_video(tmp_path / "good.avi").read_bytes()
    (tmp_path / "a.avi").write_bytes(data.replace(b"MJPG", b"ZZZZ"))
    result = view(frames, weights, tmp_path, "--input_pic", "a.avi")
    assert_user_error(result, "a.avi", "ZZZZ")
    assert len(result.stderr.splitlines()) == 1


def test_what_is_left_out_is_counted(frames, weights, tmp_path) -> None:
    """The ending hides most of a folder, and nobody is told."""
    shutil.copytree(frames / "leftImg8bit" / "val" / "valstadt", tmp_path / "in")
    for name in ("a.HEIC", "b.heic", "a.json", "notes", "._a.png"):
        (tmp_path / "in" / name).write_text("x")
    result = view(frames, weights, tmp_path, "--input_pic", "in")
    assert result.returncode == 0
    assert result.stderr.splitlines()[0] == "left out: 2 .heic, 1 .json, 1 without ending"
