"""Loader workers: whole frames read in other processes, and the frame at which such a process died."""

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
from torch.utils.data import DataLoader, Dataset, get_worker_info

from dataset import DataError, Read, Sample, read_pair


class ReadLog:
    """The frame that each loader worker is reading, in shared memory, so that it is known when the worker is dead.

    A data set with `samples` and a `log` of this class can be iterated over under `naming_dead_workers`.
    """

    MOST_WORKERS = 1024

    def __init__(self) -> None:
        self.slots = torch.full((self.MOST_WORKERS, 2), -1).share_memory_()  # process id, index of the frame or -1

    @contextlib.contextmanager
    def reading(self, index: int) -> Iterator[None]:
        """Notes, in a loader worker, that a frame is being read."""
        worker = get_worker_info()
        if worker is None:
            yield
            return
        slot = self.slots[worker.id % self.MOST_WORKERS]
        slot[0], slot[1] = os.getpid(), index
        yield
        slot[1] = -1

    def index(self, pid: int) -> int | None:
        """Returns the frame that a process was reading, or None if it was between two frames."""
        found = [index for slot_pid, index in self.slots.tolist() if slot_pid == pid and index >= 0]
        return found[0] if found else None


@contextlib.contextmanager
def naming_dead_workers(loader: DataLoader) -> Iterator[None]:
    """Turns the death of a loader worker into an error that names the frame that it was reading.

    The block is the whole loop: PyTorch raises the death from a signal handler, in the middle of whatever is done with
    a batch.

    Raises:
        DataError: a worker was killed (for memory, say) or crashed.
    """
    try:
        yield
    except (RuntimeError, ConnectionError, EOFError) as error:
        if not isinstance(error, RuntimeError):  # a worker died while it handed over a batch
            error = _reported_death() or error
        # The message of the cause, where there is one, knows the signal or the exit status.
        chain = [one for one in (error.__cause__, error.__context__, error) if one is not None]
        text = "\n".join(str(one) for one in chain)
        found = re.search(r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\) (?:is )?([^.\n]*)", text)
        if not found:
            raise
        for one in chain:  # ends the other workers now: later, theirs would be a death in the middle of anything
            traceback.clear_frames(one.__traceback__)
        data, pids = loader.dataset, [int(pid) for pid in found[1].split(",")]
        samples = [data.samples[index] for index in map(data.log.index, pids) if index is not None]
        files = " and ".join(" or ".join(str(path) for path in (s.image, s.label) if path) for s in samples)
        where = f"while reading {files}; look at that file" if files else "between two frames"
        raise DataError(
            f"loader worker {found[1]} died ({found[2].strip()}) {where}; if memory ran out, use fewer --workers"
        ) from None


def _reported_death() -> RuntimeError | None:
    """Waits for the error that PyTorch raises from its signal handler, after the connection to a worker was lost."""
    try:
        time.sleep(1)
    except RuntimeError as error:
        return error


class FrameSet(Dataset):
    """Whole frames for validation and prediction: (H, W, 3) uint8 RGB, (H, W) uint8 train ids, and the index."""

    def __init__(self, samples: Sequence[Sample], read: Read = read_pair):
        self.samples = list(samples)
        self.read = read
        self.log = ReadLog()

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, int]:
        with self.log.reading(index):
            image, label = self.read(self.samples[index])
            return torch.from_numpy(image), torch.from_numpy(label), index


def loader_worker(worker_id: int) -> None:
    """Sets up a loader worker: one thread, and Ctrl-C is left to the main process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    cv2.setNumThreads(0)
