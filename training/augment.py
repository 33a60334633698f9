"""What happens to a frame before the network sees it in training: which, at what scale, which crop, what colors.

A sample is drawn from a generator that depends on (seed, epoch, index) alone: it is the same with any number of
workers and after a resume. Pictures stay uint8 RGB until they are a batch on the device. Sizes are (height, width).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler
from torchvision.transforms import v2

from dataset import IGNORE_INDEX, NUM_CLASSES, DataError, Read, ReadLog, Sample, read_pair
from model import MEAN

MEAN_COLOR = tuple(round(255 * mean) for mean in MEAN)  # RGB; normalises to about zero
ATTEMPTS = 10  # crops that are drawn in search of one without a dominant class. Source: mmsegmentation's RandomCrop

UNCHANGED = torch.tensor([1.0, 1.0, 1.0, 0.0])  # brightness, contrast and saturation factors, hue shift


class Crop(NamedTuple):
    """A window of a scaled frame.

    Attributes:
        scaled: size of the whole frame after scaling.
        at: top left corner of the window in the scaled frame.
        size: of the result; what the scaled frame does not fill, at the bottom and the right, is padding.
        flip: mirror left and right.
    """

    scaled: tuple[int, int]
    at: tuple[int, int]
    size: tuple[int, int]
    flip: bool

    @property
    def filled(self) -> tuple[int, int]:
        """The part of the result that comes from the frame."""
        return min(self.scaled[0], self.size[0]), min(self.scaled[1], self.size[1])


def place_crop(frame: tuple[int, int], scale: float, size: tuple[int, int], part: Sequence[float], flip: bool) -> Crop:
    """Returns the window that lies at `part`, 0 (top, left) to below 1, of the range that it may move in.

    Args:
        frame: size of the frame.
        scale: of both axes; the scaled size is rounded to pixels.
        size: of the crop.
    """
    scaled = tuple(max(1, round(length * scale)) for length in frame)
    at = tuple(int(p * (max(s - length, 0) + 1)) for p, s, length in zip(part, scaled, size, strict=True))
    return Crop(scaled, at, size, flip)


def crop_image(image: np.ndarray, crop: Crop) -> np.ndarray:
    """Cuts a window out of a frame, (H, W, 3) uint8, reading and computing only the pixels of the window.

    It is within one grey level of scaling the whole by cv2.resize with INTER_LINEAR. Padding is MEAN_COLOR.
    """
    out, window = _padded((*crop.size, 3), crop)
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
    """A part of an axis that scales by itself as it does within the whole.

    Attributes:
        source: what it is of the frame.
        scaled: its length after scaling.
        window: where in it the wanted pixels are.
    """

    source: slice
    scaled: int
    window: slice


def _blocks(length: int, scaled: int, start: int, count: int) -> _Blocks:
    """Returns the least part that has the wanted pixels, whose ends are edges of pixels before and after scaling.

    Scaled by 3/4, every fourth edge is one of every third. At a scale without such a ratio the part is the whole.
    """
    parts = math.gcd(length, scaled)
    before, after = length // parts, scaled // parts
    beside = -(-scaled // length) if scaled != length else 0  # the next source pixel, which interpolation looks at
    first = max(0, start - beside) // after
    last = min(parts, -(-(start + count + beside) // after))
    at = start - first * after
    return _Blocks(slice(first * before, last * before), (last - first) * after, slice(at, at + count))


def _warp(image: np.ndarray, crop: Crop) -> np.ndarray:
    """The window at any scale, in twice the time of cv2.resize."""
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
    """Cuts a window out of a label, (H, W) uint8, by the nearest pixel; padding is IGNORE_INDEX.

    It is what cv2.resize with INTER_NEAREST_EXACT gives, but where a centre falls on the edge between two pixels (plain
    INTER_NEAREST would shift the label by up to half a pixel).
    """
    (y, x), (height, width) = crop.at, crop.filled
    rows = _nearest(y, height, label.shape[0], crop.scaled[0])
    columns = _nearest(x, width, label.shape[1], crop.scaled[1])
    out, window = _padded(crop.size, crop, IGNORE_INDEX)
    first, last = int(columns[0]), int(columns[-1]) + 1
    # Columns are taken as rows of the transpose, in whole lines: byte by byte it takes three times as long.
    part = cv2.transpose(np.take(label, rows, 0)[:, first:last])
    window[:] = cv2.transpose(part[(columns[::-1] if crop.flip else columns) - first])
    return out


def _padded(shape: tuple[int, ...], crop: Crop, value: object) -> tuple[np.ndarray, np.ndarray]:
    """Returns an array whose padding is filled, and the window in it that the frame fills, still empty."""
    out, (height, width) = np.empty(shape, np.uint8), crop.filled
    columns = slice(crop.size[1] - width, None) if crop.flip else slice(0, width)
    if crop.filled != crop.size:
        out[:] = value
    return out, out[:height, columns]


def _nearest(start: int, count: int, length: int, scaled: int) -> np.ndarray:
    """The source pixel of `count` output pixels from `start` on, where `length` pixels are scaled to `scaled`."""
    # floor((i + 0.5) * length / scaled) in whole numbers, so that no rounding error moves a pixel.
    return (2 * np.arange(start, start + count) + 1) * length // (2 * scaled)


class Scales(NamedTuple):
    """The scales that crops are drawn at: one of a list, or any between the first and the last."""

    values: tuple[float, ...]
    continuous: bool

    @classmethod
    def parse(cls, text: str) -> Scales:
        """Reads "0.5,0.75,1" as a list and "0.5-2" as a range.

        Raises:
            ValueError: it is neither, or a scale is not between 0.1 and 10.
        """
        continuous = "-" in text
        values = tuple(float(part) for part in text.split("-" if continuous else ","))
        if (continuous and len(values) != 2) or list(values) != sorted(values):
            raise ValueError(f"{text!r} is no ascending list or range")
        if not 0.1 <= values[0] <= values[-1] <= 10:
            raise ValueError(f"{text!r} has scales outside 0.1 to 10")
        return cls(values, continuous)

    def draw(self, rng: np.random.Generator) -> float:
        """Returns one of them."""
        return rng.uniform(*self.values) if self.continuous else self.values[rng.integers(len(self.values))]


class TrainSet(Dataset):
    """Random crops for training; a sample depends on (seed, epoch, index) alone.

    Items are asked for by (epoch, index): see EpochSampler. They are (crop_h, crop_w, 3) uint8 RGB, (crop_h, crop_w)
    uint8 train ids, and what distort_colors is to do with the picture once it is on the device.

    Args:
        samples: the frames.
        size: of the crops.
        seed: of the whole run.
        scales: that they are drawn at.
        max_class_share: a crop of which one class covers more is drawn again, up to ten times; 1 takes every crop.
        class_uniform: share of the samples that are centred on a pixel of a class drawn evenly from those of the
            frame, so that rare classes are seen more often.
        color_strength: see draw_colors.
        class_mix: share of the crops onto which half of the classes of another frame's crop are pasted, where they are.
            Source: arXiv 2007.07936, section 3.1, here with labels.
        read: where frames come from; crops are the same from any place that gives the same frames.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        size: tuple[int, int],
        seed: int,
        scales: Scales,
        max_class_share: float = 1.0,
        class_uniform: float = 0.0,
        color_strength: float = 0.0,
        class_mix: float = 0.0,
        read: Read = read_pair,
    ):
        self.samples, self.size, self.seed, self.scales = list(samples), size, seed, scales
        self.max_class_share, self.class_uniform, self.color_strength = max_class_share, class_uniform, color_strength
        self.class_mix, self.read, self.log = class_mix, read, ReadLog()
        self._classes: dict[int, np.ndarray] = {}  # of the frames that were counted: the pass over a label takes 2 ms

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
        rng = np.random.default_rng((self.seed, *key))
        image, target = self._draw(key[1], rng)
        if self.class_mix > 0 and rng.random() < self.class_mix:
            paste_classes(image, target, *self._draw(int(rng.integers(len(self))), rng), rng)
        return torch.from_numpy(image), torch.from_numpy(target), draw_colors(rng, self.color_strength)

    def _draw(self, index: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        with self.log.reading(index):
            image, label = self.read(self.samples[index])
            present = None
            if self.class_uniform > 0 and rng.random() < self.class_uniform:
                if index not in self._classes:
                    self._classes[index] = np.flatnonzero(_count_classes(label))
                present = self._classes[index]
            for _ in range(1 if self.max_class_share == 1 else ATTEMPTS):
                crop = self.draw_crop(label, rng, present)
                target = crop_label(label, crop)
                if self.max_class_share == 1 or _largest_share(target) <= self.max_class_share:
                    break
            return crop_image(image, crop), target

    def draw_crop(self, label: np.ndarray, rng: np.random.Generator, present: np.ndarray | None) -> Crop:
        """Draws scale, place and flip; with the classes that are `present`, a place at a pixel of one of them."""
        scale, part, flip = self.scales.draw(rng), (rng.random(), rng.random()), rng.random() < 0.5
        crop = place_crop(label.shape, scale, self.size, part, flip)
        if present is None or not len(present):
            return crop
        mask = (label == rng.choice(present)).ravel()
        place = np.divmod(_nth_true(mask, rng.integers(np.count_nonzero(mask))), label.shape[1])
        # `part` says where in the window that pixel comes to lie.
        at = tuple(
            int(np.clip((p + 0.5) * scaled / length - share * size, 0, max(scaled - size, 0)))
            for p, scaled, length, share, size in zip(place, crop.scaled, label.shape, part, self.size, strict=True)
        )
        return crop._replace(at=at)


def paste_classes(
    image: np.ndarray, target: np.ndarray, other_image: np.ndarray, other_target: np.ndarray, rng: np.random.Generator
) -> None:
    """Pastes half of the classes that another crop shows, pixel for pixel, into a crop and its label.

    Args:
        image: (H, W, 3) uint8, written to.
        target: (H, W) uint8 train ids, written to.
        other_image: of the same shape.
        other_target: of the same shape; what is ignored in it is not pasted.
        rng: the generator of the sample.
    """
    present = np.flatnonzero(_count_classes(other_target))
    chosen = np.zeros(256, np.uint8)
    chosen[rng.choice(present, (len(present) + 1) // 2, replace=False)] = 1
    mask = cv2.LUT(other_target, chosen)
    cv2.copyTo(other_image, mask, image)
    cv2.copyTo(other_target, mask, target)


def _nth_true(mask: np.ndarray, n: int) -> int:
    """The place of the n-th True, by bisection: np.flatnonzero of a whole label takes five times as long."""
    start, stop = 0, mask.size
    while stop - start > 4096:
        middle = (start + stop) // 2
        before = np.count_nonzero(mask[start:middle])
        if n < before:
            stop = middle
        else:
            start, n = middle, n - before
    return start + int(np.flatnonzero(mask[start:stop])[n])


def _largest_share(target: np.ndarray) -> float:
    counts = _count_classes(target)
    return float(counts.max() / max(1.0, counts.sum()))


def _count_classes(label: np.ndarray) -> np.ndarray:
    """Pixels of each class; OpenCV's histogram takes a tenth of the time of np.bincount, which converts to int64."""
    return cv2.calcHist([label], [0], None, [256], [0, 256]).ravel()[:NUM_CLASSES]


def draw_colors(rng: np.random.Generator, strength: float) -> Tensor:
    """Draws what happens to the colors of a picture: (4,) brightness, contrast and saturation factors, hue shift.

    Each of them happens by a chance of one half. Paper: "color channels noise and brightness". Differs: it gives no
    amounts. Source: mmsegmentation's PhotoMetricDistortion.

    Args:
        rng: the generator of the sample.
        strength: 0 leaves every picture as it is, 1 is the full range.
    """
    values = (rng.uniform(-1, 1, 4) * (rng.random(4) < 0.5) * strength).astype(np.float32)
    return torch.from_numpy(values) * torch.tensor([0.25, 0.5, 0.5, 0.05]) + UNCHANGED


def distort_colors(images: Tensor, colors: Tensor) -> Tensor:
    """Changes the colors of pictures, on whatever device they are.

    Args:
        images: (N, H, W, 3) uint8.
        colors: (N, 4) on the CPU, rows of draw_colors.

    Returns:
        (N, H, W, 3) uint8.
    """
    if (colors == UNCHANGED).all():
        return images
    changes = (v2.functional.adjust_brightness, v2.functional.adjust_contrast, v2.functional.adjust_saturation,
               v2.functional.adjust_hue)  # fmt: skip
    pictures = []
    for picture, row in zip(images.permute(0, 3, 1, 2), colors, strict=True):
        for change, value, none in zip(changes, row.tolist(), UNCHANGED.tolist(), strict=True):
            picture = picture if value == none else change(picture, value)
        pictures.append(picture)
    return torch.stack(pictures).permute(0, 2, 3, 1)


class EpochSampler(Sampler[list[tuple[int, int]]]):
    """Batches of (epoch, index) in an order that depends on (seed, epoch) alone.

    The epoch travels with the index because the copies of a data set in persistent loader workers never see an
    attribute change. The last batch may be smaller; with less than two frames for each process it is left out, since
    batch normalisation after the 1x1 pooling bin cannot train on one.

    Args:
        length: frames of the data set.
        batch_size: frames of a batch, all processes together.
        seed: of the whole run.
        part: the number of this process, and how many there are; the batches are this process's part of each.

    Raises:
        DataError: there are too few frames for a batch.
    """

    def __init__(self, length: int, batch_size: int, seed: int, part: tuple[int, int] = (0, 1)):
        if length < 2 * part[1]:
            raise DataError(
                f"found {length} training frame(s), expected at least {2 * part[1]}: a batch of one cannot train"
            )
        self.length, self.batch_size, self.seed, self.part, self.epoch = length, batch_size, seed, part, 0

    def __len__(self) -> int:
        full, rest = divmod(self.length, self.batch_size)
        return full + (rest >= 2 * self.part[1])

    @property
    def crops(self) -> int:
        """Frames in an epoch, all processes together."""
        return min(self.length, len(self) * self.batch_size)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        # `length` is no index: the order shares its random stream with no sample.
        order = np.random.default_rng((self.seed, self.epoch, self.length)).permutation(self.length).tolist()
        number, count = self.part
        for batch in range(len(self)):
            whole = order[batch * self.batch_size : (batch + 1) * self.batch_size]
            yield [(self.epoch, index) for index in whole[number::count]]
