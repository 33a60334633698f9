"""Another report, to compare with: a folder that somebody may have sent, so that nothing in it is taken on trust.

Only names, counts of pixels and pictures are taken from it; every score is computed anew.
"""

from __future__ import annotations

import base64
import json
import math
import os
import stat
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from frames.classes import IGNORE_INDEX, Classes
from frames.samples import Sample
from utils import UserError, printable
from web.pictures import MOST_PIXELS, unpacked_length
from web.report_data import FORMAT, MOST_EPOCH, MOST_TEXT, Frame

PREFIX = b"window.reportData = "
END = b";\n"
MOST_BYTES = 1 << 28  # of data.js: ten times what 5,000 frames take
MOST_PICTURE_BYTES = 1 << 25
_TEXTS = ("weights", "data", "split", "network", "command", "note", "date")


class _Refused(ValueError):
    """What is wrong with the other report; the message names neither it nor the flag."""


@dataclass(frozen=True)
class Other:
    """What is taken from another report.

    Attributes:
        about: what was scored, as in that report.
        frames: in the order of ours.
    """

    about: dict[str, str | int | None]
    frames: list[Frame]

    @classmethod
    def read(cls, folder: str | Path, classes: Classes, samples: Sequence[Sample]) -> Other:
        """Reads and checks a report.

        Args:
            folder: of the report.
            classes: that it has to have.
            samples: the frames that it has to be of.

        Raises:
            UserError: it is no report, damaged, or of other classes or frames.
        """
        try:
            data = _load(Path(folder) / "data.js")
            _check_classes(_take(data, "classes", dict), classes)
            frames = _take(data, "frames", list)
            _check_names(frames, samples)
            other = cls(_read_about(_take(data, "about", dict)), [_read_frame(frame, len(classes)) for frame in frames])
        except _Refused as error:
            raise UserError(f"--compare {folder}: {error}") from None
        for index, frame in enumerate(other.frames):
            for kind in ("prediction", "errors"):
                read_picture(folder, index, kind, frame.shown)
        return other

    def difference(self, frames: Sequence[Frame], count: int) -> str | None:
        """Returns in words what is different about our frames, with `count` classes; None if they are the same."""
        for index, (ours, theirs) in enumerate(zip(frames, self.frames, strict=True)):
            if tuple(ours.size) != tuple(theirs.size):
                here, there = (f"{h}x{w}" for h, w in (ours.size, theirs.size))
                return f"frame {index + 1} was scored at {there} there and at {here} here"
            if not np.array_equal(_truth(ours.confusion, count), _truth(theirs.confusion, count)):
                return f"frame {index + 1} has other labels there"
        return None


def _truth(confusion: np.ndarray, count: int) -> np.ndarray:
    """Returns (K,) the labelled pixels of each class."""
    return np.bincount(confusion[:, 0], weights=confusion[:, 2], minlength=count)


def picture_name(index: int, kind: str) -> str:
    """Returns the file of a picture in a report, which has no name that data gave."""
    return f"pictures/{index + 1:04d}_{kind}.webp"


def read_picture(folder: str | Path, index: int, kind: str, shown: tuple[int, int]) -> bytes:
    """Reads a lossless picture of another report.

    Raises:
        UserError: it is missing, no such picture, or not of this (height, width).
    """
    path = Path(folder) / picture_name(index, kind)
    try:
        content = _read_file(path, MOST_PICTURE_BYTES)
        # Source: the WebP lossless bitstream specification: a signature, then 14 bits each of width - 1 and height - 1.
        if len(content) < 25 or content[:4] + content[8:16] + content[20:21] != b"RIFFWEBPVP8L\x2f":
            raise _Refused(f"{path.name} is no lossless WebP picture")
        bits = int.from_bytes(content[21:25], "little")
        size = (bits >> 14 & 0x3FFF) + 1, (bits & 0x3FFF) + 1
        if size != shown:
            raise _Refused(f"{path.name} is {size[0]}x{size[1]}, expected {shown[0]}x{shown[1]}")
    except _Refused as error:
        raise UserError(f"--compare {folder}: {error}; write that report again") from None
    return content


def _read_file(path: Path, most: int) -> bytes:
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode) or status.st_size > most:
            raise _Refused(f"{path.name} is no regular file of at most {most / 1e6:.0f} MB")
        with open(path, "rb") as file:
            return file.read(status.st_size)
    except OSError as error:
        raise _Refused(f"{path.name} cannot be read ({error.strerror}); name the folder of a report") from None


