"""Run plumbing: errors and signals, devices, memory, files that survive a power cut.

It knows nothing of Fast-SCNN, Cityscapes or argparse.
"""

from __future__ import annotations

import contextlib
import copy
import ctypes
import errno
import io
import os
import pickle
import platform
import re
import select
import signal
import struct
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TextIO

import torch
from torch import Tensor, nn

# The codes of NumPy's dtypes, and struct's codes for the same.
_NUMBERS = {"b1": "?", "i1": "b", "i2": "h", "i4": "i", "i8": "q", "u1": "B", "u2": "H", "u4": "I", "u8": "Q"}
_NUMBERS |= {"f2": "e", "f4": "f", "f8": "d"}


class UserError(Exception):
    """A mistake that the user can fix; the message says what was found, what was expected and what to do."""


def run_cli(main: Callable[[], int | None]) -> None:
    """Runs a script's main and ends the process: a user's mistake is one line on stderr and exit status 2.

    A broken stdout never changes the exit status; see steady_streams. Ctrl-C and SIGTERM raise in main, so that
    cleanup runs.

    Args:
        main: returns the exit status; None means 0.
    """
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    with steady_streams():
        try:
            status = main()
        except UserError as error:
            print(f"error: {message_of(error)}", file=sys.stderr)
            status = 2
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            status = 128 + signal.SIGINT
    sys.exit(status)


def message_of(error: Exception) -> str:
    """Returns an error in one line; wrapped in a traceback by a DataLoader worker, it is what ends that."""
    text = str(error)
    if text.startswith("Caught "):
        text = text.rpartition(f"\n{type(error).__module__}.{type(error).__qualname__}: ")[2]
    return printable(text.strip()) or type(error).__name__


class StopSignal:
    """Ctrl-C and SIGTERM as a flag to be checked between two pieces of work: true once one of them came.

    An exception from a signal handler could interrupt a save, or a library that turns it into another one. A second
    signal ends the process at once.

    Attributes:
        number: number of the signal, 0 before it comes.
    """

    def __init__(self) -> None:
        self.number = 0

    def listen(self) -> None:
        """Handles both signals from now on."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._take)

    def _take(self, number: int, frame: object) -> None:
        if self.number:
            os._exit(128 + number)
        self.number = number

    def __bool__(self) -> bool:
        return self.number != 0

    @property
    def status(self) -> int:
        """The exit status by which a shell recognises a process that a signal ended."""
        return 128 + self.number


def choose_device(name: str = "auto") -> torch.device:
    """Returns the named device, or for "auto" the first of CUDA, MPS and CPU that this machine has.

    Raises:
        UserError: torch does not know the name, or the machine has no such device.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        if device.type not in ("cpu", "cuda", "mps"):
            raise RuntimeError("it cannot run a network")
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"--device {name} cannot be used ({reason}); expected auto, cpu, cuda, cuda:N or mps") from None
    return device


def cpu_has_bf16() -> bool:
    """Returns whether the processor has bf16 instructions; without them, bf16 is emulated, slower than float32."""
    if platform.machine().lower() in ("x86_64", "amd64"):
        return torch.cpu._is_avx512_bf16_supported()  # mkldnn's own answer is yes for any AVX-512
    return torch.ops.mkldnn._is_mkldnn_bf16_supported()


def keep_freed_memory() -> None:
    """Tells glibc, where it is used, to keep freed memory instead of returning it to the system page by page.

    On two cores, a step of 12 crops of 352x480 takes 0.7 s instead of 1.3 to 2.1, a prediction at 1024x2048 180 ms
    instead of 270.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt:
        mallopt(-4, 0)  # M_MMAP_MAX: no allocation gets a mapping of its own, which would be unmapped when freed
        mallopt(-1, -1)  # M_TRIM_THRESHOLD: the top of the heap is never returned
        mallopt(-8, 1)  # M_ARENA_MAX: threads share this heap; their own would be returned nevertheless


def writable_folder(folder: str | Path) -> Path:
    """Creates a folder if it is missing, and checks with a temporary file that it can be written to.

    Raises:
        UserError: it cannot be created or written to.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except (OSError, ValueError) as error:
        raise UserError(
            f"cannot write to {folder} ({_reason(error)}); name a folder that exists and is yours"
        ) from None
    return folder


