"""Reading and writing video files."""

from __future__ import annotations

import os
import resource
import struct
import threading
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import refused
from makers import SIZE, places, write_as

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
        with refused(f"a{ending}"):
            video.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    video.discard()
    assert not list(tmp_path.iterdir())


def test_codec_that_the_machine_lacks(tmp_path: Path) -> None:
    """The writer does not open, every frame is lost, and the run succeeds."""
    with refused(".webm", "ZZZZ"):
        VideoFile(tmp_path / "a.webm", 10, "ZZZZ")


@pytest.mark.parametrize(("content", "words"), [(b"", ""), (b"no video " * 50, "")])
def test_file_that_is_not_a_video(content: bytes, words: str, tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    """A reader that gives no frames and no reason, or the libraries' own messages around ours."""
    path = tmp_path / "a.mp4"
    path.write_bytes(content)
    with refused(*words.split("|")):
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


def av1(path: Path) -> Path:
    """Writes an AV1 video of two frames; what is in an AVIF picture is one of them."""
    cv2.imwrite(str(path.with_suffix(".avif")), picture(0))
    data = path.with_suffix(".avif").read_bytes()
    frame = data[data.index(b"mdat") + 4 :]
    header = struct.pack("<4sHH4sHHIIII", b"DKIF", 0, 32, b"AV01", SIZE[1], SIZE[0], 25, 1, 2, 0)
    path.write_bytes(header + b"".join(struct.pack("<IQ", len(frame), index) + frame for index in range(2)))
    return path


def test_codec_that_opencv_lacks_is_named(tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    """A good file is called damaged, after lines of FFmpeg's own."""
    unknown = tmp_path / "b c.avi"
    unknown.write_bytes(write(tmp_path / "a.avi").read_bytes().replace(b"MJPG", b"ZZZZ"))
    for path, codec in ((unknown, "ZZZZ"), (av1(tmp_path / "a.ivf"), "AV1")):
        with pytest.raises(UserError, match=rf"this OpenCV has no decoder for its codec {codec}; convert it") as error:
            list(read_frames(open_capture(path), path))
    assert "ffmpeg -i a.ivf a_vp9.webm" in str(error.value)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("name", ["a.ts", "a.flv", "a.3gp", "a.m2ts", "a.vob", "nothing", "a.jpg"])
def test_any_ending_of_a_video(name: str, tmp_path: Path) -> None:
    """A camera's .ts or .flv is called a damaged picture."""
    path = tmp_path / name
    form = path.suffix if path.suffix in (".ts", ".flv", ".3gp", ".m2ts", ".vob") else ".mkv"
    made = write_as(
        tmp_path / f"made{form}", "mp4v" if form in (".3gp", ".mkv") else "mpg2" if form != ".flv" else "FLV1"
    )
    made.rename(path)
    assert places(path) == pytest.approx([8 * index + 8 for index in range(6)], abs=2)


@pytest.mark.parametrize(
    "content",
    [
        b"ffconcat version 1.0\nfile secret.avi\n",
        b"#EXTM3U\n#EXTINF:1,\nsecret.avi\n#EXT-X-ENDLIST\n",
        b"ID3\4\0\0\0\0\0\5" + bytes(5) + b"#EXTM3U\nsecret.avi\n",
        b"v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\nc=IN IP4 127.0.0.1\r\nm=video 5004 RTP/AVP 96\r\n",
        b"\xef\xbb\xbf<?xml version='1.0'?><MPD xmlns='urn:mpeg:dash:schema:mpd:2011'></MPD>",
    ],
)
def test_playlists_are_refused_unopened(content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file from elsewhere makes FFmpeg open other files or addresses."""
    monkeypatch.setattr(cv2, "VideoCapture", None)
    (tmp_path / "list.mp4").write_bytes(content)
    with refused("list.mp4"):
        open_capture(tmp_path / "list.mp4")


@pytest.mark.parametrize("name", ["rtsp:a.mkv", "data:a.mkv", "concat:a|b.mkv", "a_%03d.mkv", "a_%03d.png", "pipe:0"])
def test_a_name_is_no_address_and_no_pattern(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """FFmpeg asks a server, waits for stdin, or reads a_001.png in place of the file; in reading and in writing."""
    monkeypatch.chdir(tmp_path)
    for index in range(3):
        cv2.imwrite(f"a_{index:03d}.png", picture(index))
    write_as(Path("made.mkv"), "mp4v", 4).rename(name)
    assert len(places(Path(name))) == 4
    if name.endswith("mkv"):
        Path(name).unlink()
        assert write(Path(name)).stat().st_size > 500


def test_names_that_are_not_utf8_and_long_ones(tmp_path: Path) -> None:
    """OpenCV ends the process, or the temporary name is longer than the system allows."""
    for name in (os.fsdecode(b"\xff\xfe.webm"), "n" * 250 + ".webm"):
        path = write(tmp_path / name)
        assert len(list(read_frames(open_capture(path), path))) == 5
    folder = tmp_path / "out.webm"
    folder.mkdir()
    video = VideoFile(folder, 10)
    video.write(picture(0))
    with refused("out.webm"):
        video.close()


def test_closed_standard_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a stderr, no video can be opened."""
    monkeypatch.setattr("sys.stderr", None)
    path = write(tmp_path / "a.webm")
    assert len(list(read_frames(open_capture(path), path))) == 5
