"""Folders of data: what may be a file of it, and the one walk through a folder."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from frames.images import PICTURES, is_picture
from utils import UserError

RESULT = "_result.png"  # ending of the viewer's own pictures, which are not input


# What systems and cameras leave in folders of data; names with a dot at the beginning are left out too.
NOT_DATA = {
    "@eadir",
    "#recycle",
    "$recycle.bin",
    "__macosx",
    "lost+found",
    "system volume information",
    "thumbs.db",
    "desktop.ini",
}


def is_data(name: str) -> bool:
    """Returns whether a name inside a folder may be data: neither hidden nor left there by a system."""
    return not name.startswith(".") and name.lower() not in NOT_DATA


def files_below(folder: str | Path) -> Iterator[Path]:
    """Yields what lies below a folder and is not a folder, sorted; symbolic links are followed.

    A folder that is reached twice is read once, so that loops end. What is_data excludes is left out. A link that leads
    nowhere is yielded like a file.

    Raises:
        UserError: a folder cannot be read.
    """
    seen = set()
    folders = [Path(folder)]
    while folders:
        current = folders.pop()
        try:
            status = current.stat()
            entries = sorted(os.scandir(current), key=lambda entry: entry.name)
        except OSError as error:
            raise UserError(f"cannot read the folder {current} ({error.strerror}); check its permissions") from None
        if (status.st_dev, status.st_ino) in seen:
            continue
        seen.add((status.st_dev, status.st_ino))
        kept = [entry for entry in entries if is_data(entry.name)]
        # Not entry.is_dir(), which raises OSError for a link to itself.
        yield from (Path(entry.path) for entry in kept if not os.path.isdir(entry.path))
        folders += reversed([Path(entry.path) for entry in kept if os.path.isdir(entry.path)])


def find_pictures(folder: str | Path) -> tuple[list[Path], str]:
    """Returns the pictures below a folder in natural order, and a line about what else lies there.

    A picture is what OpenCV decodes or what is named like one. Results of the viewer and hidden files are none.

    Raises:
        UserError: a folder cannot be read.
    """
    return _choose(_below(Path(folder)))


def _below(folder: Path) -> Iterator[Path]:
    """Yields the files below a folder, and folders that are named like pictures but hold nothing."""
    yield from files_below(folder)
    for parent, folders, _ in os.walk(folder):
        folders[:] = filter(is_data, folders)
        named = (Path(parent, name) for name in folders if Path(name).suffix.lower() in PICTURES)
        yield from (path for path in named if not any(os.scandir(path)))


def _choose(paths: Iterable[Path]) -> tuple[list[Path], str]:
    chosen, others = [], Counter()
    for path in paths:
        ending = path.suffix.lower()
        if path.name.endswith(RESULT):
            others[RESULT] += 1
        elif ending in PICTURES or is_picture(path):
            chosen.append(path.absolute())
        elif not path.is_dir():
            others[ending or "without ending"] += 1
    # In natural order: frame 2 before frame 10.
    chosen.sort(key=lambda path: [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", str(path))])
    counted = ", ".join(f"{count:,} {ending}" for ending, count in sorted(others.items()))
    return chosen, counted and f"left out: {counted}"
