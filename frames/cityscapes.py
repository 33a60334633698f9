"""The Cityscapes layout: where pictures and labels lie, and which belong together."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from frames.classes import CITYSCAPES, CITYSCAPES_TRAIN_IDS
from frames.folders import is_data
from frames.images import PICTURES
from frames.samples import DataSet, Sample
from utils import UserError


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
        UserError: a folder is missing or empty, or an image and a label have no partner.
    """
    root = Path(data_path)
    if root.is_file():
        raise UserError(f"{root} is a file; expected a folder in Cityscapes layout")
    if not root.is_dir():
        raise UserError(f"no data set at {root}; name it with --data_path or in CITYSCAPES_DATASET")
    folder = root / "leftImg8bit" / split
    if not folder.is_dir():
        raise UserError(f"{root} has no leftImg8bit/{split}; expected leftImg8bit/{split}/<city>/*_leftImg8bit.png")
    images = _frames(folder, frame_name)
    if not images:
        raise UserError(f"{folder} holds no picture; expected <city>/*_leftImg8bit.png")
    if split == "test":
        return [Sample(name, path, None, folder=city) for (city, name), path in images.items()]

    labels = root / "gtFine" / split
    ids = _frames(labels, functools.partial(label_name, kind="labelIds"))
    train_ids = _frames(labels, functools.partial(label_name, kind="labelTrainIds"))
    either = {**train_ids, **ids}
    for (city, name), path in images.items():
        if (city, name) not in either:
            raise UserError(f"no label for {path}; expected {labels / city / name}_gtFine_labelIds.png")
    for (city, name), path in either.items():
        if (city, name) not in images:
            raise UserError(f"no picture for the label {path}; expected {folder / city / name}_leftImg8bit.png")
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
    is_picture = stem.endswith("_leftImg8bit") and ending.lower() in PICTURES
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
    """Returns the files <city>/<file> below a folder by city and frame name, sorted; see folders.is_data."""
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
                raise UserError(f"{found[city.name, name]} and {path} are the same frame; remove one of them")
            found[city.name, name] = path
    return dict(sorted(found.items()))


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if is_data(path.name)) if folder.is_dir() else []
    except OSError as error:
        raise UserError(f"cannot read the folder {folder} ({error.strerror}); check its permissions") from None