def _load(path: Path) -> dict:
    """Returns the data of a report, without executing the script that they are."""
    content = _read_file(path, MOST_BYTES)
    if not content.startswith(PREFIX) or not content.endswith(END):
        raise _Refused("data.js is not that of a report, or truncated; name the folder of a report")
    try:
        data = json.loads(content[len(PREFIX) : -len(END)], parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        reason = printable(str(error))[:80]
        raise _Refused(f"data.js is damaged ({reason}); write that report again") from None
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise _Refused("data.js is of another version of this program; write that report again")
    return data


def _no_number(text: str) -> None:
    raise ValueError(f"{text} is no JSON")


def _take(entries: object, key: str, kind: type | tuple[type, ...]) -> object:
    """Returns an entry of a dict, of exactly this type or one of these."""
    value = entries.get(key) if isinstance(entries, dict) else None
    kinds = kind if isinstance(kind, tuple) else (kind,)
    if type(value) not in kinds or (isinstance(value, str) and key != "labels" and len(value) > MOST_TEXT):
        raise _Refused(f"data.js is damaged ({key!r} is not as expected); write that report again")
    return value


def _check_classes(found: dict, classes: Classes) -> None:
    if difference := classes.first_difference(_take(found, "names", list)):
        index, ours, theirs = difference
        raise _Refused(
            f"its class {index} is {printable(str(theirs))[:80]!r}, here {ours!r}; compare reports of the same classes"
        )


def _check_names(frames: list, samples: Sequence[Sample]) -> None:
    if len(frames) != len(samples):
        raise _Refused(f"it has {len(frames)} frames, here are {len(samples)}; compare reports of the same data")
    for index, (frame, sample) in enumerate(zip(frames, samples, strict=True)):
        found = _take(frame, "folder", str), _take(frame, "name", str)
        expected = printable(sample.folder), printable(sample.name)
        if found != expected:
            theirs, ours = (printable("/".join(filter(None, names)))[:80] for names in (found, expected))
            raise _Refused(f"its frame {index + 1} is {theirs!r}, here {ours!r}; compare reports of the same data")


def _read_about(entries: dict) -> dict[str, str | int | None]:
    about = {key: printable(_take(entries, key, str)) for key in _TEXTS}
    epoch = _take(entries, "epoch", (int, type(None)))
    return {**about, "epoch": None if epoch is None else max(0, min(epoch, MOST_EPOCH))}


def _read_frame(frame: dict, count: int) -> Frame:
    size = _size(frame, "size", (1 << 30, 1 << 30))
    shown = _size(frame, "shown", tuple(min(side, MOST_PIXELS) for side in size))  # no report enlarges
    values = _take(frame, "confusion", list)
    if len(values) % 3 or not all(type(value) is int and 0 <= value <= math.prod(size) for value in values):
        raise _Refused("data.js is damaged ('confusion' has no counts of pixels); write that report again")
    confusion = np.array(values, np.int64).reshape(-1, 3)
    twice = len(np.unique(confusion[:, :2], axis=0)) < len(confusion)
    if twice or confusion[:, :2].max(initial=0) >= count or sum(values[2::3]) > math.prod(size):
        raise _Refused("data.js is damaged ('confusion' has other classes or pixels); write that report again")
    labels = _read_labels(_take(frame, "labels", str), unpacked_length(shown), count)
    return Frame(size, shown, confusion, labels)


def _size(frame: dict, key: str, most: tuple[int, int]) -> tuple[int, int]:
    size = _take(frame, key, list)
    if len(size) != 2 or not all(type(side) is int and 1 <= side <= top for side, top in zip(size, most, strict=True)):
        raise _Refused(f"data.js is damaged ({key!r} is no size); write that report again")
    return tuple(size)


def _read_labels(text: str, length: int, count: int) -> bytes:
    """Returns packed labels, from base 64; of a bomb, no more than `length` bytes are unpacked."""
    try:
        packed = base64.b64decode(text, validate=True)
        unpacker = zlib.decompressobj()
        values = np.frombuffer(unpacker.decompress(packed, length + 1), np.uint8)
        whole = unpacker.eof and not unpacker.unused_data and values.size == length
    except (ValueError, zlib.error):
        whole = False
    if not whole or (values[values != IGNORE_INDEX] >= count).any():
        raise _Refused("data.js is damaged ('labels' do not fit the picture); write that report again")
    return packed
