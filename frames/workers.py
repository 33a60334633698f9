"""Loader workers: frames that other processes read, and what is said when a process dies."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import time
import traceback
from collections.abc import Iterator, Sequence

import cv2
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from frames.samples import Read, Sample, read_pair
from utils import UserError

# What PyTorch and the system say when workers find no room for a batch that they hand over.
_NO_SHARED_MEMORY = re.compile(r"shared memory|/torch_\d|No space left on device|Bus error|SemLock|sem_open")
_NO_FILES = re.compile(r"Too many open files|ancdata")


def frame_loader(data: Dataset, workers: int, **options: object) -> DataLoader:
    """Returns a loader of frames; iterate over it under naming_dead_workers."""
    return DataLoader(data, num_workers=workers, worker_init_fn=loader_worker, **options)


@contextlib.contextmanager
def naming_dead_workers(loader: DataLoader) -> Iterator[None]:
    """Turns the death of a loader worker, or its lack of shared memory, into an error that says what to do.

    The block is the whole loop: PyTorch raises the death from a signal handler, in the middle of whatever is done with
    a batch.

    Raises:
        UserError: a worker was killed (for memory, say) or crashed; or there was no room in shared memory, or for an
            open file.
    """
    try:
        yield
    except (RuntimeError, OSError, EOFError) as error:
        if isinstance(error, (ConnectionError, EOFError)):  # a worker died while it handed over a batch
            error = _reported_death() or error
        # The message of the cause, where there is one, knows the signal or the exit status.
        chain = [one for one in (error.__cause__, error.__context__, error) if one is not None]
        text = "\n".join(str(one) for one in chain)
        if loader.num_workers and _NO_SHARED_MEMORY.search(text):
            raise _without_shared_memory(error) from None
        if loader.num_workers and _NO_FILES.search(text):
            raise UserError(
                "the loader workers opened too many files: raise `ulimit -n`, or use fewer --workers"
            ) from None
        found = re.search(r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\) (?:is )?([^.\n]*)", text)
        if not found:
            raise
        for one in chain:  # ends the other workers now: later, theirs would be a death in the middle of anything
            traceback.clear_frames(one.__traceback__)
        raise UserError(
            f"loader worker {found[1]} died ({found[2].strip()}): if memory ran out, use fewer --workers; else "
            "train.py --check on half of the data finds a file that a decoder cannot bear"
        ) from None


def _reported_death() -> RuntimeError | None:
    """Waits for the error that PyTorch raises from its signal handler, after the connection to a worker was lost."""
    try:
        time.sleep(1)
    except RuntimeError as error:
        return error


def _without_shared_memory(error: Exception) -> UserError:
    try:
        system = os.statvfs("/dev/shm")
        size = f"has {system.f_blocks * system.f_frsize / 2**20:,.0f} MiB"
    except (OSError, AttributeError):
        size = "is not there"
    reason = (str(error).strip().splitlines() or [type(error).__name__])[-1][:120]
    return UserError(
        f"no room in shared memory for the loader workers ({reason}): /dev/shm {size}; give a container more "
        "(docker run --shm-size=2g), use fewer --workers, or --workers 0, which needs none"
    )


def loader_worker(worker_id: int) -> None:
    """Sets up a loader worker: one thread, and Ctrl-C is left to the main process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    cv2.setNumThreads(0)


class FrameSet(Dataset):
    """Whole frames for validation and prediction: (H, W, 3) uint8 RGB, (H, W) uint8 train ids, and the index."""

    def __init__(self, samples: Sequence[Sample], read: Read = read_pair):
        self.samples = list(samples)
        self.read = read

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, int]:
        image, label = self.read(self.samples[index])
        return torch.from_numpy(image), torch.from_numpy(label), index


def as_it_is(item: object) -> object:
    """Returns an item of a loader without batches unchanged; PyTorch would turn arrays into tensors."""
    return item
