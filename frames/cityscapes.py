"""Frames on disk: where pictures and labels lie, and reading both.

Images are RGB uint8; labels are train ids in memory, in files what their LabelFormat says; sizes are (height, width).
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from frames.classes import CITYSCAPES, CITYSCAPES_TRAIN_IDS, IGNORE_INDEX, Classes, LabelFormat
from frames.images import IMAGE_ENDINGS, DataError, png_header, read_image, read_label
from utils import is_data

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
        """Returns scales that stand for all, each with the same weight: those of the list, or `count` of the range."""
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
    scales: Scales | None = None  # of its training crops; None: those of --scales


@dataclass(frozen=True)
class DataSet:
    """Where the frames of a data set are found.

    Attributes:
        path: as the user named it.
        classes: of its labels.
        find: returns the frames of a split; raises DataError.
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


def default_data_path() -> str:
    """Returns the default of --data_path: $CITYSCAPES_DATASET, else the original repository's default."""
    return os.environ.get("CITYSCAPES_DATASET", "/home/data/cityscapes")


def cityscapes_folder(data_path: str | Path) -> DataSet:
    """Returns the data set in a folder in Cityscapes layout."""
    splits = ("train", "val", *(["test"] if (Path(data_path) / "leftImg8bit" / "test").is_dir() else []))
    find = functools.partial(find_samples, data_path)
    return DataSet(str(data_path), CITYSCAPES, find, splits, Path(data_path) / "leftImg8bit", find_sample)


def find_samples(data_path: str | Path, split: str) -> list[Sample]:
    """Finds and pairs the frames of a split in the Cityscapes layout, sorted by name.

    Labels are labelIds; labelTrainIds only for a frame without labelIds. Labels of the test split are not read:
    Cityscapes ships dummies there.

    Raises:
        DataError: a folder is missing or empty, or an image and a label have no partner.
    """
    root = Path(data_path)
    if root.is_file():
        raise DataError(f"{root} is a file; expected a folder in Cityscapes layout")
    if not root.is_dir():
        raise DataError(f"no data set at {root}; name it with --data_path or in CITYSCAPES_DATASET")
    folder = root / "leftImg8bit" / split
    if not folder.is_dir():
        raise DataError(f"{root} has no leftImg8bit/{split}; expected leftImg8bit/{split}/<city>/*_leftImg8bit.png")
    images = _frames(folder, frame_name)
    if not images:
        raise DataError(f"{folder} holds no picture; expected <city>/*_leftImg8bit.png")
    if split == "test":
        return [Sample(name, path, None, folder=city) for (city, name), path in images.items()]

    labels = root / "gtFine" / split
    ids = _frames(labels, functools.partial(label_name, kind="labelIds"))
    train_ids = _frames(labels, functools.partial(label_name, kind="labelTrainIds"))
    either = {**train_ids, **ids}
    for (city, name), path in images.items():
        if (city, name) not in either:
            raise DataError(f"no label for {path}; expected {labels / city / name}_gtFine_labelIds.png")
    for (city, name), path in either.items():
        if (city, name) not in images:
            raise DataError(f"no picture for the label {path}; expected {folder / city / name}_leftImg8bit.png")
    return [
        Sample(key[1], path, either[key], CITYSCAPES.labels if key in ids else CITYSCAPES_TRAIN_IDS, key[0])
        for key, path in images.items()
    ]


def find_sample(path: Path) -> Sample:
    """Returns a picture, with its label if it lies in the train or val split of a data set in Cityscapes layout."""
    name = frame_name(path.name)
    if name is None:
        return Sample(path.stem, path, None)
    city = path.absolute().parent
    split = city.parent
    if split.parent.name == "leftImg8bit" and split.name != "test":
        folder = split.parent.parent / "gtFine" / split.name / city.name
        for kind, labels in (("labelIds", CITYSCAPES.labels), ("labelTrainIds", CITYSCAPES_TRAIN_IDS)):
            label = folder / f"{name}_gtFine_{kind}.png"
            if label.is_file():
                return Sample(name, path, label, labels)
    return Sample(name, path, None)


def frame_name(file: str) -> str | None:
    """Returns the name of the frame whose picture has this file name, None for other files."""
    stem, ending = os.path.splitext(file)
    is_picture = stem.endswith("_leftImg8bit") and ending.lower() in IMAGE_ENDINGS
    return stem.removesuffix("_leftImg8bit") if is_picture else None


def label_name(file: str, kind: str) -> str | None:
    """Returns the name of the frame whose labelIds, or another kind of label, has this file name, else None."""
    stem, ending = os.path.splitext(file)
    is_label = stem.endswith(f"_gtFine_{kind}") and ending.lower() == ".png"
    return stem.removesuffix(f"_gtFine_{kind}") if is_label else None


def train_ids_note(samples: Sequence[Sample]) -> str:
    """Returns a note to print if labels are read from labelTrainIds, else an empty string."""
    count = sum(sample.labels == CITYSCAPES_TRAIN_IDS for sample in samples)
    return f"{count} of {len(samples)} frames have no labelIds file: their labelTrainIds are read" if count else ""


def _frames(folder: Path, name_of: Callable[[str], str | None]) -> dict[tuple[str, str], Path]:
    """Returns the files <city>/<file> below a folder by city and frame name, sorted; see utils.is_data."""
    found: dict[tuple[str, str], Path] = {}
    seen = set()
    for city in sorted(_entries(folder), key=Path.is_symlink):  # of two names of a folder, its own
        if not city.is_dir() or (key := (city.stat().st_dev, city.stat().st_ino)) in seen:
            continue  # a folder that a link leads to once more is read once
        seen.add(key)
        for path in _entries(city):
            name = name_of(path.name)
            if name is None:
                continue
            if (city.name, name) in found:
                raise DataError(f"{found[city.name, name]} and {path} are the same frame; remove one of them")
            found[city.name, name] = path
    return dict(sorted(found.items()))


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if is_data(path.name)) if folder.is_dir() else []
    except OSError as error:
        raise DataError(f"cannot read the folder {folder} ({error.strerror}); check its permissions") from None


def read_pair(sample: Sample) -> tuple[np.ndarray, np.ndarray]:
    """Reads a frame and its label: (H, W, 3) RGB uint8 and (H, W) uint8 train ids, all ignored if there is no label.

    Raises:
        DataError: as read_image and read_label, or the two differ in size.
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
    """Raises DataError if a frame and its label, whose sizes are given, differ in size."""
    if image != label:
        turned = ": if EXIF data turn the picture, turn its label too" if image == label[::-1] else ""
        raise DataError(
            f"{sample.image} is {image[0]}x{image[1]}, its label {sample.label} {label[0]}x{label[1]}; expected equal "
            f"sizes{turned}"
        )


def check_headers(samples: Sequence[Sample]) -> None:
    """Checks the heads and ends of PNG files for what would otherwise stop a run halfway.

    Raises:
        DataError: a PNG is empty, truncated or has the wrong depth, a label the wrong channels, or sizes differ.
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
