"""What the files of a split hold, and what is wrong with them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from torch.utils.data import Dataset
from tqdm import tqdm

from frames.classes import Classes, LabelFormat
from frames.images import check_values, count_values, png_header, read_image, read_label_values
from frames.samples import Sample, same_size
from frames.workers import as_it_is, frame_loader, naming_dead_workers
from utils import UserError


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
        """Raises UserError if no class has a pixel, or only one in a split to train on.

        Args:
            extra: what --extra_data names, if this is a split of it: there one class is enough.
        """
        present = [self.classes.names[index] for index in np.flatnonzero(self.class_pixels)]
        if not present:
            found = ", ".join(f"{value} ({meaning})" for value, meaning, _ in self.rows()[:8])
            expected = " or ".join(labels.expected for labels in self.values)
            raise UserError(
                f"no pixel of the {self.split} split{f' of --extra_data {extra}' if extra else ''} belongs to a class: "
                f"the labels only hold {found}, expected {expected} with values of classes among them"
            )
        if len(present) == 1 and self.split == "train" and not extra:
            raise UserError(f"only {present[0]} has pixels in the train split; expected at least two classes")

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
    samples: Sequence[Sample], split: str, classes: Classes, workers: int, decode_images: bool, go_on: bool = False
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
        UserError: a file is missing, damaged, of a wrong kind or size, or a value has no meaning; unless `go_on`.
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

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[tuple[int, int] | None, np.ndarray | None, str]:
        try:
            return *self._check(self.samples[index]), ""
        except UserError as error:
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
