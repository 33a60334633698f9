"""The Cityscapes label table and its look-up tables, and the frames on disk.

Images are RGB uint8; labels are train ids in memory, label ids in files; sizes are (height, width).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

IGNORE_INDEX = 255  # pixels of this train id count neither in the loss nor in a score


class Label(NamedTuple):
    """One row of the official label table."""

    name: str
    id: int
    train_id: int
    category: str
    color: tuple[int, int, int]


# Source: cityscapesscripts.helpers.labels 2.3.0; a test compares them. `license plate` (id -1) is in no label file.
LABELS = (
    Label("unlabeled", 0, 255, "void", (0, 0, 0)),
    Label("ego vehicle", 1, 255, "void", (0, 0, 0)),
    Label("rectification border", 2, 255, "void", (0, 0, 0)),
    Label("out of roi", 3, 255, "void", (0, 0, 0)),
    Label("static", 4, 255, "void", (0, 0, 0)),
    Label("dynamic", 5, 255, "void", (111, 74, 0)),
    Label("ground", 6, 255, "void", (81, 0, 81)),
    Label("road", 7, 0, "flat", (128, 64, 128)),
    Label("sidewalk", 8, 1, "flat", (244, 35, 232)),
    Label("parking", 9, 255, "flat", (250, 170, 160)),
    Label("rail track", 10, 255, "flat", (230, 150, 140)),
    Label("building", 11, 2, "construction", (70, 70, 70)),
    Label("wall", 12, 3, "construction", (102, 102, 156)),
    Label("fence", 13, 4, "construction", (190, 153, 153)),
    Label("guard rail", 14, 255, "construction", (180, 165, 180)),
    Label("bridge", 15, 255, "construction", (150, 100, 100)),
    Label("tunnel", 16, 255, "construction", (150, 120, 90)),
    Label("pole", 17, 5, "object", (153, 153, 153)),
    Label("polegroup", 18, 255, "object", (153, 153, 153)),
    Label("traffic light", 19, 6, "object", (250, 170, 30)),
    Label("traffic sign", 20, 7, "object", (220, 220, 0)),
    Label("vegetation", 21, 8, "nature", (107, 142, 35)),
    Label("terrain", 22, 9, "nature", (152, 251, 152)),
    Label("sky", 23, 10, "sky", (70, 130, 180)),
    Label("person", 24, 11, "human", (220, 20, 60)),
    Label("rider", 25, 12, "human", (255, 0, 0)),
    Label("car", 26, 13, "vehicle", (0, 0, 142)),
    Label("truck", 27, 14, "vehicle", (0, 0, 70)),
    Label("bus", 28, 15, "vehicle", (0, 60, 100)),
    Label("caravan", 29, 255, "vehicle", (0, 0, 90)),
    Label("trailer", 30, 255, "vehicle", (0, 0, 110)),
    Label("train", 31, 16, "vehicle", (0, 80, 100)),
    Label("motorcycle", 32, 17, "vehicle", (0, 0, 230)),
    Label("bicycle", 33, 18, "vehicle", (119, 11, 32)),
)
CLASSES = tuple(sorted((label for label in LABELS if label.train_id != IGNORE_INDEX), key=lambda label: label.train_id))
NUM_CLASSES = len(CLASSES)
CATEGORIES = tuple(dict.fromkeys(label.category for label in LABELS))  # in the official order, void first

_INVALID = 254  # marks values in the look-up tables that the label table lacks


def _table(pairs: dict[int, int]) -> np.ndarray:
    table = np.full(256, _INVALID, np.uint8)
    table[list(pairs)] = list(pairs.values())
    return table


ID_TO_TRAIN_ID = _table({label.id: label.train_id for label in LABELS})
TRAIN_ID_TO_TRAIN_ID = _table({label.train_id: label.train_id for label in LABELS})
TRAIN_ID_TO_ID = _table({**{label.train_id: label.id for label in CLASSES}, IGNORE_INDEX: 0})
PALETTE = np.zeros((256, 3), np.uint8)  # train id to RGB, black for ignored pixels
PALETTE[:NUM_CLASSES] = [label.color for label in CLASSES]

SPLITS = ("train", "val", "test")
IMAGE_SUFFIX = "_leftImg8bit.png"


class DataError(Exception):
    """A file or folder of the data set is not as expected; the message names it."""


class Sample(NamedTuple):
    """The files of one frame. `label` is None if there is none to read: always in the test split."""

    name: str  # <city>_<sequence>_<frame>
    image: Path
    label: Path | None
    label_is_train_ids: bool = False


def default_data_path() -> str:
    """Returns the default of --data_path: $CITYSCAPES_DATASET, else the original repository's default."""
    return os.environ.get("CITYSCAPES_DATASET", "/home/data/cityscapes")


