"""Reading frames from video files and cameras, with a message for each that is lost, and writing video files."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import struct
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import IO, NamedTuple

import cv2
import numpy as np

from frames.images import PICTURES
from utils import UserError
from viewing.files import codec_name, is_playlist, is_text, plain_codec

# What pip's OpenCV can write: it has no H.264. Of these formats, only .webm plays in every browser.
CODECS = {".webm": "VP80", ".mkv": "VP80", ".mp4": "mp4v", ".mov": "mp4v", ".avi": "MJPG"}
# Its own other readers take names for patterns of names.
FFMPEG = cv2.CAP_FFMPEG if cv2.videoio_registry.hasBackend(cv2.CAP_FFMPEG) else cv2.CAP_ANY
_DAMAGED = "cannot be decoded"
_INTERLACED = "cannot be shown by this OpenCV, since interlaced; convert the video, such as by "
_FAILED_READS = 1000  # in a row mean the end of a file: without a key frame, a decoder may fail for hundreds
_FAILED_CAMERA_READS = 5  # each may wait for ten seconds
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
def quiet() -> Iterator[list[str]]:
    """Hides what OpenCV and FFmpeg print on stderr; the caller reports the error.

    Yields a list, to which their lines are added in the end.
    """
    said: list[str] = []
    with STDERR, _scratch_file() as hidden:
        if sys.stderr is None:  # closed: its number may belong to any file
            yield said
            return
        sys.stderr.flush()
        kept = os.dup(2)
        try:
            os.dup2(hidden.fileno(), 2)
            yield said
        finally:
            os.dup2(kept, 2)
            os.close(kept)
            hidden.seek(0)
            said += hidden.read().decode(errors="replace").splitlines()


def _scratch_file() -> IO[bytes]:
    try:
        return tempfile.TemporaryFile()
    except OSError:  # no disk, or a full one: what is printed is lost
        return open(os.devnull, "w+b")


def open_capture(source: Path | int) -> cv2.VideoCapture:
    """Opens a video file, or a camera by its number; UserError if that fails."""
    if isinstance(source, int):
        with quiet():
            capture = cv2.VideoCapture(source)
        if capture.isOpened():
            return capture
        raise UserError(f"camera {source} cannot be opened; expected one that is plugged in and free, 0 for the first")
    if is_playlist(source):
        raise UserError(f"{source} is a playlist, which names other files or addresses: name one video file itself")
    said = []
    if not is_text(source):
        with plain_link(source) as link:
            capture, said = _open(link)
        if capture.isOpened():
            return capture
    if any("Could not find decoder" in line for line in said):
        raise UserError(_no_decoder(source, codec_name(source)))
    state = "cannot be opened as a video" if source.stat().st_size else "is an empty file"
    raise UserError(
        f"{source} {state}: it is damaged, was cut off while written, may not be read by you, or needs a codec that "
        "this OpenCV lacks; play it elsewhere to find out, and convert it to .webm or .mp4"
    )


def _open(name: Path | str, options: str = "") -> tuple[cv2.VideoCapture, list[str]]:
    """Opens a name on FFmpeg, which may open no address on its behalf; returns also what was printed."""
    variable = "OPENCV_FFMPEG_CAPTURE_OPTIONS"
    kept = os.environ.get(variable)
    with quiet() as said:
        os.environ[variable] = "|".join(filter(None, (kept, "protocol_whitelist;file", options)))
        try:
            capture = cv2.VideoCapture(os.fsencode(name), FFMPEG)
        finally:
            os.environ.pop(variable)
            if kept is not None:
                os.environ[variable] = kept
    return capture, said


@contextlib.contextmanager
def plain_link(path: Path) -> Iterator[Path]:
    """Yields another name of a file, which OpenCV takes for no address, pattern or picture, while it is opened."""
    ending = path.suffix if re.fullmatch(r"\.[A-Za-z0-9]{1,5}", path.suffix) else ""
    with contextlib.ExitStack() as stack:
        try:
            folder = stack.enter_context(tempfile.TemporaryDirectory())
            link = Path(folder, "video" + ("" if ending.lower() in PICTURES else ending))
            link.symlink_to(path.absolute())
        except (OSError, NotImplementedError):  # no disk; Windows asks for a privilege
            link = path.absolute()
        yield link


def _no_decoder(source: Path, codec: str) -> str:
    named = codec and f" {codec}"
    return f"{source}: this OpenCV has no decoder for its codec{named}; convert it, such as by {_command(source)}"


def _command(source: Path, flags: str = "") -> str:
    return f"ffmpeg -i {shlex.quote(source.name)} {flags}{shlex.quote(source.stem + '_vp9.webm')}"


def frame_rate(capture: cv2.VideoCapture) -> float:
    """Returns the frames/s that a video or camera claims, 25 for an implausible value."""
    fps = capture.get(cv2.CAP_PROP_FPS)
    return fps if 1 <= fps <= 240 else 25.0


def frame_count(capture: cv2.VideoCapture) -> int | None:
    """Returns the number of frames that a video announces, None for a camera or if it announces none."""
    count = capture.get(cv2.CAP_PROP_FRAME_COUNT)
    return int(count) if 0 < count < 1e9 else None


def _codec(capture: cv2.VideoCapture) -> str:
    return plain_codec(struct.pack("<i", int(capture.get(cv2.CAP_PROP_FOURCC))).decode(errors="replace"))


def read_frames(capture: cv2.VideoCapture, source: Path | int) -> Iterator[Frame | Problem]:
    """Reads a video or camera to its end; UserError if it has no frame, or smaller ones than the network can take."""
    is_camera = isinstance(source, int)
    title, stem = (f"camera {source}", f"camera_{source}") if is_camera else (str(source), source.stem)
    number = decoded = lost = 0
    reason = told = ""  # why the last `lost` frames are, and what was said of others
    for image in _camera_images(capture) if is_camera else _video_images(capture, source):
        if lost and (not isinstance(image, str) or image != reason):
            which = f"frame {number}" if lost == 1 else f"frames {number} to {number + lost - 1}"
            told = f"{title}: {which} {reason}"
            yield Problem(told, lost)
            number, lost = number + lost, 0
        if isinstance(image, str):
            lost, reason = lost + 1, image
            continue
        yield Frame(f"{stem}_{number:06d}", cv2.cvtColor(image, cv2.COLOR_BGR2RGB))
        number, decoded = number + 1, decoded + 1
    # The last ones are not lost: the video was at its end.
    if is_camera:
        if not decoded:
            raise UserError(f"{title} gives no frame; expected one that no other program uses")
        yield Problem(f"{title} gives no more frames", 0)
        return
    count = frame_count(capture)
    if not decoded:
        state = f"none of its {count or ''} frames can be decoded".replace("  ", " ")
        needed = f"it is damaged or needs more of its codec {_codec(capture)} than this OpenCV has"
        raise UserError(told or f"{title}: {state}: {needed}; convert it to .webm or .mp4")
    if count and number < count:
        state = f"announces {count} frames, {decoded} could be decoded: it ends early or is damaged"
        yield Problem(f"{title} {state}", 0)


def _camera_images(capture: cv2.VideoCapture) -> Iterator[np.ndarray | str]:
    failed = 0  # in a row
    while failed < _FAILED_CAMERA_READS:
        read, image = capture.read()
        failed = 0 if read else failed + 1
        yield image if read else _DAMAGED


def _video_images(capture: cv2.VideoCapture, source: Path) -> Iterator[np.ndarray | str]:
    """Yields every frame of a video, or the reason why it is lost.

    FFmpeg 8 refuses to convert frames that are marked as interlaced. OpenCV 5.0 does not look: it gives the content of
    the frame before, at first uninitialised memory. Such a video is opened again with a filter that deinterlaces.
    """
    decoded = failed = 0
    previous = None
    trusted = False
    while failed < _FAILED_READS:
        with contextlib.nullcontext([]) if decoded else quiet() as said:
            read, image = capture.read()  # a frame that the decoder repairs counts as read
        if not read:
            if not decoded and any("support hardware accelerated" in line for line in said):  # AV1
                raise UserError(_no_decoder(source, _codec(capture)))
            failed += 1
            yield _DAMAGED
            continue
        failed = 0
        if not trusted and (previous is None or _equal(image, previous)) and _refused(capture):
            filtered = _deinterlaced(capture, source, decoded)
            if filtered is None:
                previous = image
                yield _INTERLACED + _command(source, "-vf bwdif ")
                continue
            capture, trusted = filtered, True
            continue
        previous = image
        decoded += 1
        yield image


def _equal(image: np.ndarray, other: np.ndarray) -> bool:
    middle = len(image) // 2
    return np.array_equal(image[middle], other[middle]) and np.array_equal(image, other)


def _refused(capture: cv2.VideoCapture) -> bool:
    """Returns whether FFmpeg refuses to convert the frame that was decoded last."""
    with quiet() as said:
        capture.retrieve()
    return any("Cannot convert interlaced" in line for line in said)


def _deinterlaced(capture: cv2.VideoCapture, source: Path, skip: int) -> cv2.VideoCapture | None:
    """Opens a video again with a filter that deinterlaces the frames that need it, behind the first `skip` frames.

    None if this OpenCV has no filters.
    """
    turned = {90: ",transpose=clock", 180: ",hflip,vflip", 270: ",transpose=cclock"}  # which filters do not see
    with plain_link(source) as link:
        # Source: ffmpeg-filters, "Notes on filtergraph escaping": once for the option, once for the graph.
        name = re.sub(r"([\\'\[\],;])", r"\\\1", re.sub(r"([\\':])", r"\\\1", str(link)))
        graph = f"movie=filename={name},bwdif=mode=send_frame:deint=interlaced"
        angle = round(capture.get(cv2.CAP_PROP_ORIENTATION_META))
        filtered, _ = _open(graph + turned.get(angle, ""), "input_format;lavfi")
    return filtered if filtered.isOpened() and all(filtered.grab() for _ in range(skip)) else None


class VideoFile:
    """A video file that has a temporary name until it is closed; UserError if OpenCV cannot write its format."""

    def __init__(self, path: Path, fps: float, codec: str | None = None):
        self.path = path
        self.fps = fps
        self.codec = codec or CODECS[path.suffix.lower()]
        # Absolute, so that nothing in it looks like an address; short, so that any name that the system takes will do.
        self.aside = path.absolute().with_name(f".{os.getpid()}.tmp{path.suffix}")
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
                self.writer = _writer(self.aside, self.codec, self.fps, self.size)
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
            written = cv2.VideoCapture(os.fsencode(self.aside), FFMPEG)
            written.set(cv2.CAP_PROP_POS_FRAMES, max(0, int(0.98 * self.frames) - 1))
            complete = written.grab() and (frame_count(written) or 0) >= int(0.98 * self.frames)
        if not complete:
            raise UserError(f"cannot write {self.path}: the file is not whole; free space or choose another folder")
        try:
            os.replace(self.aside, self.path)
        except OSError as error:
            raise UserError(f"cannot write {self.path} ({error.strerror}); name another file with --output") from None

    def discard(self) -> None:
        """Removes the temporary file, if there is one."""
        if self.writer is not None:
            self.writer.release()
        self.aside.unlink(missing_ok=True)


def _writer(path: Path, codec: str, fps: float, size: tuple[int, int]) -> cv2.VideoWriter:
    return cv2.VideoWriter(os.fsencode(path), FFMPEG, cv2.VideoWriter.fourcc(*codec), fps, size)


def _can_write(suffix: str, codec: str) -> bool:
    with tempfile.TemporaryDirectory() as folder, quiet():
        writer = _writer(Path(folder, f"probe{suffix}"), codec, 25.0, (64, 64))
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
