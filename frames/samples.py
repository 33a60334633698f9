"""What a frame and a data set are, and reading a frame's picture and label.

Images are RGB uint8; labels are train ids in memory, in files what their LabelFormat says; sizes are (height, width).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from frames.classes import CITYSCAPES, IGNORE_INDEX, Classes, LabelFormat
from frames.images import png_header, read_image, read_label
from utils import UserError

SPLITS = ("train", "val", "test")


class Scales(NamedTuple):
    """Crop scales: one of a list, or any between the first and the last."""

    values: tuple[float, ...]
    continuous: bool

    @classmethod
    def parse(cls, text: str) -> Scales:
        """Reads "0.5,0.75,1" as a list and "0.5-2" as a range.

        Raises:
            ValueError: it is neither, or a scale is outside 0.1 to 10.
        """
        continuous = "-" in text
        values = tuple(float(part) for part in text.split("-" if continuous else ","))
        if (continuous and len(values) != 2) or list(values) != sorted(values):
            raise ValueError(f"{text!r} is not an ascending list or range")
        if not 0.1 <= values[0] <= values[-1] <= 10:
            raise ValueError(f"{text!r} has scales outside 0.1 to 10")
        return cls(values, continuous)

    def spread(self, count: int = 32) -> tuple[float, ...]:
        """Returns scales that represent all with equal weight: the list itself, or `count` of the range."""
        if not self.continuous:
            return self.values
        low, high = self.values
        return tuple(low + (high - low) * (index + 0.5) / count for index in range(count))

    def draw(self, rng: np.random.Generator) -> float:
        """Returns a random one of them."""
        return rng.uniform(*self.values) if self.continuous else self.values[rng.integers(len(self.values))]


class Sample(NamedTuple):
    """The files of one frame. `label` is None if there is none to read: always in the test split."""

    name: str  # in Cityscapes <city>_<sequence>_<frame>; only together with the folder it is unique
    image: Path
    label: Path | None
    labels: LabelFormat = CITYSCAPES.labels
    folder: str = ""  # in Cityscapes <city>
    scales: Scales | None = None  # of its training crops; None: --scales


@dataclass(frozen=True)
class DataSet:
    """Where the frames of a data set are found.

    Attributes:
        path: as the user named it.
        classes: of its labels.
        find: returns the frames of a split; raises UserError.
        splits: those that it has.
        pictures: the folder below which a picture of it may be named.
        sample: returns a picture with its label, if it has one, or without.
        described: by a YAML file; else it is a folder in Cityscapes layout.
    """

    path: str
    classes: Classes
    find: Callable[[str], list[Sample]]
    splits: tuple[str, ...]
    pictures: Path
    sample: Callable[[Path], Sample]
    described: bool = False


def read_pair(sample: Sample) -> tuple[np.ndarray, np.ndarray]:
    """Reads a frame and its label: (H, W, 3) RGB uint8 and (H, W) uint8 train ids, all ignored if there is no label.

    Raises:
        UserError: as read_image and read_label, or the two differ in size.
    """
    image = read_image(sample.image)
    if sample.label is None:
        return image, np.full(image.shape[:2], IGNORE_INDEX, np.uint8)
    label = read_label(sample.label, sample.labels)
    same_size(sample, image.shape[:2], label.shape)
    return image, label


def read_at_width(sample: Sample, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Reads a frame and its label as read_pair does, both resized to a width in pixels, in their proportions."""
    image, label = read_pair(sample)
    height = max(1, round(image.shape[0] * width / image.shape[1]))
    smooth = cv2.INTER_AREA if width < image.shape[1] else cv2.INTER_LINEAR
    resized = cv2.resize(label, (width, height), interpolation=cv2.INTER_NEAREST_EXACT)
    return cv2.resize(image, (width, height), interpolation=smooth), resized


def same_size(sample: Sample, image: tuple[int, int], label: tuple[int, int]) -> None:
    """Raises UserError if a frame and its label, whose sizes are given, differ in size."""
    if image != label:
        turned = ": if EXIF data turn the picture, turn its label too" if image == label[::-1] else ""
        raise UserError(
            f"{sample.image} is {image[0]}x{image[1]}, its label {sample.label} {label[0]}x{label[1]}; expected equal "
            f"sizes{turned}"
        )


def check_headers(samples: Sequence[Sample]) -> None:
    """Checks the heads and ends of PNG files for what would otherwise stop a run halfway.

    Raises:
        UserError: a PNG is empty, truncated or has the wrong depth, a label the wrong channels, or sizes differ.
    """
    for sample in samples:
        image = png_header(sample.image, "picture")
        if image and image[2] > 8:
            read_image(sample.image)  # raises
        label = png_header(sample.label, "label") if sample.label else None
        usual = ((8, 2), (8, 3), (8, 6)) if sample.labels.colors else ((8, 0),)
        if label and label[2:] not in usual:  # some others are read, the rest raises with the right message
            read_label(sample.label, sample.labels)
        if image and label and image[:2] != label[:2]:
            read_pair(sample)
    if samples:
        read_pair(samples[0])


# From a sample to (H, W, 3) uint8 RGB and (H, W) uint8 train ids: read_pair, or the read method of a cache.
Read = Callable[[Sample], tuple[np.ndarray, np.ndarray]]