def _reason(error: OSError | ValueError) -> str:
    """Returns why the system refuses a file; a ValueError is about characters that no name can have."""
    return getattr(error, "strerror", None) or str(error)


def unfinished_path(path: str | Path, ending: str = ".tmp") -> Path:
    """Returns a hidden name beside a file, for its content until that is whole, of this process alone.

    It begins as the file's own and is short enough for any file system that takes that.
    """
    path = Path(path)
    name = path.name.encode(errors="ignore")[:120].decode(errors="ignore")
    return path.with_name(f".{name}.{os.getpid()}{ending}")


def write_file(path: str | Path, data: bytes, durable: bool = False, previous: Path | None = None) -> None:
    """Writes a file under a temporary name and renames it: readers find the whole old content or the whole new one.

    Args:
        path: the file.
        data: its content.
        durable: wait for the disk, so that the rename cannot overtake the content in a power cut.
        previous: keep the previous file under this name.

    Raises:
        UserError: the file could not be written; the previous one is untouched.
    """
    path = Path(path)
    aside = unfinished_path(path)
    try:
        with open(aside, "wb") as file:
            file.write(data)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        if previous and os.path.isfile(path):
            os.replace(path, previous)
        os.replace(aside, path)
        if durable and os.name == "posix":
            folder = os.open(path.parent, os.O_RDONLY)  # which holds the names
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
    except (OSError, ValueError) as error:
        full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        advice = "free space there or choose another folder" if full else "choose another name or folder"
        kept = "; the previous file is untouched" if os.path.isfile(path) else ""
        raise UserError(f"cannot write {path} ({_reason(error)}): {advice}{kept}") from None
    finally:
        with contextlib.suppress(OSError, ValueError):
            aside.unlink(missing_ok=True)


@contextlib.contextmanager
def locked(folder: Path, wait: bool = False) -> Iterator[None]:
    """Keeps other processes that call this out of a folder during the block, by a file that is removed at the end.

    The lock is a POSIX record lock: the system releases it if this process is killed, also where loader workers live
    on, which would hold on a lock of flock. Without such locks (Windows, some network disks) nobody is kept out.

    Args:
        folder: that exists.
        wait: for the end of the other process, with a line on stderr; else it is refused.

    Raises:
        UserError: another process is writing there, or the lock cannot be made.
    """
    try:
        import fcntl
    except ImportError:
        yield
        return
    path, held = folder / ".lock", False
    with contextlib.ExitStack() as stack:
        while not held:
            try:
                file = stack.enter_context(open(path, "ab"))
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                held = os.path.samestat(os.fstat(file.fileno()), os.stat(path))  # or the other has just removed it
            except FileNotFoundError:
                continue
            except BlockingIOError:
                if not wait:
                    raise UserError(
                        f"another run is writing to {folder}: wait for its end or name another folder"
                    ) from None
                print(f"waiting for another process that writes to {folder}", file=sys.stderr, flush=True)
                fcntl.lockf(file, fcntl.LOCK_EX)
            except OSError as error:
                if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
                    raise UserError(f"cannot lock {path} ({error.strerror}): name another folder") from None
                print(f"note: {folder} takes no locks ({error.strerror}): let one run at a time write", file=sys.stderr)
                break
        stack.callback(path.unlink, missing_ok=True)
        yield


def name_refused(error: UserError) -> bool:
    """Returns whether write_file only failed because of the name: too long, or with characters not allowed."""
    return getattr(error.__context__, "errno", None) in (errno.ENAMETOOLONG, errno.EINVAL, errno.EILSEQ)


def file_key(path: str | Path | None) -> tuple[int, int] | None:
    """Returns what a file has in common with its links and other spellings of its name; None if there is no file."""
    try:
        status = os.stat(path or "")
    except (OSError, ValueError):
        return None
    return status.st_dev, status.st_ino


