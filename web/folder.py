"""A folder that is made aside and exchanged by rename: whoever looks finds the whole old one or the whole new one."""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path

from utils import UserError, unfinished_path, writable_folder

# What systems leave in a folder that was looked at; it goes with the folder.
_LEFT_BY_SYSTEMS = {".ds_store", "desktop.ini", "thumbs.db"}


class FolderAside:
    """A folder in the making: `write` files, then `exchange` or `discard`. Nothing is written before the first `write`.

    Args:
        path: the folder to write; it may be missing, empty, or an earlier one of ours. Links are followed.
        foreign: returns the first file of an existing folder that is not ours, or None; such a folder is refused.
        flag: that names the folder, for messages.

    Raises:
        UserError: the folder is refused, is a file or a mount point, or its parent cannot be written to.
    """

    def __init__(self, path: str | Path, foreign: Callable[[Path], str | None], flag: str):
        self.path = Path(os.path.realpath(path))
        self.foreign, self.flag = foreign, flag
        self._refuse_foreign()
        if os.path.ismount(self.path):
            raise UserError(f"{flag} {path} is a mount point, which cannot be exchanged; name a folder inside it")
        writable_folder(self.path.parent)
        self.aside = unfinished_path(self.path)

    def _refuse_foreign(self) -> None:
        try:
            mode = os.stat(self.path).st_mode
            other = self.foreign(self.path) if stat.S_ISDIR(mode) and unknown_entries(self.path, set()) else None
        except FileNotFoundError:
            return
        except OSError as error:
            raise UserError(f"{self.flag} {self.path} cannot be used ({error.strerror}); name another folder") from None
        if not stat.S_ISDIR(mode):
            raise UserError(f"{self.flag} {self.path} is not a folder; name one")
        if other:
            raise UserError(
                f"{self.flag} {self.path} holds other files ({other}), which are not replaced; name a folder that is "
                "missing, empty, or an earlier report"
            )

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
                with contextlib.suppress(OSError):
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


def unknown_entries(folder: Path, known: set[str]) -> list[str]:
    """Returns the names in a folder that are not known, without what systems leave there, sorted."""
    return sorted(name for name in os.listdir(folder) if name not in known and name.lower() not in _LEFT_BY_SYSTEMS)
