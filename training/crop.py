"""Cutting a crop out of a frame and its label: only the pixels of the crop are read and computed.

Sizes are (height, width).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import cv2
import numpy as np

from frames.classes import IGNORE_INDEX
from model import MEAN

MEAN_COLOR = tuple(round(255 * mean) for mean in MEAN)  # RGB; normalises to about zero


class Crop(NamedTuple):
    """A window in a scaled frame.

    Attributes:
        scaled: size of the whole frame after scaling.
        at: top left corner of the window in the scaled frame.
        size: size of the crop; what the scaled frame does not fill, at the bottom and right, is padding.
        flip: mirror horizontally.
    """

    scaled: tuple[int, int]
    at: tuple[int, int]
    size: tuple[int, int]
    flip: bool

    @property
    def filled(self) -> tuple[int, int]:
        """Size of the part that the frame fills."""
        return min(self.scaled[0], self.size[0]), min(self.scaled[1], self.size[1])


def place_crop(frame: tuple[int, int], scale: float, size: tuple[int, int], part: Sequence[float], flip: bool) -> Crop:
    """Returns the crop at a relative position in the range that it can move in.

    Args:
        frame: size of the frame.
        scale: scale of both axes; the scaled size is rounded to pixels.
        size: size of the crop.
        part: vertical and horizontal position, from 0 (top, left) to below 1.
        flip: mirror horizontally.
    """
    scaled = tuple(max(1, round(length * scale)) for length in frame)
    at = tuple(int(p * (max(s - length, 0) + 1)) for p, s, length in zip(part, scaled, size, strict=True))
    return Crop(scaled, at, size, flip)


def padding_share(frame: tuple[int, int], scales: Iterable[float], size: tuple[int, int]) -> float:
    """Returns the mean share of a crop that a frame does not fill, over some scales of equal weight.

    Args:
        frame: size of the frame.
        scales: of both axes.
        size: size of the crop.
    """
    crops = [place_crop(frame, scale, size, (0, 0), flip=False) for scale in scales]
    return 1 - sum(math.prod(crop.filled) for crop in crops) / (len(crops) * math.prod(size))


def crop_image(image: np.ndarray, crop: Crop) -> np.ndarray:
    """Cuts a crop out of an (H, W, 3) uint8 frame.

    Within one grey level of scaling the whole frame by cv2.resize with INTER_LINEAR. Padding is MEAN_COLOR.
    """
    out, window = _padded((*crop.size, 3), crop, MEAN_COLOR)
    blocks = [_blocks(*axis) for axis in zip(image.shape[:2], crop.scaled, crop.at, crop.filled, strict=True)]
    if math.prod(block.scaled for block in blocks) > 1.5 * math.prod(crop.filled):
        window[:] = _warp(image, crop)
        return out
    rows, columns = blocks
    part = image[rows.source, columns.source]
    if crop.scaled != image.shape[:2]:
        part = cv2.resize(part, (columns.scaled, rows.scaled), interpolation=cv2.INTER_LINEAR)
    part = part[rows.window, columns.window]
    window[:] = cv2.flip(part, 1) if crop.flip else part
    return out


class _Blocks(NamedTuple):
    """A section of an axis that, scaled alone, gives the same pixels as within the whole.

    Attributes:
        source: the slice of the frame that is read.
        scaled: its length after scaling.
        window: the slice of the scaled section that is wanted.
    """

    source: slice
    scaled: int
    window: slice


def _blocks(length: int, scaled: int, start: int, count: int) -> _Blocks:
    """Returns the shortest section with the wanted pixels whose ends are pixel edges before and after scaling.

    Scaled by 3/4, every fourth edge falls on every third. At a scale without such a ratio the section is the whole.
    """
    parts = math.gcd(length, scaled)
    before, after = length // parts, scaled // parts
    margin = -(-scaled // length) if scaled != length else 0  # the next source pixel, which interpolation reads
    first = max(0, start - margin) // after
    last = min(parts, -(-(start + count + margin) // after))
    at = start - first * after
    return _Blocks(slice(first * before, last * before), (last - first) * after, slice(at, at + count))


def _warp(image: np.ndarray, crop: Crop) -> np.ndarray:
    """Returns the part that the frame fills at any scale, in twice the time of cv2.resize."""
    (y, x), (height, width) = crop.at, crop.filled
    # The centre of output pixel i lies at (i + 0.5) * step - 0.5 in the source. From OpenCV 5 on warpAffine
    # interpolates at that very place; before, it rounded to 1/32 of a pixel.
    step_y, step_x = image.shape[0] / crop.scaled[0], image.shape[1] / crop.scaled[1]
    first_y, first_x = (y + 0.5) * step_y - 0.5, (x + 0.5) * step_x - 0.5
    top, left = max(0, int(first_y) - 1), max(0, int(first_x) - 1)
    part = image[top : int(first_y + height * step_y) + 2, left : int(first_x + width * step_x) + 2]
    if crop.flip:
        first_x, step_x = first_x + (width - 1) * step_x, -step_x
    matrix = np.array([[step_x, 0, first_x - left], [0, step_y, first_y - top]])
    how = {"flags": cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP, "borderMode": cv2.BORDER_REPLICATE}
    # OpenCV warps four channels in a third of the time of three.
    warped = cv2.warpAffine(cv2.cvtColor(part, cv2.COLOR_RGB2RGBA), matrix, (width, height), **how)
    return cv2.cvtColor(warped, cv2.COLOR_RGBA2RGB)


def crop_label(label: np.ndarray, crop: Crop) -> np.ndarray:
    """Cuts a crop out of an (H, W) uint8 label by the nearest pixel; padding is IGNORE_INDEX.

    Equals cv2.resize with INTER_NEAREST_EXACT, except where a centre falls on the edge between two pixels. (Plain
    INTER_NEAREST would shift the label by up to half a pixel.)
    """
    (y, x), (height, width) = crop.at, crop.filled
    rows = _nearest(y, height, label.shape[0], crop.scaled[0])
    columns = _nearest(x, width, label.shape[1], crop.scaled[1])
    out, window = _padded(crop.size, crop, IGNORE_INDEX)
    first, last = int(columns[0]), int(columns[-1]) + 1
    # Columns are taken as rows of the transpose, whole lines at a time: byte by byte takes three times as long.
    part = cv2.transpose(np.take(label, rows, 0)[:, first:last])
    window[:] = cv2.transpose(part[(columns[::-1] if crop.flip else columns) - first])
    return out


def _padded(shape: tuple[int, ...], crop: Crop, value: object) -> tuple[np.ndarray, np.ndarray]:
    """Returns an array whose padding is filled, and a view of the part that the frame is to fill."""
    out, (height, width) = np.empty(shape, np.uint8), crop.filled
    columns = slice(crop.size[1] - width, None) if crop.flip else slice(0, width)
    if crop.filled != crop.size:
        out[:] = value
    return out, out[:height, columns]


def _nearest(start: int, count: int, length: int, scaled: int) -> np.ndarray:
    """Returns the source pixels of `count` output pixels from `start`, where `length` pixels are scaled to `scaled`."""
    # floor((i + 0.5) * length / scaled) in integers, so that no rounding error moves a pixel.
    return (2 * np.arange(start, start + count) + 1) * length // (2 * scaled)