def find_samples(data_path: str | Path, split: str) -> list[Sample]:
    """Finds and pairs the frames of a split in the Cityscapes layout, sorted by name.

    Labels are labelIds; labelTrainIds only for a frame without labelIds. Labels of the test split are not read:
    Cityscapes ships dummies there.

    Raises:
        DataError: a folder is missing or empty, or an image and a label have no partner.
    """
    root = Path(data_path)
    if not root.is_dir():
        raise DataError(f"no data set at {root}; name it with --data_path or in CITYSCAPES_DATASET")
    folder = root / "leftImg8bit" / split
    if not folder.is_dir():
        raise DataError(f"{root} has no leftImg8bit/{split}; expected leftImg8bit/{split}/<city>/*{IMAGE_SUFFIX}")
    images = _by_name(folder, IMAGE_SUFFIX)
    if not images:
        raise DataError(f"{folder} holds no picture; expected <city>/*{IMAGE_SUFFIX}")
    if split == "test":
        return [Sample(name, path, None) for name, path in images.items()]

    labels = root / "gtFine" / split
    ids, train_ids = _by_name(labels, "_gtFine_labelIds.png"), _by_name(labels, "_gtFine_labelTrainIds.png")
    either = {**train_ids, **ids}
    for name, path in images.items():
        if name not in either:
            raise DataError(f"no label for {path}; expected {labels}/<city>/{name}_gtFine_labelIds.png")
    for name, path in either.items():
        if name not in images:
            raise DataError(f"no picture for the label {path}; expected {folder}/<city>/{name}{IMAGE_SUFFIX}")
    return [Sample(name, path, either[name], name not in ids) for name, path in images.items()]


def train_ids_note(samples: Sequence[Sample]) -> str:
    """Returns a note to print if labels are read from labelTrainIds, else an empty string."""
    count = sum(sample.label_is_train_ids for sample in samples)
    return f"{count} of {len(samples)} frames have no labelIds file: their labelTrainIds are read" if count else ""


def _by_name(folder: Path, suffix: str) -> dict[str, Path]:
    """Returns the files <city>/<name><suffix> below a folder by their name, sorted."""
    found = {path.name.removesuffix(suffix): path for path in folder.glob(f"*/*{suffix}")}
    return dict(sorted(found.items()))


def read_image(path: str | Path, flags: int = cv2.IMREAD_COLOR_RGB) -> np.ndarray:
    """Reads an image of any format that OpenCV decodes as (H, W, 3) RGB uint8.

    Grey images, 16 bits and an alpha channel are converted, unless OpenCV's flags say otherwise.

    Raises:
        DataError: the file is missing, truncated or not an image.
    """
    return _decode(path, flags, "picture")


def read_label(path: str | Path, train_ids: bool = False) -> np.ndarray:
    """Reads a label PNG of label ids or train ids as train ids: (H, W) uint8, 0-18 and IGNORE_INDEX.

    Raises:
        DataError: the file is missing or damaged, has several channels, or has a value outside the label table.
    """
    raw = _decode(path, cv2.IMREAD_UNCHANGED, "label")
    if raw.ndim != 2 or raw.dtype != np.uint8:
        channels = 1 if raw.ndim == 2 else raw.shape[2]
        raise DataError(
            f"{path} has {channels} channel(s) of {raw.dtype}, expected one of uint8 with "
            f"{'train' if train_ids else 'label'} ids; a color picture or a palette PNG is no label file"
        )
    label = cv2.LUT(raw, TRAIN_ID_TO_TRAIN_ID if train_ids else ID_TO_TRAIN_ID)
    if (label == _INVALID).any():
        values = np.unique(raw[label == _INVALID])[:8].tolist()
        expected = "train ids 0-18 and 255" if train_ids else "label ids 0-33"
        raise DataError(f"{path} has values outside the label table: {values}; expected {expected}")
    return label


