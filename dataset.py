"""Frames on disk: where pictures and labels lie, and reading them.

Images are RGB uint8; labels are train ids in memory, label ids in files; sizes are (height, width).
"""

from __future__ import annotations

import functools
import io
import os
import stat
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

import cv2
import numpy as np

from classes import ID_TO_TRAIN_ID, IGNORE_INDEX, INVALID, TRAIN_ID_TO_TRAIN_ID
from utils import is_data

SPLITS = ("train", "val", "test")
IMAGE_ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".jp2")


class DataError(Exception):
    """A file or folder of the data set is not as expected; the message names it."""


class Sample(NamedTuple):
    """The files of one frame. `label` is None if there is none to read: always in the test split."""

    name: str  # <city>_<sequence>_<frame>; only together with the folder it is unique
    image: Path
    label: Path | None
    label_is_train_ids: bool = False
    folder: str = ""  # <city>


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
    return [Sample(key[1], path, either[key], key not in ids, key[0]) for key, path in images.items()]


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
    count = sum(sample.label_is_train_ids for sample in samples)
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


def read_image(path: str | Path, flags: int = cv2.IMREAD_COLOR_RGB) -> np.ndarray:
    """Reads an image of any format that OpenCV decodes as (H, W, 3) RGB uint8.

    Grey images are converted and an alpha channel is dropped, unless OpenCV's flags say otherwise.

    Raises:
        DataError: the file is missing, truncated, not an image, or has more than 8 bits per channel, whose range only
            its maker knows: divided by 256, 12 bits stored as 16 are black.
    """
    image = _decode(path, flags | cv2.IMREAD_ANYDEPTH, "picture")
    if image.dtype != np.uint8:
        raise DataError(
            f"the picture {path} has {8 * image.itemsize} bits a channel, expected 8: scale its values and save it anew"
        )
    return image


def read_label(path: str | Path, train_ids: bool = False) -> np.ndarray:
    """Reads a label PNG of label ids or train ids as train ids: (H, W) uint8, 0-18 and IGNORE_INDEX.

    Raises:
        DataError: as read_label_values, or a value is outside the label table.
    """
    values = read_label_values(path, train_ids)
    check_values(path, np.flatnonzero(count_values(values)), train_ids)
    return cv2.LUT(values, TRAIN_ID_TO_TRAIN_ID if train_ids else ID_TO_TRAIN_ID)


def read_label_values(path: str | Path, train_ids: bool = False) -> np.ndarray:
    """Reads a label PNG: (H, W) uint8, the values that the official script sees; of a palette PNG, the indices.

    Raises:
        DataError: the file is missing or damaged, or has several channels or more than 8 bits.
    """
    data = _read_file(path, "label")
    if data[:4].tobytes() == b"\x89PNG" and data.size > 25 and (data[25] == 3 or data[24] == 1):
        values = _decode_by_pillow(path, data)  # OpenCV gives a palette's colors, and 255 for the 1 of a single bit
    else:
        values = _decode(path, cv2.IMREAD_UNCHANGED, "label", data)
    if values.ndim != 2 or values.dtype != np.uint8:
        channels = 1 if values.ndim == 2 else values.shape[2]
        raise DataError(
            f"{path} has {channels} channel(s) of {values.dtype}, expected one of uint8 with "
            f"{'train' if train_ids else 'label'} ids; a picture in color is not a label file"
        )
    return values


def count_values(values: np.ndarray) -> np.ndarray:
    """Returns (256,) int64 pixel counts of an (H, W) uint8 array."""
    return cv2.calcHist([values], [0], None, [256], [0, 256]).ravel().astype(np.int64)


def check_values(path: str | Path, found: np.ndarray, train_ids: bool) -> None:
    """Raises DataError if a label file has values outside the label table."""
    table = TRAIN_ID_TO_TRAIN_ID if train_ids else ID_TO_TRAIN_ID
    wrong = [int(value) for value in found if table[value] == INVALID][:8]
    if wrong:
        expected = "train ids 0-18 and 255" if train_ids else "label ids 0-33"
        raise DataError(f"{path} has values outside the label table: {wrong}; expected {expected}")


def _check_regular(path: str | Path, what: str) -> None:
    """Raises DataError for what is not a regular file: a pipe, say, could keep us waiting for ever."""
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise DataError(f"the {what} {path} is not a regular file; replace it or remove it")


def _read_file(path: str | Path, what: str) -> np.ndarray:
    """Returns the bytes of a file."""
    try:
        _check_regular(path, what)
        return np.fromfile(path, np.uint8)
    except OSError as error:
        raise DataError(f"cannot read the {what} {path} ({error.strerror}); get it again or remove it") from None


