"""Loader workers: frames that other processes read, their check before a run, and what is said when a process dies."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info
from tqdm import tqdm

from frames.cityscapes import Read, Sample, read_pair, same_size
from frames.classes import Classes, LabelFormat
from frames.images import DataError, check_values, count_values, png_header, read_image, read_label_values

# What PyTorch and the system say when workers find no room for a batch that they hand over.
_NO_SHARED_MEMORY = re.compile(r"shared memory|/torch_\d|No space left on device|Bus error|SemLock|sem_open")
_NO_FILES = re.compile(r"Too many open files|ancdata")


class ReadLog:
    """The frame that each loader worker is reading, so that it is known when the worker is dead.

    A data set with `samples` and a `log` of this class can be loaded by frame_loader.
    """

    MOST_WORKERS = 1024

    def __init__(self) -> None:
        self.slots: Tensor | None = None  # process id, and index of the frame or -1

    def share(self) -> None:
        """Makes room in shared memory, which only workers need."""
        if self.slots is None:
            self.slots = torch.full((self.MOST_WORKERS, 2), -1).share_memory_()

    @contextlib.contextmanager
    def reading(self, index: int) -> Iterator[None]:
        """Notes, in a loader worker, that a frame is being read."""
        worker = get_worker_info()
        if worker is None or self.slots is None:
            yield
            return
        slot = self.slots[worker.id % self.MOST_WORKERS]
        slot[0], slot[1] = os.getpid(), index
        yield
        slot[1] = -1

    def index(self, pid: int) -> int | None:
        """Returns the frame that a process was reading, or None if it was between two frames."""
        slots = [] if self.slots is None else self.slots.tolist()
        found = [index for slot_pid, index in slots if slot_pid == pid and index >= 0]
        return found[0] if found else None


def frame_loader(data: Dataset, workers: int, **options: object) -> DataLoader:
    """Returns a loader of a data set that has a ReadLog; iterate over it under naming_dead_workers.

    Raises:
        DataError: there is no shared memory for workers.
    """
    if workers:
        try:
            data.log.share()
        except (RuntimeError, OSError) as error:
            raise _without_shared_memory(error) from None
    return DataLoader(data, num_workers=workers, worker_init_fn=loader_worker, **options)


@contextlib.contextmanager
def naming_dead_workers(loader: DataLoader) -> Iterator[None]:
    """Turns the death of a loader worker, or its lack of shared memory, into an error that says what to do.

    The block is the whole loop: PyTorch raises the death from a signal handler, in the middle of whatever is done with
    a batch.

    Raises:
        DataError: a worker was killed (for memory, say) or crashed, and the frame that it was reading; or there was no
            room in shared memory, or for an open file.
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
            raise DataError(
                "the loader workers opened too many files: raise `ulimit -n`, or use fewer --workers"
            ) from None
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


def _without_shared_memory(error: Exception) -> DataError:
    try:
        system = os.statvfs("/dev/shm")
        size = f"has {system.f_blocks * system.f_frsize / 2**20:,.0f} MiB"
    except (OSError, AttributeError):
        size = "is not there"
    reason = (str(error).strip().splitlines() or [type(error).__name__])[-1][:120]
    return DataError(
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
        self.log = ReadLog()

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, int]:
        with self.log.reading(index):
            image, label = self.read(self.samples[index])
            return torch.from_numpy(image), torch.from_numpy(label), index


