"""Video files and cameras: frames out of them, with what is lost named, and frames into a file."""

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

from utils import UserError

# What pip's OpenCV can write and at what cost; it has no H.264. Browsers play .webm, and of the others none for sure.
CODECS = {".webm": "VP80", ".mkv": "VP80", ".mp4": "mp4v", ".mov": "mp4v", ".avi": "MJPG"}
_FAILED_READS = 1000  # in a row: the end of a file, for a decoder that lost its key frame may fail for hundreds
_FAILED_CAMERA_READS = 5  # each of which may wait for ten seconds


STDERR = threading.Lock()  # held while stderr leads nowhere: take it to print a line that has to be read


class Frame(NamedTuple):
    """One picture that was read."""

    name: str  # that its result gets
    image: np.ndarray  # (H, W, 3) uint8 RGB
    label: np.ndarray | None = None  # (H, W) uint8 train ids
    note: str = ""  # what was converted


class Problem(NamedTuple):
    """What could not be read."""

    text: str
    frames: int = 1  # that are skipped for it


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Hides what OpenCV and FFmpeg print on stderr while a file or device is opened: the caller says it in a line."""
    with STDERR:
        sys.stderr.flush()
        kept, null = os.dup(2), os.open(os.devnull, os.O_WRONLY)
        try:
            os.dup2(null, 2)
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)
            os.close(null)


def open_capture(source: Path | int) -> cv2.VideoCapture:
    """Opens a video file, or the camera of a number.

    Raises:
        UserError: it cannot be opened.
    """
    with quiet():
        capture = cv2.VideoCapture(source if isinstance(source, int) else str(source))
    if capture.isOpened():
        return capture
    if isinstance(source, int):
        raise UserError(
            f"camera {source} cannot be opened; expected the number of one that is plugged in and that no other "
            "program uses, 0 for the first"
        )
    state = "is an empty file" if not source.stat().st_size else "cannot be opened as a video"
    raise UserError(
        f"{source} {state}: damaged, cut off while it was written, not readable for you, or of a codec that this "
        "OpenCV lacks; play it elsewhere to find out, and convert it to .webm or .mp4"
    )


def frame_rate(capture: cv2.VideoCapture) -> float | None:
    """Returns the frames/s that a video or camera claims, None where it claims nonsense."""
    fps = capture.get(cv2.CAP_PROP_FPS)
    return fps if 1 <= fps <= 240 else None


def frame_count(capture: cv2.VideoCapture) -> int | None:
    """Returns the number of frames that a video announces, None for a camera or where it announces none."""
    count = capture.get(cv2.CAP_PROP_FRAME_COUNT)
    return int(count) if 0 < count < 1e9 else None


def read_frames(capture: cv2.VideoCapture, source: Path | int) -> Iterator[Frame | Problem]:
    """Reads a video or camera to its end.

    A frame that the decoder patches up is not seen here; the decoder's own words about it reach stderr.
    """
    is_camera = isinstance(source, int)
    title, stem = (f"camera {source}", f"camera_{source}") if is_camera else (str(source), source.stem)
    number = failed = skipped = 0
    while failed < (_FAILED_CAMERA_READS if is_camera else _FAILED_READS):
        read, image = capture.read()
        if not read:
            failed += 1
            continue
        if failed:
            which = f"frame {number}" if failed == 1 else f"frames {number} to {number + failed - 1}"
            yield Problem(f"{title}: {which} cannot be decoded", failed)
            number, skipped, failed = number + failed, skipped + failed, 0
        yield Frame(f"{stem}_{number:06d}", cv2.cvtColor(image, cv2.COLOR_BGR2RGB))
        number += 1
    announced = frame_count(capture)
    if is_camera:
        yield Problem(f"{title} gives no more frames", 0)
    elif announced and number < announced:
        yield Problem(
            f"{title} announces {announced} frames, {number - skipped} could be decoded: it ends early or is damaged", 0
        )


class VideoFile:
    """A video that is written aside, and takes its name when it is closed.

    Args:
        path: its ending says the format.
        fps: frames/s.
        codec: four letters; None: the ending's own.

    Raises:
        UserError: this machine cannot write it.
    """

    def __init__(self, path: Path, fps: float, codec: str | None = None):
        self.path, self.fps, self.codec = path, fps, codec or CODECS[path.suffix.lower()]
        self.aside = path.with_name(f".{path.stem}.{os.getpid()}.tmp{path.suffix}")
        self.writer: cv2.VideoWriter | None = None
        self.size = (0, 0)  # width, height
        self.frames = 0
        if not _can_write(path.suffix, self.codec):
            able = [ending for ending, own in CODECS.items() if _can_write(ending, own)]
            raise UserError(
                f"this machine's OpenCV cannot write {path.suffix} with the codec {self.codec}; it writes "
                f"{', '.join(able) or 'no video at all'}: name such a file with --output and leave out --codec"
            )

    def write(self, name: str, picture: np.ndarray) -> None:
        """Appends an (H, W, 3) BGR uint8 picture; the first says the size, others are fitted into it."""
        if self.writer is None:
            # Codecs halve the resolution of color: the sizes have to be even.
            self.size = picture.shape[1] // 2 * 2, picture.shape[0] // 2 * 2
            with quiet():
                self.writer = cv2.VideoWriter(str(self.aside), cv2.VideoWriter.fourcc(*self.codec), self.fps, self.size)
            if not self.writer.isOpened():
                raise UserError(f"cannot write {self.path} at {self.size[1]}x{self.size[0]}; choose another --width")
        even = picture[: picture.shape[0] // 2 * 2, : picture.shape[1] // 2 * 2]
        # A picture of another size would be left out without a word.
        self.writer.write(even if even.shape[1::-1] == self.size else letterbox(even, self.size))
        self.frames += 1

    def __str__(self) -> str:
        return f"{self.path}, {self.size[1]}x{self.size[0]} at {self.fps:g} frames/s"

    def close(self) -> None:
        """Finishes the file and gives it its name.

        Raises:
            UserError: what lies on the disk is not what was written.
        """
        self.writer.release()
        with quiet():
            # A full disk is reported by nobody: ask for the last frame but a few, as its number may be rounded.
            written = cv2.VideoCapture(str(self.aside))
            written.set(cv2.CAP_PROP_POS_FRAMES, max(0, int(0.98 * self.frames) - 1))
            arrived = written.grab() and (frame_count(written) or 0) >= int(0.98 * self.frames)
        if not arrived:
            self.discard()
            raise UserError(
                f"cannot write {self.path}: the file is not whole; free space there or choose another folder"
            )
        os.replace(self.aside, self.path)

    def discard(self) -> None:
        """Removes what was written aside, if anything."""
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
    """Returns a picture fitted whole into a size, given as (width, height), with black around it."""
    scale = min(size[0] / picture.shape[1], size[1] / picture.shape[0])
    w, h = (max(1, min(limit, round(scale * length))) for limit, length in zip(size, picture.shape[1::-1], strict=True))
    canvas = np.zeros((size[1], size[0], 3), np.uint8)
    y, x = (size[1] - h) // 2, (size[0] - w) // 2
    canvas[y : y + h, x : x + w] = cv2.resize(picture, (w, h), interpolation=cv2.INTER_LINEAR)
    return canvas
