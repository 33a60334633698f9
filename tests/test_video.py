"""Reading and writing video files."""

from __future__ import annotations

import os
import resource
import threading
from pathlib import Path

import numpy as np
import pytest

from utils import UserError
from viewing.video import (
    CODECS,
    STDERR,
    Frame,
    Problem,
    VideoFile,
    frame_count,
    frame_rate,
    letterbox,
    open_capture,
    quiet,
    read_frames,
)

SIZE = (64, 96)


def picture(index: int, height: int = SIZE[0], width: int = SIZE[1]) -> np.ndarray:
    """BGR: blue all over, with a red bar that moves."""
    image = np.zeros((height, width, 3), np.uint8)
    image[..., 0] = 200
    image[:, 8 * index : 8 * index + 8] = (0, 0, 200)
    return image


def write(path: Path, frames: int = 5, fps: float = 10, **size: int) -> Path:
    """Writes a video of moving bars."""
    video = VideoFile(path, fps)
    for index in range(frames):
        video.write(picture(index, **size))
    video.close()
    return path


class Script:
    """A capture whose reads succeed and fail as told."""

    def __init__(self, reads: str, announced: float):
        self.reads = iter(reads)
        self.announced = announced

    def read(self) -> tuple[bool, np.ndarray | None]:
        good = next(self.reads, "-") == "+"
        return good, picture(0) if good else None

    def retrieve(self) -> tuple[bool, np.ndarray | None]:
        return True, picture(0)

    def get(self, what: int) -> float:
        return self.announced


@pytest.mark.parametrize("ending", CODECS)
@pytest.mark.parametrize("fps", [10, 29.97])
def test_what_was_written_is_read(ending: str, fps: float, tmp_path: Path) -> None:
    """Swapped channels, a frame lost at either end, a wrong frame rate, or a good file reported as damaged."""
    capture = open_capture(write(tmp_path / f"a{ending}", fps=fps))
    assert frame_count(capture) == 5 and frame_rate(capture) == pytest.approx(fps, rel=0.02)
    frames = list(read_frames(capture, tmp_path / f"a{ending}"))
    assert [frame.name for frame in frames] == [f"a_{index:06d}" for index in range(5)]
    for index, frame in enumerate(frames):
        expected = picture(index)[..., ::-1].astype(int)
        assert frame.image.shape == (*SIZE, 3) and abs(frame.image - expected).mean() < 12
    assert [path.name for path in tmp_path.iterdir()] == [f"a{ending}"]


def test_one_frame_and_odd_sizes(tmp_path: Path) -> None:
    """Codecs need even sizes: a video of odd size is silently not written."""
    path = write(tmp_path / "a.webm", frames=1, height=65, width=97)
    assert [frame.image.shape for frame in read_frames(open_capture(path), path)] == [(64, 96, 3)]


def test_another_size_in_between(tmp_path: Path) -> None:
    """OpenCV silently drops a frame of another size."""
    video = VideoFile(tmp_path / "a.webm", 10)
    for index, size in enumerate([SIZE, (32, 96), (128, 192)]):
        video.write(picture(index, *size))
    video.close()
    frames = list(read_frames(open_capture(video.path), video.path))
    assert [frame.image.shape for frame in frames] == 3 * [(*SIZE, 3)]
    assert frames[1].image[:12].max() < 40 < frames[1].image[20:44].mean()
    assert letterbox(np.full((10, 1000, 3), 9, np.uint8), (20, 20)).any()


def test_the_name_is_taken_when_all_is_written(tmp_path: Path) -> None:
    """An earlier result destroyed by a run that fails."""
    path = tmp_path / "a.webm"
    path.write_text("earlier")
    video = VideoFile(path, 10)
    video.write(picture(0))
    assert path.read_text() == "earlier"
    video.discard()
    assert path.read_text() == "earlier" and [found.name for found in tmp_path.iterdir()] == ["a.webm"]
    VideoFile(path, 10).discard()  # nothing was written


@pytest.mark.parametrize("ending", [".webm", ".mp4", ".avi"])
def test_full_disk(ending: str, tmp_path: Path) -> None:
    """Half a video under the name of the whole: no library reports it."""
    video = VideoFile(tmp_path / f"a{ending}", 10)
    rng = np.random.default_rng(0)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, limits[1]))
        for _ in range(60):
            video.write(rng.integers(0, 256, (*SIZE, 3), np.uint8))
        with pytest.raises(UserError, match="not whole; free space"):
            video.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    video.discard()
    assert not list(tmp_path.iterdir())


def test_codec_that_the_machine_lacks(tmp_path: Path) -> None:
    """The writer does not open, every frame is lost, and the run succeeds."""
    with pytest.raises(UserError, match=r"cannot write \.webm with the codec ZZZZ; it writes \.webm"):
        VideoFile(tmp_path / "a.webm", 10, "ZZZZ")


@pytest.mark.parametrize(("content", "words"), [(b"", "an empty file"), (b"no video " * 50, "cannot be opened")])
def test_file_that_is_not_a_video(content: bytes, words: str, tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    """A reader that gives no frames and no reason, or the libraries' own messages around ours."""
    path = tmp_path / "a.mp4"
    path.write_bytes(content)
    with pytest.raises(UserError, match=words):
        open_capture(path)
    assert capfd.readouterr() == ("", "")


def test_what_another_thread_says_meanwhile_is_not_lost(capfd: pytest.CaptureFixture) -> None:
    """A message about a skipped frame that goes where the libraries' own go while a file is opened."""

    def say() -> None:
        with STDERR:
            os.write(2, b"skipped: frame 7")

    thread = threading.Thread(target=say)
    with quiet():
        os.write(2, b"noise")
        thread.start()
        thread.join(0.1)
    thread.join()
    assert capfd.readouterr().err == "skipped: frame 7"


def test_frames_that_cannot_be_decoded_are_named() -> None:
    """Damaged frames silently left out or taken for the end, or later frames with a wrong number."""
    items = list(read_frames(Script("++-+---++", 9), Path("a.mp4")))
    problems = [(index, item) for index, item in enumerate(items) if isinstance(item, Problem)]
    assert problems == [
        (2, Problem("a.mp4: frame 2 cannot be decoded", 1)),
        (4, Problem("a.mp4: frames 4 to 6 cannot be decoded", 3)),
    ]
    names = [item.name for item in items if isinstance(item, Frame)]
    assert names == [f"a_{index:06d}" for index in (0, 1, 3, 7, 8)]


def test_end_before_the_announced_one() -> None:
    """Half of a truncated video is predicted without a message."""
    *_, last = read_frames(Script("++-+", 20), Path("a.avi"))
    assert last == Problem("a.avi announces 20 frames, 3 could be decoded: it ends early or is damaged", 0)
    assert not [item for item in read_frames(Script("++", 0), Path("a.webm")) if isinstance(item, Problem)]


@pytest.mark.parametrize(("claimed", "used"), [(0, 25), (90_000, 25), (float("nan"), 25), (29.97, 29.97)])
def test_implausible_frame_rate(claimed: float, used: float) -> None:
    """A camera that claims 0 or 90,000 frames/s makes a video that cannot be watched."""
    assert frame_rate(Script("", claimed)) == used


def test_camera_that_is_unplugged() -> None:
    """An endless loop over a camera that gives no more frames."""
    *frames, last = read_frames(Script("++", -1), 3)
    assert [frame.name for frame in frames] == ["camera_3_000000", "camera_3_000001"]
    assert last == Problem("camera 3 gives no more frames", 0)
