"""Reads a second report to compare with: names, counts of pixels and pictures; every score is computed anew."""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from frames.classes import Classes
from frames.samples import Sample
from utils import UserError, printable
from web.pictures import unpacked_length
from web.report_data import FORMAT, Frame

PREFIX = b"window.reportData = "
END = b";\n"
TEXTS = ("weights", "data", "split", "network", "command", "note", "date")


@dataclass(frozen=True)
class ComparedReport:
    """What is taken from another report.

    Attributes:
        about: what was scored, as in that report.
        frames: in the order of ours.
    """

    about: dict[str, str | int | None]
    frames: list[Frame]

    @classmethod
    def read(cls, folder: str | Path, classes: Classes, samples: Sequence[Sample]) -> ComparedReport:
        """Reads a report.

        Args:
            folder: of the report.
            classes: that it has to have.
            samples: the frames that it has to be of.

        Raises:
            UserError: it is no report, damaged, or of other classes or frames.
        """
        data = _load(Path(folder))
        try:
            _check_same(folder, data, classes, samples)
            about = {key: printable(str(data["about"][key])) for key in TEXTS}
            about["epoch"] = data["about"]["epoch"] if type(data["about"]["epoch"]) is int else None
            frames = [_read_frame(frame, len(classes)) for frame in data["frames"]]
        except (LookupError, TypeError, ValueError, AttributeError, OverflowError, zlib.error) as error:
            reason = printable(f"{type(error).__name__}: {error}")[:80]
            raise UserError(f"--compare {folder}: data.js is damaged ({reason}): write that report again") from None
        other = cls(about, frames)
        for index in range(len(frames)):
            for kind in ("prediction", "errors"):
                read_picture(folder, index, kind)
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


def read_picture(folder: str | Path, index: int, kind: str) -> bytes:
    """Reads a picture of another report.

    Raises:
        UserError: it is missing, or no WebP file.
    """
    path = Path(folder) / picture_name(index, kind)
    content = _content(folder, path)
    if content[:4] + content[8:12] != b"RIFFWEBP":
        raise UserError(f"--compare {folder}: {path.name} is no WebP picture: write that report again")
    return content


def _content(folder: str | Path, path: Path) -> bytes:
    """Returns the content of a file, empty if it is missing or no regular file."""
    try:
        return path.read_bytes() if path.is_file() else b""
    except OSError as error:
        raise UserError(f"--compare {folder}: {path.name} cannot be read ({error.strerror})") from None


def _load(folder: Path) -> dict:
    """Returns the data of a report, without executing the script that they are."""
    content = _content(folder, folder / "data.js")
    if not content.startswith(PREFIX) or not content.endswith(END):
        raise UserError(f"--compare {folder}: data.js is missing or truncated: name the folder of a report")
    try:
        data = json.loads(content[len(PREFIX) : -len(END)], parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        reason = printable(str(error))[:80]
        raise UserError(f"--compare {folder}: data.js is damaged ({reason}): write that report again") from None
    found = data.get("format") if isinstance(data, dict) else None
    if found != FORMAT:
        raise UserError(f"--compare {folder}: data.js has version {found!r:.40}, expected {FORMAT}: write it again")
    return data


def _no_number(text: str) -> None:
    raise ValueError(f"{text} is no JSON")


def _check_same(folder: str | Path, data: dict, classes: Classes, samples: Sequence[Sample]) -> None:
    """Raises UserError if a report is of other classes or frames than ours."""
    if difference := classes.first_difference(data["classes"]["names"]):
        index, ours, theirs = difference
        found = printable(str(theirs))[:80]
        raise UserError(
            f"--compare {folder}: class {index} is {found!r} there and {ours!r} here: compare equal classes"
        )
    frames = data["frames"]
    if len(frames) != len(samples):
        raise UserError(f"--compare {folder}: {len(frames)} frames there, {len(samples)} here: compare equal data")
    for index, (frame, sample) in enumerate(zip(frames, samples, strict=True)):
        found = str(frame["folder"]), str(frame["name"])
        if found != (printable(sample.folder), printable(sample.name)):
            there, here = (printable("/".join(filter(None, one)))[:80] for one in (found, (sample.folder, sample.name)))
            raise UserError(
                f"--compare {folder}: frame {index + 1} is {there!r} there and {here!r} here: compare equal data"
            )


def _read_frame(frame: dict, count: int) -> Frame:
    """Returns a frame from its plain values; raises ValueError or another if they make no sense."""
    size, shown = (tuple(map(int, frame[key])) for key in ("size", "shown"))
    confusion = np.array(frame["confusion"], np.int64).reshape(-1, 3)
    labels = base64.b64decode(frame["labels"], validate=True)
    if len(size) != 2 or len(shown) != 2:
        raise ValueError("a size has two sides")
    length = unpacked_length(shown)
    unpacked = zlib.decompressobj().decompress(labels, length + 1)  # of a bomb, no more than that
    if confusion.min(initial=0) < 0 or confusion[:, :2].max(initial=0) >= count:
        raise ValueError("confusion has other classes")
    if len(unpacked) != length:
        raise ValueError("labels do not fit the picture")
    return Frame(size, shown, confusion, labels)