@dataclass
class Check:
    """What the files of a split hold.

    Attributes:
        split: name of the split.
        classes: of the data set.
        frames: number of frames.
        sizes: frames of each (height, width).
        values: (256,) int64 pixels of each value in the label files, for each format that they have.
        problems: of each kind the first, and how many frames have one; only if the check goes on after a problem.
    """

    split: str
    classes: Classes
    frames: int = 0
    sizes: Counter = field(default_factory=Counter)
    values: dict[LabelFormat, np.ndarray] = field(default_factory=dict)
    problems: dict[str, tuple[str, int]] = field(default_factory=dict)

    def add(self, other: Check) -> None:
        """Adds what another process found in its share of the frames."""
        self.frames += other.frames
        self.sizes += other.sizes
        for labels, counts in other.values.items():
            self.values[labels] = self.values.get(labels, 0) + counts
        for kind, (first, count) in other.problems.items():
            earlier = self.problems.get(kind, (first, 0))
            self.problems[kind] = earlier[0], earlier[1] + count

    @property
    def class_pixels(self) -> np.ndarray:
        """(K,) pixels of each class."""
        pixels = np.zeros(256, np.int64)
        for labels, counts in self.values.items():
            np.add.at(pixels, labels.table, counts)
        return pixels[: len(self.classes)]

    def refuse_unlabelled(self, extra: str = "") -> None:
        """Raises DataError if no class has a pixel, or only one in a split to train on.

        Args:
            extra: what --extra_data names, if this is a split of it: there one class is enough.
        """
        present = [self.classes.names[index] for index in np.flatnonzero(self.class_pixels)]
        if not present:
            found = ", ".join(f"{value} ({meaning})" for value, meaning, _ in self.rows()[:8])
            expected = " or ".join(labels.expected for labels in self.values)
            raise DataError(
                f"no pixel of the {self.split} split{f' of --extra_data {extra}' if extra else ''} belongs to a class: "
                f"the labels only hold {found}; expected {expected}, some of them those of classes"
            )
        if len(present) == 1 and self.split == "train" and not extra:
            raise DataError(f"only {present[0]} has pixels in the train split; expected at least two classes")

    def absent(self) -> str:
        """Returns a note that names the classes without a pixel, or an empty string."""
        names = [self.classes.names[index] for index in np.flatnonzero(self.class_pixels == 0)]
        return f"no pixel in the {self.split} split: {', '.join(names)}" if names else ""

    def rows(self) -> list[tuple[int, str, int]]:
        """Returns each value that occurs in the labels, what it means, and its pixels."""
        return [
            (int(value), labels.meaning(int(value), self.classes.names), int(counts[value]))
            for labels, counts in self.values.items()
            for value in np.flatnonzero(counts)
        ]

    def report(self) -> str:
        """Returns what was found as text."""
        sizes = ", ".join(f"{frames} of {h}x{w}" for (h, w), frames in self.sizes.most_common(5))
        more = f" and {len(self.sizes) - 5} other sizes" if len(self.sizes) > 5 else ""
        lines = [f"{self.split}: {self.frames} frames{', ' * bool(sizes)}{sizes}{more}"]
        for first, count in self.problems.values():
            lines.append(f"  problem of {count} frame(s), the first: {first}")
        if not self.values:
            return "\n".join([*lines, *(["  labels are not read"] if self.split == "test" else [])])
        total = sum(counts.sum() for counts in self.values.values())
        lines.append(f"  {'value':>5}  {'meaning':<24}{'pixels':>16}{'%':>8}")
        for value, meaning, pixels in self.rows():
            lines.append(f"  {value:>5}  {meaning:<24}{pixels:>16,}{100 * pixels / total:>8.2f}")
        pixels = self.class_pixels
        if any(len(labels.train_ids) != len(self.classes) + 1 for labels in self.values):  # values are not classes
            lines.append(f"  {'class':<31}{'pixels':>16}{'%':>8}{'written as':>12}")
            for index in np.flatnonzero(pixels):
                share = f"{pixels[index]:>16,}{100 * pixels[index] / total:>8.2f}"
                written = self.classes.labels.file_values[index]
                lines.append(f"  {self.classes.names[index]:<31}{share}{written:>12}")
        lines.append(f"  {100 * pixels.sum() / total:.2f} % of the pixels belong to a class")
        return "\n".join([*lines, *([f"  {self.absent()}"] if self.absent() else [])])


def check_frames(
    samples: Sequence[Sample],
    split: str,
    classes: Classes,
    workers: int,
    decode_images: bool,
    go_on: bool = False,
) -> Check:
    """Decodes every label, and every picture or else only its header if it is a PNG.

    Args:
        samples: the frames.
        split: its name, for the report.
        classes: of the data set.
        workers: loader processes.
        decode_images: see above.
        go_on: collect problems.

    Raises:
        DataError: a file is missing, damaged, of a wrong kind or size, or a value has no meaning; unless `go_on`.
    """
    loader = frame_loader(_Checked(samples, decode_images, go_on), workers, batch_size=None, collate_fn=as_it_is)
    check = Check(split, classes)
    with naming_dead_workers(loader):
        found = tqdm(loader, f"check {split}", leave=False, disable=None, unit="frame")
        for sample, (size, counts, problem) in zip(samples, found, strict=True):
            values = {} if counts is None else {sample.labels: counts}
            problems = {_kind(problem, sample): (problem, 1)} if problem else {}
            check.add(Check(split, classes, 1, Counter([size] if size else []), values, problems))
    return check


def _kind(problem: str, sample: Sample) -> str:
    """Returns a message without what differs from one frame to the next."""
    for path in filter(None, (sample.image, sample.label)):
        problem = problem.replace(str(path), "")
    return re.sub(r"\d+(, \d+)*", "", problem)


class _Checked(Dataset):
    """Frames that are checked: size, (256,) pixels of each value or None without a label, and a problem or ""."""

    def __init__(self, samples: Sequence[Sample], decode_images: bool, go_on: bool):
        self.samples = list(samples)
        self.go_on = go_on
        self.decode_images = decode_images
        self.log = ReadLog()

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[tuple[int, int] | None, np.ndarray | None, str]:
        with self.log.reading(index):
            try:
                return *self._check(self.samples[index]), ""
            except DataError as error:
                if not self.go_on:
                    raise
                return None, None, str(error)

    def _check(self, sample: Sample) -> tuple[tuple[int, int], np.ndarray | None]:
        header = png_header(sample.image, "picture")
        if self.decode_images or header is None or header[2] > 8:
            size = read_image(sample.image).shape[:2]
        else:
            size = header[:2]
        if sample.label is None:
            return size, None
        label = read_label_values(sample.label, sample.labels)
        same_size(sample, size, label.shape)
        counts = count_values(label)
        check_values(sample.label, np.flatnonzero(counts), sample.labels)
        return size, counts


def as_it_is(item: object) -> object:
    """Returns an item of a loader without batches unchanged; PyTorch would turn arrays into tensors."""
    return item