def _decode(path: str | Path, flags: int, what: str, data: np.ndarray | None = None) -> np.ndarray:
    if data is None:
        data = _read_file(path, what)
    # A decoder may fill in the missing part of a truncated file: look for the end first.
    whole = data.size > 0 and _is_whole(data.tobytes())
    try:
        decoded = cv2.imdecode(data, flags) if whole else None
    except (cv2.error, MemoryError) as error:
        reason = getattr(error, "err", None) or "it does not fit into memory"
        raise DataError(f"the {what} {path} cannot be decoded ({reason}); get it again or make it smaller") from None
    if decoded is None:
        state = "an empty file" if not data.size else "damaged or no picture" if whole else "truncated"
        raise DataError(f"the {what} {path} is {state}; get it again")
    return decoded


def _decode_by_pillow(path: str | Path, data: np.ndarray) -> np.ndarray:
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data.tobytes())) as image:
            return np.array(image).astype(np.uint8)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"the label {path} cannot be decoded ({error}); get it again") from None


def _is_whole(data: bytes) -> bool:
    """Returns whether a PNG or JPEG file has its end, with or without bytes after it; True for any other format."""
    if data.startswith(b"\x89PNG"):
        return png_end(io.BytesIO(data))
    if data.startswith(b"\xff\xd8"):
        return data.find(b"\xff\xd9", _first_scan(data)) >= 0
    return True


def _first_scan(jpeg: bytes) -> int:
    """Returns where the pixels of a JPEG begin; a thumbnail before them has an end marker of its own."""
    place = 2
    while place + 4 <= len(jpeg) and jpeg[place] == 0xFF and jpeg[place + 1] != 0xDA:
        has_length = jpeg[place + 1] != 0xFF  # which is a filling byte
        place += 2 + int.from_bytes(jpeg[place + 2 : place + 4], "big") if has_length else 1
    return place


def png_end(file: BinaryIO) -> bool:
    """Returns whether a PNG file has its last chunk; reads only the heads of the chunks."""
    file.seek(8)
    while len(head := file.read(8)) == 8:
        if head[4:] == b"IEND":
            return len(file.read(4)) == 4  # the checksum
        file.seek(int.from_bytes(head[:4], "big") + 4, os.SEEK_CUR)
    return False


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
    same_size(sample, image.shape[:2], label.shape)
    return image, label


def same_size(sample: Sample, image: tuple[int, int], label: tuple[int, int]) -> None:
    """Raises DataError if a frame and its label, whose sizes are given, differ in size."""
    if image != label:
        raise DataError(
            f"{sample.image} is {image[0]}x{image[1]}, its label {sample.label} {label[0]}x{label[1]}; expected equal "
            "sizes"
        )


def check_headers(samples: Sequence[Sample]) -> None:
    """Checks the heads and ends of PNG files for what would otherwise stop a run halfway.

    Raises:
        DataError: a PNG is empty, truncated or has the wrong depth, a label is not one channel, or sizes differ.
    """
    for sample in samples:
        image = png_header(sample.image, "picture")
        if image and image[2] > 8:
            read_image(sample.image)  # raises
        label = png_header(sample.label, "label") if sample.label else None
        if label and label[2:] != (8, 0):  # some others are read, the rest raises with the right message
            read_label(sample.label, sample.label_is_train_ids)
        if image and label and image[:2] != label[:2]:
            read_pair(sample)
    if samples:
        read_pair(samples[0])


def png_header(path: Path, what: str) -> tuple[int, int, int, int] | None:
    """Returns height, width, bit depth and color type of a PNG with its end; None for any other format.

    Raises:
        DataError: the file cannot be read, is empty or truncated; `what` it should hold is named.
    """
    try:
        _check_regular(path, what)
        with open(path, "rb") as file:
            head = file.read(26)
            if head and not head.startswith(b"\x89PNG"):
                return None
            whole = len(head) == 26 and png_end(file)
    except OSError as error:
        raise DataError(f"cannot read the {what} {path} ({error.strerror}); get it again or remove it") from None
    if not whole:
        raise DataError(f"the {what} {path} is empty or truncated; get it again")
    return int.from_bytes(head[20:24], "big"), int.from_bytes(head[16:20], "big"), head[24], head[25]


# From a sample to (H, W, 3) uint8 RGB and (H, W) uint8 train ids: read_pair, or the read method of a cache.
Read = Callable[[Sample], tuple[np.ndarray, np.ndarray]]