def _decode(path: str | Path, flags: int, what: str) -> np.ndarray:
    try:
        data = np.fromfile(path, np.uint8)
    except OSError as error:
        raise DataError(f"cannot read the {what} {path} ({error.strerror})") from None
    head, tail = data[:4].tobytes(), data[-65536:].tobytes()
    # A decoder may fill in the missing part of a truncated file: look for the end marker first.
    end = b"IEND" if head == b"\x89PNG" else b"\xff\xd9" if head.startswith(b"\xff\xd8") else b""
    decoded = cv2.imdecode(data, flags) if data.size and end in tail else None
    if decoded is None:
        state = "an empty file" if not data.size else "damaged or no picture" if end in tail else "truncated"
        raise DataError(f"the {what} {path} is {state}; get it again")
    return decoded


def encode_png(image: np.ndarray) -> bytes:
    """Returns the content of a PNG file of an (H, W) or (H, W, 3) BGR uint8 array."""
    return cv2.imencode(".png", image)[1].tobytes()


def read_pair(sample: Sample) -> tuple[np.ndarray, np.ndarray]:
    """Reads a frame and its label: (H, W, 3) RGB uint8 and (H, W) uint8 train ids, all ignored if there is no label.

    Raises:
        DataError: as read_image and read_label, or the two differ in size.
    """
    image = read_image(sample.image)
    if sample.label is None:
        return image, np.full(image.shape[:2], IGNORE_INDEX, np.uint8)
    label = read_label(sample.label, sample.label_is_train_ids)
    check_same_size(sample, image, label)
    return image, label


def check_same_size(sample: Sample, image: np.ndarray, label: np.ndarray) -> None:
    """Raises DataError where a frame and its label differ in size."""
    if image.shape[:2] != label.shape:
        (h, w), (label_h, label_w) = image.shape[:2], label.shape
        raise DataError(
            f"{sample.image} is {h}x{w}, its label {sample.label} {label_h}x{label_w}; expected equal sizes"
        )


def check_samples(samples: Sequence[Sample]) -> None:
    """Checks the first and last bytes of every file for what would otherwise stop a run halfway.

    Raises:
        DataError: a PNG is empty or truncated, a label is not one channel of 8 bits, or sizes differ.
    """
    for sample in samples:
        image = png_header(sample.image, "picture")
        label = png_header(sample.label, "label") if sample.label else None
        if label and label[2:] != (8, 0):  # grey of under 8 bits is read, all else raises with the right message
            read_label(sample.label, sample.label_is_train_ids)
        if image and label and image[:2] != label[:2]:
            read_pair(sample)
    if samples:
        read_pair(samples[0])


def png_header(path: Path, what: str) -> tuple[int, int, int, int] | None:
    """Returns height, width, bit depth and color type of a PNG with its end marker; None for any other format.

    Raises:
        DataError: the file cannot be read, is empty or truncated; `what` it should hold is named.
    """
    try:
        with open(path, "rb") as file:
            head = file.read(26)
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - 4096))
            tail = file.read()
    except OSError as error:
        raise DataError(f"cannot read the {what} {path} ({error.strerror})") from None
    if head and not head.startswith(b"\x89PNG"):
        return None
    if len(head) < 26 or b"IEND" not in tail:
        raise DataError(f"the {what} {path} is empty or truncated; get it again")
    return int.from_bytes(head[20:24], "big"), int.from_bytes(head[16:20], "big"), head[24], head[25]


# From a sample to (H, W, 3) uint8 RGB and (H, W) uint8 train ids: read_pair, or the read method of a cache.
Read = Callable[[Sample], tuple[np.ndarray, np.ndarray]]
