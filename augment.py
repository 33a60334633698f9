"""What happens to a frame before the network sees it in training: which, at what scale, which crop, what colours.

A sample is drawn from a generator that depends on (seed, epoch, index) alone: it is the same with any number of
workers and after a resume. Pictures stay uint8 RGB until they are a batch on the device. Sizes are (height, width).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler
from torchvision.transforms import v2

from dataset import IGNORE_INDEX, MEAN_COLOUR, NUM_CLASSES, DataError, Sample, read_pair

ATTEMPTS = 10  # crops that are drawn in search of one without a dominant class. Source: mmsegmentation's RandomCrop


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
    """Cuts a window out of a frame, (H, W, 3) uint8, computing only the pixels of the window.

    It is within one grey level of scaling the whole by cv2.resize with INTER_LINEAR. Padding is MEAN_COLOUR.
    """
    (y, x), (height, width) = crop.at, crop.filled
    out, window = _padded((*crop.size, 3), crop, MEAN_COLOUR)
    if crop.scaled == image.shape[:2]:
        window[:] = image[y : y + height, x : x + width][:, :: -1 if crop.flip else 1]
    else:
        # The centre of output pixel i lies at (i + 0.5) * step - 0.5 in the source. From OpenCV 5 on warpAffine
        # interpolates at that very place; before, it rounded to 1/32 of a pixel.
        step_y, step_x = image.shape[0] / crop.scaled[0], image.shape[1] / crop.scaled[1]
        first_x = (x + 0.5) * step_x - 0.5
        if crop.flip:
            first_x, step_x = first_x + (width - 1) * step_x, -step_x
        matrix = np.array([[step_x, 0, first_x], [0, step_y, (y + 0.5) * step_y - 0.5]])
        how = {"flags": cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP, "borderMode": cv2.BORDER_REPLICATE}
        window[:] = cv2.warpAffine(image, matrix, (width, height), **how)
    return out


def crop_label(label: np.ndarray, crop: Crop) -> np.ndarray:
    """Cuts a window out of a label, (H, W) uint8, by the nearest pixel; padding is IGNORE_INDEX.

    It is what cv2.resize with INTER_NEAREST_EXACT gives, but where a centre falls on the edge between two pixels (plain
    INTER_NEAREST would shift the label by up to half a pixel).
    """
    (y, x), (height, width) = crop.at, crop.filled
    rows = _nearest(y, height, label.shape[0], crop.scaled[0])
    columns = _nearest(x, width, label.shape[1], crop.scaled[1])
    out, window = _padded(crop.size, crop, IGNORE_INDEX)
    window[:] = label[rows][:, columns[::-1] if crop.flip else columns]
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
    uint8 train ids, and what distort_colours is to do with the picture once it is on the device.

    Args:
        samples: the frames.
        size: of the crops.
        seed: of the whole run.
        scales: that they are drawn at.
        max_class_share: a crop of which one class covers more is drawn again, up to ten times; 1 takes every crop.
        class_uniform: share of the samples that are centred on a pixel of a class drawn evenly from those of the
            frame, so that rare classes are seen more often.
        color_strength: see draw_colours.
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
    ):
        self.samples, self.size, self.seed, self.scales = list(samples), size, seed, scales
        self.max_class_share, self.class_uniform, self.color_strength = max_class_share, class_uniform, color_strength

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
        epoch, index = key
        rng = np.random.default_rng((self.seed, epoch, index))
        image, label = read_pair(self.samples[index])
        centred = self.class_uniform > 0 and rng.random() < self.class_uniform
        for _ in range(1 if self.max_class_share == 1 else ATTEMPTS):
            crop = self.draw_crop(label, rng, centred)
            target = crop_label(label, crop)
            if self.max_class_share == 1 or _largest_share(target) <= self.max_class_share:
                break
        colours = draw_colours(rng, self.color_strength)
        return torch.from_numpy(crop_image(image, crop)), torch.from_numpy(target), colours

    def draw_crop(self, label: np.ndarray, rng: np.random.Generator, centred: bool) -> Crop:
        """Draws scale, place and flip."""
        scale, part, flip = self.scales.draw(rng), (rng.random(), rng.random()), rng.random() < 0.5
        crop = place_crop(label.shape, scale, self.size, part, flip)
        present = np.flatnonzero(_count_classes(label)) if centred else ()
        if not len(present):
            return crop
        pixels = np.flatnonzero(label == rng.choice(present))
        place = np.divmod(pixels[rng.integers(len(pixels))], label.shape[1])
        # `part` says where in the window that pixel comes to lie.
        at = tuple(
            int(np.clip((p + 0.5) * scaled / length - share * size, 0, max(scaled - size, 0)))
            for p, scaled, length, share, size in zip(place, crop.scaled, label.shape, part, self.size, strict=True)
        )
        return crop._replace(at=at)


def _largest_share(target: np.ndarray) -> float:
    counts = _count_classes(target)
    return float(counts.max() / max(1.0, counts.sum()))


def _count_classes(label: np.ndarray) -> np.ndarray:
    """Pixels of each class; OpenCV's histogram takes a tenth of the time of np.bincount, which converts to int64."""
    return cv2.calcHist([label], [0], None, [256], [0, 256]).ravel()[:NUM_CLASSES]


