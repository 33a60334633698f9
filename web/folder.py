"""A folder that is made aside and exchanged by rename: whoever looks finds the whole old one or the whole new one."""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path

from frames.folders import NOT_DATA
from utils import UserError, unfinished_path, writable_folder


class FolderAside:
    """A folder in the making: `make` or `write`, then `exchange`; as a context, it leaves nothing that is unfinished.

    Nothing is written before the first `write` or `make`.

    Attributes:
        path: the folder, with links followed.
        aside: the folder beside it that takes its place.

    Args:
        path: the folder to write; it may be missing, empty, or an earlier one of this kind. Links are followed.
        flag: that names it, for messages.
        kind: what it is, in a word, for messages.
        foreign: returns the first file of an existing folder that no folder of this kind has, or None.

    Raises:
        UserError: the folder holds foreign files, is a file, a mount point or the current folder, or its parent cannot
            be written to.
    """

    def __init__(self, path: str | Path, flag: str, kind: str, foreign: Callable[[Path], str | None]):
        self.path = Path(os.path.realpath(path))
        self.flag, self.kind, self.foreign = flag, kind, foreign
        self._refuse_foreign()
        # Whoever works in a folder that is exchanged goes on in the old one, which is removed.
        used = "a mount point" if os.path.ismount(self.path) else ""
        used = "the current folder" if Path.cwd().is_relative_to(self.path) else used
        if used:
            raise UserError(f"{flag} {path} is {used}, which cannot be exchanged; name a folder inside it")
        writable_folder(self.path.parent)
        self.aside = unfinished_path(self.path)
        self.discard()  # what a killed process of the same number left

    def __enter__(self) -> FolderAside:
        return self

    def __exit__(self, *error: object) -> None:
        self.discard()

    def _refuse_foreign(self) -> None:
        try:
            mode = os.stat(self.path).st_mode
            other = self.foreign(self.path) if stat.S_ISDIR(mode) else None
        except FileNotFoundError:
            return
        except OSError as error:
            raise UserError(f"{self.flag} {self.path} cannot be used ({error.strerror}); name another folder") from None
        if not stat.S_ISDIR(mode):
            raise UserError(f"{self.flag} {self.path} is not a folder; name one")
        if other:
            raise UserError(
                f"{self.flag} {self.path} holds other files ({other}), which are not replaced; name a folder that is "
                f"missing, empty, or an earlier {self.kind}"
            )

    def make(self) -> Path:
        """Makes the folder that is aside, to be filled, and returns it.

        Raises:
            UserError: it cannot be written to; the folder is untouched.
        """
        return writable_folder(self.aside)

    def write(self, name: str, data: bytes) -> None:
        """Writes a file, whose name may begin with folders, under the folder that is aside.

        Raises:
            UserError: it could not be written; the folder is untouched.
        """
        path = self.aside / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        except OSError as error:
            raise self._unwritten(error) from None

    def exchange(self) -> None:
        """Puts what was written in the place of the folder.

        Raises:
            UserError: it holds other files by now, or the system refuses; it is untouched.
        """
        self._refuse_foreign()
        old = unfinished_path(self.path, ".old")
        try:
            if self.path.exists():
                os.rename(self.path, old)
            try:
                os.rename(self.aside, self.path)
            except OSError:
                with contextlib.suppress(FileNotFoundError):  # there was none
                    os.rename(old, self.path)
                raise
        except OSError as error:
            raise self._unwritten(error) from None
        shutil.rmtree(old, ignore_errors=True)

    def _unwritten(self, error: OSError) -> UserError:
        kept = "; the earlier one is untouched" if self.path.exists() else ""
        return UserError(
            f"{self.flag} {self.path} cannot be written ({error.strerror}): free space there or name another folder"
            f"{kept}"
        )

    def discard(self) -> None:
        """Removes what was written and not exchanged."""
        shutil.rmtree(self.aside, ignore_errors=True)


def first_foreign(folder: Path, is_ours: Callable[[str], bool]) -> str | None:
    """Returns the first file or link below a folder that is not ours, hidden ones too; empty folders are no loss.

    Args:
        folder: to look in; links in it are not followed.
        is_ours: tells it of a path inside the folder, with slashes. What systems leave there is not asked about.

    Raises:
        OSError: a folder in it cannot be read.
    """

    def cannot_read(error: OSError) -> None:
        raise error

    for current, folders, names in os.walk(folder, onerror=cannot_read):
        folders.sort()
        links = [name for name in folders if Path(current, name).is_symlink()]
        for name in sorted([*links, *names]):
            path = Path(current, name).relative_to(folder).as_posix()
            if name.lower() not in {*NOT_DATA, ".ds_store"} and not is_ours(path):
                return path
    return None
