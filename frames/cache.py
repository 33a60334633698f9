"""A cache of decoded frames: memory-mapped images and train ids, so that no epoch decodes a PNG.

One file per frame, under the path of its picture: a header of one page, then the image, (H, W, 3) uint8 RGB, then
the label, (H, W) uint8 train ids. A frame is written aside and renamed, so that a file with a frame's name is whole;
the index lists the frames that were checked, and is written last.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import shutil
import sys
import zlib
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import numpy as np
from torch.utils.data import Dataset
from tqdm import tqdm

from frames.folders import is_data
from frames.images import png_header, read_image
from frames.samples import Sample, read_pair
from frames.workers import ReadLog, as_it_is, frame_loader, naming_dead_workers
from utils import UserError, writable_folder, write_file

VERSION = 2
INDEX = "index.json"
PAGE = 4096  # size of the header: images begin on a page of their own


class Entry(NamedTuple):
    """What the index holds about one frame.

    Attributes:
        source: size and modification time (ns) of image and label file, and LabelFormat.digest: they tell whether the
            cache shows the data set as it is now.
        shape: (height, width) of the frame.
        stored: size and modification time (ns) of the cache's own file.
    """

    source: list[int | str]
    shape: tuple[int, int]
    stored: tuple[int, int]


class Cache:
    """Frames that were decoded before; `read` replaces dataset.read_pair.

    It holds no open file, so that it can be sent to loader workers by fork or by pickle.
    """

    def __init__(self, folder: Path, frames: dict[str, Entry]):
        self.folder = folder
        self.frames = frames

    def read(self, sample: Sample) -> tuple[np.ndarray, np.ndarray]:
        """Returns (H, W, 3) RGB uint8 and (H, W) uint8 train ids, read from disk only where they are accessed.

        The arrays are private copies: writing to them changes no file.

        Raises:
            UserError: the frame is not in the cache, or its file is not as it was when the cache was opened.
        """
        name = _name(sample)
        if name not in self.frames:
            raise UserError(f"the cache {self.folder} does not hold {sample.image}; open it with this frame")
        frame, path = self.frames[name], self.folder / name
        try:
            with open(path, "rb") as file:
                # Accessing the map of a file that became shorter would end the process with SIGBUS.
                if _size_and_time(os.fstat(file.fileno())) != frame.stored:
                    raise UserError(f"{path} was changed while the cache was in use; start again to check it")
                mapped = mmap.mmap(file.fileno(), frame.stored[0], access=mmap.ACCESS_COPY)
        except OSError as error:
            raise UserError(f"cannot read {path} ({error.strerror}); start again to build it") from None
        return _split(np.frombuffer(mapped, np.uint8), frame.shape)


def open_cache(folder: str | Path, samples: Sequence[Sample], workers: int = 0, free: int | None = None) -> Cache:
    """Opens the cache of data sets, after decoding the frames that it lacks.

    Several splits may share a folder, and several processes may call this at once: one builds, the others wait. An
    interrupted build continues where it stopped.

    Args:
        folder: missing, empty, or a cache, of other data sets too.
        samples: the frames that the cache has to hold.
        workers: processes that decode; 0: this one.
        free: bytes that may be used; None: the free space of the disk.

    Raises:
        UserError: the disk is too small or cannot be written to, or the folder holds something else.
        UserError: the cache belongs to another state of the data set, or is damaged; or a frame of the data set is.
    """
    folder = Path(folder)
    by_name = _by_name(samples)
    frames = _load_index(folder)
    if not _unchecked(folder, by_name, frames):
        return Cache(folder, {name: frames[name] for name in by_name})
    writable_folder(folder)
    with _lock(folder):
        frames = _load_index(folder)  # by now another process may have built it
        todo = _unchecked(folder, by_name, frames)
        if todo:
            if not (folder / INDEX).exists():
                _save_index(folder, {})  # so that the folder is known as a cache, should the build be interrupted
            for left in folder.rglob(".*.tmp"):
                left.unlink()
            needed = _needed_space(folder, [by_name[name] for name in todo if not (folder / name).exists()], free)
            print(
                f"cache {folder}: {len(todo)} of {len(by_name)} frames to decode or check, {needed / 2**30:.2f} GiB to "
                "write, once",
                flush=True,
            )
            data = _Build(folder, [by_name[name] for name in todo], [name in frames for name in todo])
            loader = frame_loader(data, workers, batch_size=None, collate_fn=as_it_is)
            try:
                with naming_dead_workers(loader):
                    for name, frame in tqdm(loader, f"cache {folder}", disable=None, unit="frame", leave=False):
                        frames[name] = frame
            except KeyboardInterrupt:
                print(f"\ncache {folder} is unfinished; start again to continue it", file=sys.stderr)
                raise
            _save_index(folder, frames)
    return Cache(folder, {name: frames[name] for name in by_name})


def _by_name(samples: Sequence[Sample]) -> dict[str, Sample]:
    """Returns samples by the name of their file; a frame may be among them several times."""
    by_name: dict[str, Sample] = {}
    for sample in samples:
        first = by_name.setdefault(_name(sample), sample)
        if (sample.label, sample.labels.digest) != (first.label, first.labels.digest):
            raise UserError(
                f"two data sets read {sample.image} with other labels, {first.label} and {sample.label}, or other "
                "meanings of their values, and a cache holds one: leave out --cache, or one of the data sets"
            )
    return by_name


class _Build(Dataset):
    """Decodes and writes frames; an item is a frame's name and its entry for the index."""

    def __init__(self, folder: Path, samples: list[Sample], finished: list[bool]):
        self.folder = folder
        self.samples = samples
        self.finished = finished
        self.log = ReadLog()

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[str, Entry]:
        sample = self.samples[index]
        name = _name(sample)
        with self.log.reading(index):
            return name, self._frame(self.folder / name, sample, self.finished[index])

    def _frame(self, path: Path, sample: Sample, finished: bool) -> Entry:
        source = _source(sample)
        if path.exists():
            shape = _check_file(path, source)
            if shape:
                return Entry(source, shape, _size_and_time(path.stat()))
            if finished:  # a frame of an unfinished build is simply made again
                raise UserError(
                    f"{path} is truncated or damaged; remove it and start again: only this file is made again"
                )
        image, label = read_pair(sample)
        pixels = np.concatenate([image.ravel(), label.ravel()])
        if _source(sample) != source:
            raise UserError(f"{sample.image} or its label changed while it was read; start again")
        header = {"source": source, "shape": label.shape, "crc32": zlib.crc32(pixels)}
        path.parent.mkdir(parents=True, exist_ok=True)
        write_file(path, json.dumps(header).encode().ljust(PAGE) + pixels.tobytes(), durable=True)
        return Entry(source, label.shape, _size_and_time(path.stat()))