def draw_colours(rng: np.random.Generator, strength: float) -> Tensor:
    """Draws what happens to the colours of a picture: (4,) brightness, contrast and saturation factors, hue shift.

    Each of them happens by a chance of one half. Paper: "colour channels noise and brightness". Differs: it gives no
    amounts. Source: mmsegmentation's PhotoMetricDistortion.

    Args:
        rng: the generator of the sample.
        strength: 0 leaves every picture as it is, 1 is the full range.
    """
    values = (rng.uniform(-1, 1, 4) * (rng.random(4) < 0.5) * strength).astype(np.float32)
    return torch.from_numpy(values) * torch.tensor([0.25, 0.5, 0.5, 0.05]) + torch.tensor([1.0, 1.0, 1.0, 0.0])


def distort_colours(images: Tensor, colours: Tensor) -> Tensor:
    """Changes the colours of pictures, on whatever device they are.

    Args:
        images: (N, H, W, 3) uint8.
        colours: (N, 4) on the CPU, rows of draw_colours.

    Returns:
        (N, H, W, 3) uint8.
    """
    unchanged = draw_colours(np.random.default_rng(0), 0.0)
    if (colours == unchanged).all():
        return images
    changes = (v2.functional.adjust_brightness, v2.functional.adjust_contrast, v2.functional.adjust_saturation,
               v2.functional.adjust_hue)  # fmt: skip
    pictures = []
    for picture, row in zip(images.permute(0, 3, 1, 2), colours, strict=True):
        for change, value, none in zip(changes, row.tolist(), unchanged.tolist(), strict=True):
            picture = picture if value == none else change(picture, value)
        pictures.append(picture)
    return torch.stack(pictures).permute(0, 2, 3, 1)


class EpochSampler(Sampler[list[tuple[int, int]]]):
    """Batches of (epoch, index) in an order that depends on (seed, epoch) alone.

    The epoch travels with the index because the copies of a data set in persistent loader workers never see an
    attribute change. The last batch may be smaller; of one frame it is left out, since batch normalisation after the
    1x1 pooling bin cannot train on it.

    Raises:
        DataError: there are fewer than two frames, hence no batch.
    """

    def __init__(self, length: int, batch_size: int, seed: int):
        if length < 2:
            raise DataError(f"found {length} training frame(s), expected at least 2: a batch of one cannot train")
        self.length, self.batch_size, self.seed, self.epoch = length, batch_size, seed, 0

    def __len__(self) -> int:
        full, rest = divmod(self.length, self.batch_size)
        return full + (rest > 1)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        # `length` is no index: the order shares its random stream with no sample.
        order = np.random.default_rng((self.seed, self.epoch, self.length)).permutation(self.length).tolist()
        for batch in range(len(self)):
            yield [(self.epoch, index) for index in order[batch * self.batch_size : (batch + 1) * self.batch_size]]
