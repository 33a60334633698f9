"""Image files: pictures and labels decoded, or refused with a reason.

Pictures are RGB uint8; labels become train ids as a LabelFormat says; sizes are (height, width).
"""

from __future__ import annotations

import contextlib
import functools
import io
import os
import stat
import struct
import warnings
from pathlib import Path
from typing import BinaryIO

import cv2
import numpy as np

from frames.classes import CITYSCAPES, IGNORE_INDEX, RGB, Classes, LabelFormat
from utils import UserError

# A name with one of these endings promises a picture: a file that cannot be read then is a problem, and no other kind.
PICTURES = (".bmp", ".jp2", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
_KINDS = {
    stat.S_IFDIR: "is a folder",
    stat.S_IFIFO: "is a pipe",
    stat.S_IFSOCK: "is a socket",
    stat.S_IFCHR: "is a device",
    stat.S_IFBLK: "is a device",
}


def read_image(path: str | Path, flags: int = cv2.IMREAD_COLOR_RGB) -> np.ndarray:
    """Reads an image of any format that OpenCV decodes as (H, W, 3) RGB uint8.

    Grey images are converted and an alpha channel is dropped, unless OpenCV's flags say otherwise.

    Raises:
        UserError: the file is missing, truncated, not an image, or has more than 8 bits per channel, whose range only
            its maker knows: divided by 256, 12 bits stored as 16 are black.
    """
    image = _decode(path, flags | cv2.IMREAD_ANYDEPTH, "picture")
    if image.dtype != np.uint8:
        raise UserError(
            f"the picture {path} has {8 * image.itemsize} bits a channel, expected 8: scale its values and save it anew"
        )
    return image


def read_label(path: str | Path, labels: LabelFormat = CITYSCAPES.labels) -> np.ndarray:
    """Reads a label file as train ids: (H, W) uint8, classes and IGNORE_INDEX.

    Raises:
        UserError: as read_label_values, or a value has no meaning.
    """
    values = read_label_values(path, labels)
    check_values(path, np.flatnonzero(count_values(values)), labels)
    return cv2.LUT(values, labels.table)


def read_label_values(path: str | Path, labels: LabelFormat = CITYSCAPES.labels) -> np.ndarray:
    """Reads a label file: (H, W) uint8, the values that the official script sees.

    Those are the indices of a palette PNG; where labels are pictures in color, the train ids of the colors.

    Raises:
        UserError: the file is missing or damaged, a lossy format, in color where that is not expected or the other way
            round, has more than 8 bits, or a color that has no meaning.
    """
    data = _read_file(path, "label")
    is_png = data[:4].tobytes() == b"\x89PNG"
    if _is_lossy(data):
        raise UserError(f"{path} is lossy (JPEG, or WebP that is not lossless): its values changed; save labels as PNG")
    if labels.colors:
        return _colors_to_train_ids(path, _decode(path, cv2.IMREAD_UNCHANGED, "label", data), labels)
    if is_png and data.size > 25 and (data[25] == 3 or data[24] == 1):
        values = _decode_by_pillow(path, data)  # OpenCV gives a palette's colors, and 255 for the 1 of a single bit
    else:
        values = _decode(path, cv2.IMREAD_UNCHANGED, "label", data)
        if values.ndim == 3 and not is_png and (values[..., :1] == values[..., 1:3]).all():
            values = np.ascontiguousarray(values[..., 0])  # WebP, say, has no grey
    if values.ndim != 2 or values.dtype != np.uint8:
        channels = 1 if values.ndim == 2 else values.shape[2]
        if channels == 1 or (values[..., :1] == values[..., 1:3]).all():
            advice = "save its values anew with one channel of 8 bits"
        else:
            advice = "a picture in color is not a label file, unless a description (.yaml) has its label_colors"
        raise UserError(
            f"{path} has {channels} channel(s) of {values.dtype}, expected one of uint8 with {labels.expected}; "
            f"{advice}"
        )
    return values


def _colors_to_train_ids(path: str | Path, image: np.ndarray, labels: LabelFormat) -> np.ndarray:
    """Returns the (H, W) uint8 train ids of a label in color, decoded as OpenCV does."""
    if image.ndim != 3 or image.dtype != np.uint8:
        found = "one channel" if image.ndim == 2 else "more than 8 bits a channel"
        raise UserError(
            f"{path} has {found}, expected {labels.expected}; if it holds values, they need label_mapping instead"
        )
    image = image if image.shape[2] == 4 else cv2.cvtColor(image, cv2.COLOR_BGR2BGRA)
    packed = np.ascontiguousarray(image).view("<u4")[..., 0] & 0xFFFFFF
    found = _color_table(labels.colors)[packed]
    unknown = found == 0
    if not labels.ignore_unknown and unknown.any():
        some = [[int(color) >> shift & 255 for shift in (16, 8, 0)] for color in np.unique(packed[unknown])[:8]]
        listed = ", ".join(map(str, some))
        advice = labels.advice.replace("{values}", listed)
        raise UserError(f"{path} has colors that are no class: {listed}; expected {labels.expected}{advice}")
    return np.where(unknown, IGNORE_INDEX, found - 1).astype(np.uint8)


@functools.lru_cache(maxsize=2)
def _color_table(colors: tuple[tuple[RGB, int], ...]) -> np.ndarray:
    """(2**24,) uint16: from red * 2**16 + green * 2**8 + blue to train id + 1, or 0.

    The system only backs with memory what is used of the zeros.
    """
    table = np.zeros(2**24, np.uint16)
    for (red, green, blue), train_id in colors:
        table[red << 16 | green << 8 | blue] = train_id + 1
    return table


def count_values(values: np.ndarray) -> np.ndarray:
    """Returns (256,) int64 pixel counts of an (H, W) uint8 array."""
    return cv2.calcHist([values], [0], None, [256], [0, 256]).ravel().astype(np.int64)


def check_values(path: str | Path, found: np.ndarray, labels: LabelFormat) -> None:
    """Raises UserError if a label file has values that have no meaning."""
    wrong = [int(value) for value in found if not labels.known[value]][:8]
    if wrong:
        advice = labels.advice.replace("{values}", ", ".join(f"{value}: ignore_label" for value in wrong))
        raise UserError(f"{path} has values outside the label table: {wrong}; expected {labels.expected}{advice}")
    same = [int(value) for value in found if value in labels.alternatives]
    if len(same) > 1:
        raise UserError(
            f"{path} has the values {same}, which mean the same in masks of one class, expected one of them; if the "
            f"last should not count, write label_mapping: {{{same[-1]}: ignore_label}}"
        )


def _read_file(path: str | Path, what: str) -> np.ndarray:
    """Returns the bytes of a file."""
    _refuse_irregular(path, what)
    try:
        return np.fromfile(path, np.uint8)
    except OSError as error:
        raise UserError(f"cannot read the {what} {path} ({error.strerror}): get it again or remove it") from None


def _decode(path: str | Path, flags: int, what: str, data: np.ndarray | None = None) -> np.ndarray:
    if data is None:
        data = _read_file(path, what)
    # A decoder may fill in the missing part of a truncated file: look for the end first.
    whole = data.size > 0 and _is_whole(data.tobytes())
    try:
        decoded = cv2.imdecode(data, flags) if whole else None
    except (cv2.error, MemoryError) as error:
        reason = getattr(error, "err", None) or "it does not fit into memory"
        raise UserError(f"the {what} {path} cannot be decoded ({reason}); get it again or make it smaller") from None
    if decoded is None:
        state = "an empty file" if not data.size else "damaged or no picture" if whole else "truncated"
        raise UserError(f"the {what} {path} is {state}; get it again")
    return decoded


def _decode_by_pillow(path: str | Path, data: np.ndarray) -> np.ndarray:
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data.tobytes())) as image:
            return np.array(image).astype(np.uint8)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"the label {path} cannot be decoded ({error}); get it again") from None


