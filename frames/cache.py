"""A cache of decoded frames: memory-mapped images and train ids, so that no epoch decodes a PNG.

Each frame is one .npy file that is named by a hash of what it holds: path, size and modification time of picture and
label, and what the label's values mean. A frame of another state of the data is therefore not found, and is made again;
files of earlier states stay until the folder is removed. Files are written aside and renamed: a file that is there is
whole.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from torch.utils.data import Dataset
from tqdm import tqdm

from frames.folders import is_data
from frames.images import png_header, read_image
from frames.samples import Sample, read_pair
from frames.workers import as_it_is, frame_loader, naming_dead_workers
from utils import UserError, locked, writable_folder, write_file

_FILE = re.compile(r"[0-9a-f]{32}\.npy")


class Cache(NamedTuple):
    """Decoded frames in a folder; `read` replaces samples.read_pair, in loader workers too.

    Attributes:
        paths: the file of each frame.
    """

    paths: dict[Sample, Path]

    def read(self, sample: Sample) -> tuple[np.ndarray, np.ndarray]:
        """Returns (H, W, 3) RGB uint8 and (H, W) uint8 train ids, read from disk only where they are accessed.

        The arrays are private copies: writing to them changes no file.

        Raises:
            UserError: the frame is not in the cache.
        """
        try:
            path = self.paths[sample]
            rows = np.asarray(np.load(path, mmap_mode="c"))  # (4 * H, W): three quarters are the image
        except (KeyError, OSError, ValueError, EOFError) as error:
            raise UserError(f"the cache lacks {sample.image} ({error}): start again, and it is made") from None
        height, width = len(rows) // 4, rows.shape[1]
        return rows[: 3 * height].reshape(height, width, 3), rows[3 * height :]


def _name(sample: Sample) -> str:
    """Returns the name of a frame's file.

    Raises:
        UserError: picture or label cannot be read.
    """
    state: list[object] = [sample.labels.digest]
    for path in (sample.image, sample.label):
        try:
            status = os.stat(path) if path else None
        except OSError as error:
            raise UserError(f"cannot read {path} ({error.strerror}): get it again") from None
        state.append(status and (os.path.realpath(path), status.st_size, status.st_mtime_ns))
    return f"{hashlib.sha256(repr(state).encode()).hexdigest()[:32]}.npy"


def _is_whole(path: Path) -> bool:
    """Returns whether a file is there, as long as its header says."""
    try:
        np.load(path, mmap_mode="r")
    except (OSError, ValueError, EOFError):
        return False
    return True


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
        UserError: the disk is too small or cannot be written to, the folder holds something else, or a frame of the
            data set is damaged.
    """
    folder = Path(folder)
    cache = Cache({sample: folder / _name(sample) for sample in samples})
    if all(map(_is_whole, cache.paths.values())):
        return cache
    writable_folder(folder)
    if (folder / "index.json").exists():
        raise UserError(f"--cache {folder} is a cache of an earlier version: remove it, or name another folder")
    foreign = next((name for name in os.listdir(folder) if is_data(name) and not _FILE.fullmatch(name)), None)
    if foreign:
        raise UserError(f"--cache {folder} holds {foreign}, expected a cache: name a missing or empty folder")
    with locked(folder, wait=True):
        # Another process may have built it by now.
        missing = {sample: path for sample, path in cache.paths.items() if not _is_whole(path)}
        if not missing:
            return cache
        for left in folder.glob(".*.tmp"):
            left.unlink(missing_ok=True)
        needed = _needed_space(folder, list(missing), free)
        size = f"{needed / 2**30:.2f} GiB"
        print(f"cache {folder}: {len(missing)} of {len(cache.paths)} frames to decode, {size}", flush=True)
        loader = frame_loader(_Build(missing), workers, batch_size=None, collate_fn=as_it_is)
        with naming_dead_workers(loader):
            for _ in tqdm(loader, f"cache {folder}", disable=None, unit="frame", leave=False):
                pass
    return cache


class _Build(Dataset):
    """Frames to decode; an item is written when it is asked for."""

    def __init__(self, paths: dict[Sample, Path]):
        self.paths = list(paths.items())

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> int:
        sample, path = self.paths[index]
        image, label = read_pair(sample)
        content = io.BytesIO()
        np.save(content, np.concatenate([image.reshape(-1, label.shape[1]), label]))
        if _name(sample) != path.name:
            raise UserError(f"{sample.image} or its label changed while it was read: start again")
        write_file(path, content.getbuffer(), durable=True)
        return index


def _needed_space(folder: Path, samples: Sequence[Sample], free: int | None) -> int:
    """Returns the bytes that frames will take; UserError if the disk has no room for them."""
    needed = 0
    for sample in samples:
        header = png_header(sample.image, "picture")
        height, width = header[:2] if header else read_image(sample.image).shape[:2]
        needed += 4 * height * width
    free = shutil.disk_usage(folder).free if free is None else free
    if needed > free:
        raise UserError(
            f"--cache needs {needed / 2**30:.2f} GiB for {len(samples)} frames, found {free / 2**30:.2f} GiB free in "
            f"{folder}: free space there or name another folder"
        )
    return needed
