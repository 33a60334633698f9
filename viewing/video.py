"""Reading frames from video files and cameras, with a message for each that is lost, and writing video files."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from inference.predictor import check_size
from utils import UserError

# What pip's OpenCV can write: it has no H.264. Of these formats, only .webm plays in every browser.
CODECS = {".webm": "VP80", ".mkv": "VP80", ".mp4": "mp4v", ".mov": "mp4v", ".avi": "MJPG"}
_FAILED_READS = 1000  # in a row mean the end of a file: without a key frame, a decoder may fail for hundreds
_FAILED_CAMERA_READS = 5  # each of which may wait for ten seconds
STDERR = threading.Lock()  # held while stderr is redirected to nowhere: take it to print


class Frame(NamedTuple):
    """One image that was read."""

    name: str  # of its result
    image: np.ndarray  # (H, W, 3) uint8 RGB
    label: np.ndarray | None = None  # (H, W) uint8 train ids
    note: str = ""  # what was converted


class Problem(NamedTuple):
    """A message about frames that could not be read."""

    text: str
    frames: int = 1  # how many are skipped


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Hides what OpenCV and FFmpeg print on stderr while they open a file or device; the caller reports the error."""
    with STDERR, open(os.devnull, "w") as null:
        sys.stderr.flush()
        kept = os.dup(2)
        try:
            os.dup2(null.fileno(), 2)
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)


def open_capture(source: Path | int) -> cv2.VideoCapture:
    """Opens a video file, or a camera by its number; UserError if that fails."""
    with quiet():
        capture = cv2.VideoCapture(source if isinstance(source, int) else str(source))
    if capture.isOpened():
        return capture
    if isinstance(source, int):
        raise UserError(f"camera {source} cannot be opened; expected one that is plugged in and free, 0 for the first")
    state = "cannot be opened as a video" if source.stat().st_size else "is an empty file"
    raise UserError(
        f"{source} {state}: it is damaged, was cut off while written, may not be read by you, or needs a codec that "
        "this OpenCV lacks; play it elsewhere to find out, and convert it to .webm or .mp4"
    )


def frame_rate(capture: cv2.VideoCapture) -> float:
    """Returns the frames/s that a video or camera claims, 25 for an implausible value."""
    fps = capture.get(cv2.CAP_PROP_FPS)
    return fps if 1 <= fps <= 240 else 25.0


def frame_count(capture: cv2.VideoCapture) -> int | None:
    """Returns the number of frames that a video announces, None for a camera or if it announces none."""
    count = capture.get(cv2.CAP_PROP_FRAME_COUNT)
    return int(count) if 0 < count < 1e9 else None


def read_frames(capture: cv2.VideoCapture, source: Path | int) -> Iterator[Frame | Problem]:
    """Reads a video or camera to its end; UserError if the frames are smaller than the network can take."""
    is_camera = isinstance(source, int)
    title, stem = (f"camera {source}", f"camera_{source}") if is_camera else (str(source), source.stem)
    decoded = 0
    lost = 0
    failed = 0  # in a row, after the last decoded frame
    while failed < (_FAILED_CAMERA_READS if is_camera else _FAILED_READS):
        read, image = capture.read()  # a frame that the decoder repairs counts as read
        if not read:
            failed += 1
            continue
        if failed:
            first = decoded + lost
            lost += failed
            which = f"frame {first}" if failed == 1 else f"frames {first} to {decoded + lost - 1}"
            yield Problem(f"{title}: {which} cannot be decoded", failed)
            failed = 0
        check_size(image.shape[:2], f"a frame of {title}")
        yield Frame(f"{stem}_{decoded + lost:06d}", cv2.cvtColor(image, cv2.COLOR_BGR2RGB))
        decoded += 1
    count = frame_count(capture)
    if is_camera:
        yield Problem(f"{title} gives no more frames", 0)
    elif count and decoded + lost < count:
        state = f"announces {count} frames, {decoded} could be decoded: it ends early or is damaged"
        yield Problem(f"{title} {state}", 0)


class VideoFile:
    """A video file that has a temporary name until it is closed; UserError if OpenCV cannot write its format."""

    def __init__(self, path: Path, fps: float, codec: str | None = None):
        self.path = path
        self.fps = fps
        self.codec = codec or CODECS[path.suffix.lower()]
        self.aside = path.with_name(f".{path.stem}.{os.getpid()}.tmp{path.suffix}")
        self.writer: cv2.VideoWriter | None = None
        self.size = (0, 0)  # width, height
        self.frames = 0
        if not _can_write(path.suffix, self.codec):
            able = ", ".join(ending for ending, own in CODECS.items() if _can_write(ending, own)) or "no video at all"
            raise UserError(
                f"this machine's OpenCV cannot write {path.suffix} with the codec {self.codec}; it writes {able}: name "
                "such a file with --output and leave out --codec"
            )

    def write(self, picture: np.ndarray) -> None:
        """Appends an (H, W, 3) BGR uint8 picture; the first sets the size of the video, others are fitted into it."""
        # Codecs halve the resolution of color: both sizes have to be even.
        picture = picture[: picture.shape[0] // 2 * 2, : picture.shape[1] // 2 * 2]
        if self.writer is None:
            self.size = picture.shape[1::-1]
            with quiet():
                self.writer = cv2.VideoWriter(str(self.aside), cv2.VideoWriter.fourcc(*self.codec), self.fps, self.size)
            if not self.writer.isOpened():
                raise UserError(f"cannot write {self.path} at {self.size[1]}x{self.size[0]}; choose another --width")
        # OpenCV silently drops a picture of another size.
        self.writer.write(picture if picture.shape[1::-1] == self.size else letterbox(picture, self.size))
        self.frames += 1

    def __str__(self) -> str:
        return f"{self.path}, {self.size[1]}x{self.size[0]} at {self.fps:g} frames/s"

    def close(self) -> None:
        """Finishes the file and renames it; UserError if it is not complete."""
        self.writer.release()
        with quiet():
            # No library reports a full disk: read a frame near the end (containers round the number of the last one).
            written = cv2.VideoCapture(str(self.aside))
            written.set(cv2.CAP_PROP_POS_FRAMES, max(0, int(0.98 * self.frames) - 1))
            complete = written.grab() and (frame_count(written) or 0) >= int(0.98 * self.frames)
        if not complete:
            raise UserError(f"cannot write {self.path}: the file is not whole; free space or choose another folder")
        os.replace(self.aside, self.path)

    def discard(self) -> None:
        """Removes the temporary file, if there is one."""
        if self.writer is not None:
            self.writer.release()
        self.aside.unlink(missing_ok=True)


def _can_write(suffix: str, codec: str) -> bool:
    with tempfile.TemporaryDirectory() as folder, quiet():
        writer = cv2.VideoWriter(f"{folder}/probe{suffix}", cv2.VideoWriter.fourcc(*codec), 25.0, (64, 64))
        opened = writer.isOpened()
        writer.release()
    return opened


def letterbox(picture: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Returns a picture fitted into (width, height), centered on black."""
    h, w = picture.shape[:2]
    scale = min(size[0] / w, size[1] / h)
    h, w = max(1, round(scale * h)), max(1, round(scale * w))
    top, left = (size[1] - h) // 2, (size[0] - w) // 2
    small = cv2.resize(picture, (w, h), interpolation=cv2.INTER_LINEAR)
    return cv2.copyMakeBorder(small, top, size[1] - h - top, left, size[0] - w - left, cv2.BORDER_CONSTANT)
