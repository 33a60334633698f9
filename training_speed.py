"""What a training sample costs, beside the original repository's order of work."""

from __future__ import annotations

import cv2
import numpy as np

from augment import Scales, TrainSet
from dataset import IGNORE_INDEX, MEAN, STD, Sample
from timing import alternate, compare

CROP = (512, 1024)
SCALES = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0)


def original_order(
    sample: Sample, scale: float, crop: tuple[int, int], at: tuple[float, float], flip: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Makes a training sample in the original repository's order of work: the baseline of the loader.

    Decode, resize the whole picture, normalise the whole in float, pad, crop, flip; the label becomes int64.
    """
    image = cv2.imread(str(sample.image), cv2.IMREAD_COLOR)[..., ::-1]
    label = cv2.imread(str(sample.label), cv2.IMREAD_GRAYSCALE)
    size = (round(image.shape[1] * scale), round(image.shape[0] * scale))
    image = cv2.resize(image, size, interpolation=cv2.INTER_LINEAR)
    label = cv2.resize(label, size, interpolation=cv2.INTER_NEAREST)
    image = (np.asarray(image, np.float32) / 255 - np.float32(MEAN)) / np.float32(STD)
    bottom, right = (max(0, length - present) for length, present in zip(crop, label.shape, strict=True))
    if bottom or right:
        image = cv2.copyMakeBorder(image, 0, bottom, 0, right, cv2.BORDER_CONSTANT, value=(0, 0, 0))
        label = cv2.copyMakeBorder(label, 0, bottom, 0, right, cv2.BORDER_CONSTANT, value=IGNORE_INDEX)
    y, x = (int(p * (present - length + 1)) for p, present, length in zip(at, label.shape, crop, strict=True))
    image, label = image[y : y + crop[0], x : x + crop[1]], label[y : y + crop[0], x : x + crop[1]]
    image, label = image.transpose(2, 0, 1), label.astype(np.int64)
    if flip:
        image, label = image[..., ::-1], label[:, ::-1]
    return image.copy(), label.copy()


def loader_row(samples: list[Sample], repeats: int) -> dict:
    """Times one training sample on one core against the original's order of work, with the same scales drawn."""
    cv2.setNumThreads(1)
    train_set = TrainSet(samples, CROP, 0, Scales(SCALES, continuous=False))
    rng = np.random.default_rng(0)
    order = [rng.permutation(len(SCALES)) for _ in range(repeats)]
    scales = [SCALES[i] for part in order for i in part][:repeats]  # every scale equally often

    def ours(repeat: int) -> None:
        train_set.scales = Scales((scales[repeat],), continuous=False)
        train_set[repeat, repeat % len(samples)]

    def baseline(repeat: int) -> None:
        at, flip = (0.5, 0.5), bool(repeat % 2)
        original_order(samples[repeat % len(samples)], scales[repeat], CROP, at, flip)

    new, old = alternate((ours, baseline), repeats)
    return {
        "name": f"training sample, crop {CROP[0]}x{CROP[1]}, from PNG, one core",
        "stage": "training-sample",
        "backend": "opencv",
        "precision": "uint8",
        "height": CROP[0],
        "width": CROP[1],
        **compare(new, old),
        "images_per_s": len(new) / sum(new),
        "baseline_images_per_s": len(old) / sum(old),
        "throughput_ratio": sum(old) / sum(new),
    }