def refuse_input(path: str | Path, flag: str, inputs: Iterable[str | Path | None]) -> None:
    """Refuses to write a file that is read, under whatever name.

    Raises:
        UserError: the file is one of the inputs.
    """
    key = file_key(path)
    source = next((source for source in inputs if key and file_key(source) == key), None)
    if source:
        raise UserError(f"{flag} is {path}, which is the input {source}: name another file")


def save_checkpoint(path: str | Path, checkpoint: dict, previous: Path | None = None) -> None:
    """Saves tensors and plain Python values; a crash or a full disk leaves the previous file whole.

    Args:
        path: the file.
        checkpoint: what torch.save takes.
        previous: keep the previous file under this name.

    Raises:
        UserError: the file could not be written.
    """
    # Serialised in memory first: on a full disk torch.save raises a RuntimeError of its zip writer and leaves a partial
    # file, while a plain write fails with an errno that the message can give.
    buffer = io.BytesIO()
    torch.save(checkpoint, buffer)
    write_file(path, buffer.getbuffer(), durable=True, previous=previous)


def load_checkpoint(path: str | Path) -> dict:
    """Loads what torch.save wrote, onto the CPU, without executing code that the file may contain.

    Raises:
        UserError: the file is missing, truncated, not a checkpoint, or has more than tensors, plain values and NumPy's
            scalars.
    """
    if not os.path.isfile(path):
        advice = "it is a folder" if os.path.isdir(path) else "train first (train.py writes one) or name another file"
        raise UserError(f"no weight file at {path}; {advice}")
    try:
        with open(path, "rb") as file, warnings.catch_warnings():
            ours = file.read(2) in (b"PK", b"\x80\x02")  # what torch.save writes: a zip file, formerly a pickle
            file.seek(0)
            warnings.simplefilter("ignore")
            with torch.serialization.safe_globals(SAFE_GLOBALS):
                checkpoint = torch.load(file, map_location="cpu", weights_only=True) if ours else None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({_reason(error)}); check the file and its permissions") from None
    except Exception as error:  # a damaged file makes torch.load raise almost any
        objects = re.search(r"(?:GLOBAL|class) (\S+)", str(error))
        if isinstance(error, pickle.UnpicklingError) and objects:
            raise UserError(
                f"{path} holds Python objects besides tensors and plain values ({objects[1]}), which could execute "
                "code: not loaded; save only its state_dict(), from a source that you trust"
            ) from None
        reason = (str(error).splitlines() or [type(error).__name__])[0][:120]
        raise UserError(f"{path} cannot be read ({reason}): truncated or not a PyTorch file; get it again") from None
    if not ours:
        raise UserError(f"{path} is empty, damaged or not a PyTorch file; get it again")
    if not isinstance(checkpoint, dict):
        raise UserError(f"{path} holds a {type(checkpoint).__name__}, expected a checkpoint or a state dict")
    return checkpoint


def check_finite(path: str | Path, state: object, name: str = "") -> None:
    """Refuses tensors with values that single precision cannot hold, anywhere in what load_checkpoint returned.

    Args:
        path: the file, for the message.
        state: a tensor, a dict or list of such, or anything else.
        name: of the state in the file.

    Raises:
        UserError: names the first such tensor.
    """
    if isinstance(state, Tensor) and state.is_floating_point():
        # In pieces for which PyTorch starts no threads: loader workers are forked later, and it is as fast.
        bad = sum(int((~torch.isfinite(part.float())).sum()) for part in state.flatten().split(2**15))
        if bad:
            raise UserError(
                f"{path}: {bad} of {state.numel()} values of {name} are infinite or not a number; the training that "
                "wrote it diverged, or the file is damaged: take an earlier one"
            )
    elif isinstance(state, (dict, list, tuple)):
        for key, value in state.items() if isinstance(state, dict) else enumerate(state):
            check_finite(path, value, f"{name}.{key}" if name else str(key))


