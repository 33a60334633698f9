"""Standard streams that cannot end a run, whatever they lead to."""

from __future__ import annotations

import codecs
import contextlib
import io
import os
import select
import sys
from collections.abc import Iterator
from typing import TextIO


class _Dropping(io.FileIO):
    """A file that drops what cannot be delivered: to a closed pipe, a full disk, a terminal that is gone."""

    def write(self, data: bytes | memoryview) -> int:
        rest = memoryview(data).cast("B")
        count = len(rest)
        try:
            while rest:
                written = super().write(rest)
                if written is None:  # it does not wait for room by itself
                    select.select([], [self], [])
                else:
                    rest = rest[written:]
        except OSError:
            pass
        return count


def _bytes_or_escapes(error: UnicodeEncodeError) -> tuple[bytes, int]:
    """Encodes bytes of file names as they came, and escapes every other character that an encoding lacks."""
    parts = [
        c.encode("ascii", "surrogateescape" if "\udc80" <= c <= "\udcff" else "backslashreplace")
        for c in error.object[error.start : error.end]
    ]
    return b"".join(parts), error.end


_BYTES_OR_ESCAPES = "bytes_or_escapes"
codecs.register_error(_BYTES_OR_ESCAPES, _bytes_or_escapes)


@contextlib.contextmanager
def steady_streams() -> Iterator[None]:
    """Within the block, what is printed on stdout and stderr never raises an error: the work is worth more.

    Output that cannot be delivered is dropped; characters that the stream's encoding lacks are escaped. Those of the
    file descriptors 0 to 2 that are closed lead nowhere from now on: a file of ours that got such a number would be
    what C libraries print into.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # the lowest free number: this one
    stdout, stderr = _steady(sys.stdout), _steady(sys.stderr)
    try:
        with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
            yield
    finally:
        for stream in (stdout, stderr):
            stream.flush()


def _steady(stream: TextIO | None) -> TextIO:
    """Returns a stream to the same place that never fails; None, which a closed descriptor becomes, leads nowhere."""
    try:
        raw = _Dropping(stream.fileno() if stream else os.devnull, "w", closefd=not stream)
    except OSError:  # in memory, as in a test or a notebook
        return stream
    with contextlib.suppress(AttributeError, OSError):
        stream.flush()
    unbuffered = getattr(stream, "write_through", False)
    return io.TextIOWrapper(
        raw if unbuffered else io.BufferedWriter(raw),
        encoding=getattr(stream, "encoding", "utf-8"),
        errors=_BYTES_OR_ESCAPES if getattr(stream, "errors", None) == "surrogateescape" else "backslashreplace",
        line_buffering=getattr(stream, "line_buffering", False),
        write_through=unbuffered,
    )


def printable(text: str) -> str:
    """Returns a text in one line, with an escape for what cannot be printed: line ends, bytes that are no UTF-8."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def quoted(value: object) -> str:
    """Returns a value from a file for a message: in one line, at most 80 characters."""
    text = printable(repr(value))
    return text if len(text) <= 80 else f"{text[:77]}..."