def _is_lossy(data: np.ndarray) -> bool:
    """Returns whether a file is a JPEG or a WebP that is not lossless."""
    head = data[:12].tobytes()
    return head.startswith(b"\xff\xd8") or (head[8:] == b"WEBP" and b"VP8L" not in data.tobytes())


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


def picture_size(path: str | Path) -> tuple[int, int]:
    """Returns the (height, width) of what read_image gives; the picture is only decoded where its header leaves doubts.

    Raises:
        UserError: as read_image, of a picture that is decoded; of any other, its pixels may be damaged.
    """
    from PIL import Image

    broken = (OSError, SyntaxError, ValueError, struct.error, Image.DecompressionBombError)
    with contextlib.suppress(*broken), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of more pixels than Pillow expects
        _refuse_irregular(path, "picture")
        with Image.open(path) as image:
            # Asked for EXIF data that it has not seen in the head of a PNG, Pillow decodes all.
            orientation = image.getexif().get(0x0112, 1) if "exif" in image.info else 1
            turned = orientation not in (1, 2, 3, 4)  # a damaged tag may be text
            if not turned and image.format != "TIFF":  # whose tags may turn it too
                return image.height, image.width
    return read_image(path).shape[:2]


def png_header(path: Path, what: str) -> tuple[int, int, int, int] | None:
    """Returns height, width, bit depth and color type of a PNG with its end; None for any other format.

    Raises:
        UserError: the file cannot be read, is empty or truncated; `what` it should hold is named.
    """
    _refuse_irregular(path, what)
    try:
        with open(path, "rb") as file:
            head = file.read(26)
            if head and not head.startswith(b"\x89PNG"):
                return None
            whole = len(head) == 26 and png_end(file)
    except OSError as error:
        raise UserError(f"cannot read the {what} {path} ({error.strerror}): get it again or remove it") from None
    if not whole:
        raise UserError(f"the {what} {path} is empty or truncated; get it again")
    return int.from_bytes(head[20:24], "big"), int.from_bytes(head[16:20], "big"), head[24], head[25]


