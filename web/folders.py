"""Folders of pages, made aside and exchanged by rename: readers find the whole old one or the whole new one."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Collection, Iterator
from pathlib import Path

from utils import UserError, unfinished_path, writable_folder


def check_replaceable(folder: str | Path, flag: str, ours: Collection[str], marker: str) -> None:
    """Refuses to replace a folder that holds anything but an earlier version of what will be written there.

    Args:
        folder: may be missing or empty.
        flag: that names it, for the message.
        ours: the files that a version of it holds, by their paths inside it.
        marker: one of them, which every version has.

    Raises:
        UserError: names the first file that would be lost.
    """
    folder = Path(folder)
    if not os.path.lexists(folder):
        return
    if not folder.is_dir():
        raise UserError(f"{flag} is {folder}, which is no folder, as was expected; name another one")
    for current, folders, names in os.walk(folder, onerror=_cannot_read):
        for name in sorted([*names, *(name for name in folders if Path(current, name).is_symlink())]):
            found = Path(current, name).relative_to(folder).as_posix()
            if found not in ours or not (folder / marker).is_file():
                raise UserError(
                    f"{flag} is {folder}, which holds {found}: it would be replaced as a whole, and that is not ours; "
                    "move it away or name another folder"
                )


def _cannot_read(error: OSError) -> None:
    raise UserError(f"cannot read the folder {error.filename} ({error.strerror}); check its permissions") from None


@contextlib.contextmanager
def folder_aside(folder: str | Path) -> Iterator[Path]:
    """Makes an empty folder that takes the place of `folder` when the block is left.

    An exception in the block removes it and leaves an earlier one as it was.

    Yields:
        The empty folder, to be filled.

    Raises:
        UserError: the folder cannot be made or exchanged.
    """
    folder = Path(os.path.realpath(folder))  # of a link, what it leads to is exchanged
    writable_folder(folder.parent)
    aside, old = unfinished_path(folder), unfinished_path(folder, ".old")
    try:
        shutil.rmtree(aside, ignore_errors=True)  # of a killed process that had the same number
        writable_folder(aside)
        yield aside
        _exchange(aside, folder, old)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _exchange(aside: Path, folder: Path, old: Path) -> None:
    try:
        if folder.exists():
            os.replace(folder, old)
        try:
            os.replace(aside, folder)
        except OSError:
            if old.exists():
                os.replace(old, folder)
            raise
    except OSError as error:
        raise UserError(
            f"cannot write {folder} ({error.strerror}): name another folder; an earlier one is untouched"
        ) from None
    shutil.rmtree(old, ignore_errors=True)