def _check_file(path: Path, source: list[int | str]) -> tuple[int, int] | None:
    """Returns the shape of the frame in a file, None if its source differs or it is not whole; reads every byte."""
    data = np.fromfile(path, np.uint8)
    try:
        header = json.loads(data[:PAGE].tobytes())
        shape, same = tuple(header["shape"]), header["source"] == source
        whole = same and data.size == _file_size(*shape) and zlib.crc32(data[PAGE:]) == header["crc32"]
    except (ValueError, KeyError, TypeError):
        return None
    return shape if whole else None


def _split(data: np.ndarray, shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    end = PAGE + 3 * shape[0] * shape[1]
    return data[PAGE:end].reshape(*shape, 3), data[end:].reshape(shape)


def _file_size(height: int, width: int) -> int:
    return PAGE + 4 * height * width


def _name(sample: Sample) -> str:
    """Returns the path of a frame's file inside the cache: that of the picture, of whatever data set it is."""
    picture = Path(os.path.realpath(sample.image.parent), f"{sample.image.name}.frame")
    return str(picture.relative_to(picture.anchor))


def _size_and_time(stat: os.stat_result) -> tuple[int, int]:
    return stat.st_size, stat.st_mtime_ns


def _source(sample: Sample) -> list[int | str]:
    """Returns size and modification time of both files, and what the label's values mean."""
    numbers: list[int | str] = []
    for path in (sample.image, sample.label):
        try:
            numbers += _size_and_time(path.stat()) if path else (0, 0)
        except OSError as error:
            raise UserError(f"cannot read {path} ({error.strerror})") from None
    return [*numbers, sample.labels.digest]


def _unchecked(folder: Path, by_name: dict[str, Sample], frames: dict[str, Entry]) -> list[str]:
    """Returns the frames that are not in the index, or whose file is missing or has changed."""
    found = []
    for name, sample in by_name.items():
        try:
            stored = _size_and_time((folder / name).stat()) if name in frames else None
        except FileNotFoundError:
            stored = None
        if stored:
            _check_source(sample, frames[name].source, folder / name)
        if not stored or stored != frames[name].stored:
            found.append(name)
    return found


def _check_source(sample: Sample, then: list[int | str], stored: Path) -> None:
    """Compares the files of a frame with their state when it was stored."""
    now, again = _source(sample), f"remove {stored}, or the whole cache, to have it made again"
    if now[4] != then[4]:
        raise UserError(
            f"{stored} was made when the values of labels had another meaning, or from labels of another kind than "
            f"{sample.label}; {again}"
        )
    for path, start in ((sample.image, 0), (sample.label, 2)):
        if now[start : start + 2] != then[start : start + 2]:
            found, expected = (_describe(*source[start : start + 2]) for source in (now, then))
            raise UserError(f"{path} has changed since it was cached: found {found}, expected {expected}; {again}")


def _describe(size: int, time_ns: int) -> str:
    return f"{size:,} bytes of {datetime.fromtimestamp(time_ns / 1e9, UTC):%Y-%m-%d %H:%M:%S.%f} UTC"


def _load_index(folder: Path) -> dict[str, Entry]:
    """Returns the entries of a cache, none if there is no cache yet."""
    path = folder / INDEX
    try:
        index = json.loads(path.read_bytes())
        version = index["version"]
        rows = index["frames"].items()
        frames = {name: Entry(source, tuple(shape), tuple(stored)) for name, (source, shape, stored) in rows}
    except FileNotFoundError:
        if folder.is_dir() and any(is_data(found.name) for found in folder.iterdir()):
            raise UserError(f"{folder} holds files but no cache; name a missing or an empty folder") from None
        return {}
    except OSError as error:
        raise UserError(f"cannot read {path} ({error.strerror}); name another folder") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"{path} is damaged; remove {folder} to have it made again") from None
    if version != VERSION:
        raise UserError(
            f"{folder} is a cache of version {version}, expected {VERSION}; remove it or name another folder"
        )
    return frames


def _save_index(folder: Path, frames: dict[str, Entry]) -> None:
    index = {"version": VERSION, "frames": frames}
    write_file(folder / INDEX, json.dumps(index).encode(), durable=True)


def _needed_space(folder: Path, samples: Sequence[Sample], free: int | None) -> int:
    """Returns the bytes that frames will take, if the disk has room for them."""
    needed = sum(_file_size(*_frame_shape(sample)) for sample in samples)
    free = shutil.disk_usage(folder).free if free is None else free
    if needed > free:
        raise UserError(
            f"the cache needs {needed / 2**30:.2f} GiB for {len(samples)} frames, and {folder} has {free / 2**30:.2f} "
            "GiB free; free space there or name another folder"
        )
    return needed


def _frame_shape(sample: Sample) -> tuple[int, int]:
    header = png_header(sample.image, "picture")
    return header[:2] if header else read_image(sample.image).shape[:2]


@contextlib.contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """Lets one process build at a time; the system releases the lock if that process is killed."""
    try:
        import fcntl
    except ImportError:
        raise UserError("--cache needs file locks (fcntl), which this system lacks: leave it out") from None
    with open(folder / ".lock", "wb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"waiting for another process to build {folder}", file=sys.stderr, flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