def irregular(path: Path) -> str:
    """Returns what is wrong with a path that cannot be read as a file, such as "is a pipe"; "" for a file.

    Pipes and devices are never opened: that may wait for ever.
    """
    try:
        mode = os.stat(path).st_mode
    except OSError as error:
        return "is a link that leads nowhere" if os.path.islink(path) else f"cannot be read ({error.strerror})"
    if not stat.S_ISREG(mode):
        return f"{_KINDS.get(stat.S_IFMT(mode), 'is something else')}, expected a file"
    return "" if os.access(path, os.R_OK) else "cannot be read (Permission denied)"


def _refuse_irregular(path: str | Path, what: str) -> None:
    if wrong := irregular(Path(path)):
        raise UserError(f"the {what} {path} {wrong}: get it again or remove it")


def is_picture(path: Path) -> bool:
    """Returns whether a file begins like a picture of a format that OpenCV decodes; it takes microseconds."""
    return not irregular(path) and cv2.haveImageReader(os.fsencode(path))  # a str that is not UTF-8 ends the process


def shrink(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Returns the image resized to (width, height), without the aliasing of plain interpolation."""
    # Halving by the mean of four pixels is cheap; area interpolation by any other factor costs ten times as much.
    while image.shape[1] >= 2 * size[0] and image.shape[0] >= 2 * size[1]:
        image = cv2.resize(image, (image.shape[1] // 2, image.shape[0] // 2), interpolation=cv2.INTER_AREA)
    return cv2.resize(image, size, interpolation=cv2.INTER_LINEAR)


def color(train_ids: np.ndarray, classes: Classes) -> np.ndarray:
    """Returns classes.palette[train_ids], ten times as fast."""
    return cv2.applyColorMap(train_ids, classes.palette[:, None])
