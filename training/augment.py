"""Training augmentation (random scale, crop, flip, class mix, color distortion) and the sampler that orders the frames.

A sample depends only on (seed, epoch, index): it is the same with any number of workers and after a resume. Images
stay uint8 RGB until they are a batch on the device. Sizes are (height, width).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler
from torchvision.transforms import v2

from frames.classes import IGNORE_INDEX
from frames.images import count_values
from frames.samples import Read, Sample, Scales, read_pair
from frames.unions import Unions
from frames.workers import frame_loader
from training.crop import Crop, crop_image, crop_label, place_crop
from training.recipes import Options
from utils import UserError

UNCHANGED = torch.tensor([1.0, 1.0, 1.0, 0.0])  # brightness, contrast and saturation factors, hue shift


class TrainSet(Dataset):
    """Random training crops; a sample depends only on (seed, epoch, index).

    Items are indexed by (epoch, index): see EpochSampler. They are (crop_h, crop_w, 3) uint8 RGB, (crop_h, crop_w)
    uint8 train ids or ids of unions, and the (4,) color factors that distort_colors applies on the device.

    Args:
        samples: the frames.
        size: (height, width) of the crops.
        seed: the run's seed.
        scales: for frames without scales of their own.
        class_uniform: share of the samples centred on a pixel of a class that is drawn evenly from the frame's classes,
            so that rare classes are seen more often.
        color_strength: see draw_colors.
        class_mix: share of the crops into which half of the classes of another frame's crop are pasted, in place.
            Source: arXiv 2007.07936, section 3.1, here with labels.
        unions: of the samples' labels, if there are any.
        read: reads a frame, from files or from a cache.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        size: tuple[int, int],
        seed: int,
        scales: Scales,
        *,
        class_uniform: float = 0.0,
        color_strength: float = 0.0,
        class_mix: float = 0.0,
        unions: Unions | None = None,
        read: Read = read_pair,
    ):
        self.samples = list(samples)
        self.size = size
        self.seed = seed
        self.scales = scales
        self.class_uniform = class_uniform
        self.color_strength = color_strength
        self.class_mix = class_mix
        self.read = read
        formats = {sample.labels for sample in self.samples} if unions else ()
        self._union_tables = {labels.unions: unions.table(labels) for labels in formats if labels.unions}
        self._classes: dict[int, np.ndarray] = {}  # present in each frame so far: counting them takes 2 ms

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
        rng = np.random.default_rng((self.seed, *key))
        image, target = self._draw(key[1], rng)
        if self.class_mix > 0 and rng.random() < self.class_mix:
            paste_classes(image, target, *self._draw(int(rng.integers(len(self))), rng), rng)
        return torch.from_numpy(image), torch.from_numpy(target), draw_colors(rng, self.color_strength)

    def _draw(self, index: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        sample = self.samples[index]
        image, label = self.read(sample)
        present = None
        if self.class_uniform > 0 and rng.random() < self.class_uniform:
            if index not in self._classes:
                self._classes[index] = np.flatnonzero(count_values(label)[:IGNORE_INDEX])
            present = self._classes[index]
        crop = self.draw_crop(label, rng, present, sample.scales or self.scales)
        target = crop_label(label, crop)
        if self._union_tables and sample.labels.unions:
            target = cv2.LUT(target, self._union_tables[sample.labels.unions])
        return crop_image(image, crop), target

    def draw_crop(
        self, label: np.ndarray, rng: np.random.Generator, present: np.ndarray | None, scales: Scales
    ) -> Crop:
        """Draws scale, position and flip; given the frame's `present` classes, a position at a pixel of one of them."""
        scale, part, flip = scales.draw(rng), (rng.random(), rng.random()), rng.random() < 0.5
        crop = place_crop(label.shape, scale, self.size, part, flip)
        if present is None or not len(present):
            return crop
        mask = (label == rng.choice(present)).ravel()
        place = np.divmod(_nth_true(mask, rng.integers(np.count_nonzero(mask))), label.shape[1])
        # `part` decides where in the crop that pixel lies.
        at = tuple(
            int(np.clip((p + 0.5) * scaled / length - share * size, 0, max(scaled - size, 0)))
            for p, scaled, length, share, size in zip(place, crop.scaled, label.shape, part, self.size, strict=True)
        )
        return crop._replace(at=at)


def paste_classes(
    image: np.ndarray, target: np.ndarray, other_image: np.ndarray, other_target: np.ndarray, rng: np.random.Generator
) -> None:
    """Pastes half of the classes of another crop, pixel for pixel, into a crop and its label.

    Args:
        image: (H, W, 3) uint8, written to.
        target: (H, W) uint8 train ids, written to.
        other_image: of the same shape.
        other_target: of the same shape; its ignored pixels are not pasted.
        rng: the sample's generator.
    """
    present = np.flatnonzero(count_values(other_target)[:IGNORE_INDEX])
    chosen = np.zeros(256, np.uint8)
    chosen[rng.choice(present, (len(present) + 1) // 2, replace=False)] = 1
    mask = cv2.LUT(other_target, chosen)
    cv2.copyTo(other_image, mask, image)
    cv2.copyTo(other_target, mask, target)


def _nth_true(mask: np.ndarray, n: int) -> int:
    """Returns the index of the n-th True, by bisection: np.flatnonzero of a whole label takes five times as long."""
    start, stop = 0, mask.size
    while stop - start > 4096:
        middle = (start + stop) // 2
        before = np.count_nonzero(mask[start:middle])
        if n < before:
            stop = middle
        else:
            start, n = middle, n - before
    return start + int(np.flatnonzero(mask[start:stop])[n])


def draw_colors(rng: np.random.Generator, strength: float) -> Tensor:
    """Draws a color distortion: (4,) brightness, contrast and saturation factors, and hue shift.

    Each is applied with a probability of one half. Paper: "color channels noise and brightness". Differs: it gives no
    amounts. Source: mmsegmentation's PhotoMetricDistortion.

    Args:
        rng: the sample's generator.
        strength: 0 changes nothing, 1 is the full range.
    """
    values = (rng.uniform(-1, 1, 4) * (rng.random(4) < 0.5) * strength).astype(np.float32)
    return torch.from_numpy(values) * torch.tensor([0.25, 0.5, 0.5, 0.05]) + UNCHANGED


def distort_colors(images: Tensor, colors: Tensor) -> Tensor:
    """Distorts the colors of images, on their device.

    Args:
        images: (N, H, W, 3) uint8.
        colors: (N, 4) on the CPU, rows of draw_colors.

    Returns:
        (N, H, W, 3) uint8.
    """
    if (colors == UNCHANGED).all():
        return images
    changes = (
        v2.functional.adjust_brightness,
        v2.functional.adjust_contrast,
        v2.functional.adjust_saturation,
        v2.functional.adjust_hue,
    )
    distorted = []
    for image, row in zip(images.permute(0, 3, 1, 2), colors, strict=True):
        for change, value, unchanged in zip(changes, row.tolist(), UNCHANGED.tolist(), strict=True):
            if value != unchanged:
                image = change(image, value)
        distorted.append(image)
    return torch.stack(distorted).permute(0, 2, 3, 1)


class EpochSampler(Sampler[list[tuple[int, int]]]):
    """Batches of (epoch, index) in an order that depends only on (seed, epoch).

    The epoch travels with the index because persistent loader workers hold copies of the data set, which never see a
    changed attribute. The last batch may be smaller; with fewer than two frames per process it is dropped, since batch
    normalisation after the 1x1 pooling bin cannot train on one.

    Args:
        length: frames of the data set.
        batch_size: frames per batch, over all processes.
        seed: the run's seed.
        part: rank and number of the processes; the batches are this rank's share.

    Raises:
        UserError: there are too few frames for a batch.
    """

    def __init__(self, length: int, batch_size: int, seed: int, part: tuple[int, int] = (0, 1)):
        if length < 2 * part[1]:
            raise UserError(
                f"found {length} training frame(s), expected at least {2 * part[1]}: a batch of one cannot train"
            )
        self.length = length
        self.batch_size = batch_size
        self.seed = seed
        self.part = part
        self.epoch = 0

    def __len__(self) -> int:
        full, rest = divmod(self.length, self.batch_size)
        return full + (rest >= 2 * self.part[1])

    @property
    def crops(self) -> int:
        """Frames in an epoch, over all processes."""
        return min(self.length, len(self) * self.batch_size)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        # `length` is not an index: the order shares its random stream with no sample.
        order = np.random.default_rng((self.seed, self.epoch, self.length)).permutation(self.length).tolist()
        rank, count = self.part
        for batch in range(len(self)):
            whole = order[batch * self.batch_size : (batch + 1) * self.batch_size]
            yield [(self.epoch, index) for index in whole[rank::count]]


def make_loader(
    options: Options, samples: Sequence[Sample], sampler: EpochSampler, read: Read, device: torch.device, unions: Unions
) -> DataLoader:
    """Returns the loader of training batches, with the augmentation of the run's options."""
    train_set = TrainSet(
        samples,
        (options.crop_h, options.crop_w),
        options.seed,
        Scales.parse(options.scales),
        class_uniform=options.class_uniform,
        color_strength=options.color_strength,
        class_mix=options.class_mix,
        unions=unions,
        read=read,
    )
    return frame_loader(
        train_set,
        options.workers,
        batch_sampler=sampler,
        persistent_workers=options.workers > 0,
        pin_memory=device.type == "cuda",
        # The loader draws a number whenever workers start. Drawn from dropout's generator, it would make the result
        # depend on the number of workers, and on when a run was resumed.
        generator=torch.Generator(),
    )