def count_parameters_and_macs(model: nn.Module, height: int, width: int) -> tuple[int, int]:
    """Returns the number of parameters and thop's multiply-adds (MACs) for one RGB image.

    thop also counts batch normalisation. It gets a copy, since it adds buffers that would reach the state dict.
    """
    from thop import profile

    copied = copy.deepcopy(model).cpu().eval()
    macs, _ = profile(copied, (torch.zeros(1, 3, height, width),), verbose=False)
    return sum(parameter.numel() for parameter in model.parameters()), int(macs)


class _Waiting(io.FileIO):
    """A file that waits for room where its descriptor does not."""

    def write(self, data: bytes | memoryview) -> int:
        while (written := super().write(data)) is None:
            select.select([], [self], [])
        return written


class _Steady(io.TextIOWrapper):
    """A text stream that drops what cannot be delivered: to a closed pipe, a full disk, a terminal that is gone."""

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError):
            super().write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            super().flush()


@contextlib.contextmanager
def steady_streams() -> Iterator[None]:
    """Within the block, nothing that is printed on stdout and stderr raises an error: the work is worth more.

    Characters that the stream's encoding lacks are escaped. Closed standard descriptors lead nowhere: otherwise the
    next file that is opened gets the number 1, and C libraries print into it.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # the lowest free number: this one
    with contextlib.redirect_stdout(_steady(sys.stdout)), contextlib.redirect_stderr(_steady(sys.stderr)):
        try:
            yield
        finally:
            sys.stdout.flush()
            sys.stderr.flush()


def _steady(stream: TextIO | None) -> TextIO:
    """Returns a stream to the same place that never fails; None, which a closed descriptor becomes, leads nowhere."""
    try:
        raw = _Waiting(stream.fileno() if stream else os.devnull, "w", closefd=not stream)
    except OSError:  # in memory, as in a test or a notebook
        return stream
    with contextlib.suppress(AttributeError, OSError):
        stream.flush()
    encoding = getattr(stream, "encoding", "utf-8")
    # Names of files that are not UTF-8 are copied as they came where the stream does so (the C locale).
    copied = encoding == "utf-8" and getattr(stream, "errors", "") == "surrogateescape"
    by_line = getattr(stream, "line_buffering", False) or getattr(stream, "write_through", False)
    errors = "surrogateescape" if copied else "backslashreplace"
    return _Steady(io.BufferedWriter(raw), encoding, errors=errors, line_buffering=by_line)


def printable(text: str) -> str:
    """Returns a text in one line, with an escape for what cannot be printed: line ends, bytes that are no UTF-8."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def quoted(value: object) -> str:
    """Returns a value from a file for a message: in one line, at most 80 characters."""
    text = printable(repr(value))
    return text if len(text) <= 80 else f"{text[:77]}..."


class _DType:
    """What `_scalar` needs of a numpy.dtype: its code, and the order of the bytes."""

    def __init__(self, code: str, align: bool = False, copy: bool = True):
        if code not in _NUMBERS and not re.fullmatch(r"[US][0-9]+", str(code)):
            # As weights_only names what it refuses.
            raise pickle.UnpicklingError(f"GLOBAL numpy.dtype[{str(code)[:20]}]")
        self.code = code
        self.order = "="

    def __setstate__(self, state: tuple) -> None:
        self.order = "<" if state[1] == "|" else state[1]


def _scalar(dtype: _DType, content: bytes) -> bool | int | float | str | bytes:
    if dtype.code in _NUMBERS:
        return struct.unpack(dtype.order + _NUMBERS[dtype.code], content)[0]
    if dtype.code[0] == "S":
        return content.rstrip(b"\0")
    return content.decode("utf-32-be" if dtype.order == ">" else "utf-32-le").rstrip("\0")


# What torch.serialization.safe_globals takes: NumPy 2's name of the function, NumPy 1's, and the dtype.
SAFE_GLOBALS = [
    (_scalar, "numpy._core.multiarray.scalar"),
    (_scalar, "numpy.core.multiarray.scalar"),
    (_DType, "numpy.dtype"),
]
