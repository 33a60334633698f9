"""What training samples, loaders and steps cost, beside the original repository's order of work."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterable, Sequence

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from dataset import ID_TO_TRAIN_ID, IGNORE_INDEX, Read, Sample, loader_worker, read_pair
from model import MEAN, STD, FastSCNN, normalise
from speed.timing import alternate, compare, peak_in_fresh_process
from training.augment import UNCHANGED, Scales, TrainSet
from training.learner import Learner, half_precision
from training.recipes import parse_args

CROP = (512, 1024)
QUICK_CROP = (192, 384)  # of steps and loops, whose cost is the same a pixel
BATCH = 4
SCALES = Scales((0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0), continuous=False)
SEED = 0
WORKERS = (0, 1, 2)

Key = tuple[int, int]  # epoch and index of a sample


def original_order(
    sample: Sample, scale: float, crop: tuple[int, int], at: tuple[float, float], flip: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Makes a training sample in the original repository's order of work: the baseline of the loader.

    Decode, resize the whole picture, normalise the whole in float, pad, crop, flip; the label becomes int64.
    """
    image = cv2.imread(str(sample.image), cv2.IMREAD_COLOR)[..., ::-1]
    label = cv2.imread(str(sample.label), cv2.IMREAD_GRAYSCALE)
    label = label if sample.label_is_train_ids else cv2.LUT(label, ID_TO_TRAIN_ID)
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


class OriginalSet(Dataset):
    """The crops of a TrainSet with SEED and SCALES, drawn from the same numbers, in the original's order of work."""

    def __init__(self, samples: Sequence[Sample], size: tuple[int, int] | None = None):
        self.samples, self.size = samples, size or CROP

    def __getitem__(self, key: Key) -> tuple[Tensor, Tensor]:
        rng = np.random.default_rng((SEED, *key))
        scale, at, flip = SCALES.draw(rng), (rng.random(), rng.random()), rng.random() < 0.5
        image, label = original_order(self.samples[key[1]], scale, self.size, at, flip)
        return torch.from_numpy(image), torch.from_numpy(label)


def crop_keys(frames: int, count: int) -> list[Key]:
    """Returns samples that have every scale equally often: what a sample costs the baseline goes with its scale."""
    rng = np.random.default_rng(0)
    scales = [SCALES.values[i] for _ in range(-(-count // len(SCALES.values))) for i in rng.permutation(7)][:count]
    return [
        next((epoch, i % frames) for epoch in itertools.count(1) if _scale((epoch, i % frames)) == scale)
        for i, scale in enumerate(scales)
    ]


def _scale(key: Key) -> float:
    return SCALES.draw(np.random.default_rng((SEED, *key)))


def _row(name: str, stage: str, ours: Sequence[float], baseline: Sequence[float], size: tuple[int, int] = CROP) -> dict:
    """A row of training, from the seconds that an image took in each repetition; its ratio is that of the rates."""
    compared = compare(ours, baseline)
    rates = len(ours) / sum(ours), len(baseline) / sum(baseline)
    return {
        "name": name,
        "stage": stage,
        "backend": "opencv",
        "precision": "uint8",
        "height": size[0],
        "width": size[1],
        **compared,
        "images_per_s": rates[0],
        "baseline_images_per_s": rates[1],
        "ratio": rates[0] / rates[1],
    }


def sample_rows(samples: Sequence[Sample], cached: Read, repeats: int, quick: bool) -> list[dict]:
    """Times one training sample on one core, from PNG and from the cache."""
    cv2.setNumThreads(1)
    keys = crop_keys(len(samples), repeats)
    sides = [TrainSet(samples, CROP, SEED, SCALES, read=read) for read in (read_pair, cached)]
    png, cache, old = alternate(
        [lambda n, side=side: side[keys[n]] for side in (*sides, OriginalSet(samples))], repeats
    )
    name = f"training sample, crop {CROP[0]}x{CROP[1]}, from"
    return [
        _row(f"{name} PNG, one core", "training-sample", png, old),
        _row(f"{name} cache, one core", "training-sample", cache, old),
    ]


def loader_rows(samples: Sequence[Sample], cached: Read, repeats: int, quick: bool) -> list[dict]:
    """Times whole loaders, over the number of their workers; an epoch of each in turn, while the others are idle."""
    keys = crop_keys(len(samples), 2 if quick else 7)
    ours = [TrainSet(samples, CROP, SEED, SCALES, read=read) for read in (read_pair, cached)]
    # With as many crops as the others, an epoch from the cache would be over before the workers are all at it.
    epochs = [keys, 8 * keys, keys]
    rows = []
    for workers in WORKERS[::2] if quick else WORKERS:
        sides = zip((*ours, OriginalSet(samples)), epochs, strict=True)
        loaders = [_loader(data, epoch, workers) for data, epoch in sides]
        functions = [lambda _, loader=loader: sum(1 for _ in loader) for loader in loaders]
        times = alternate(functions, 1 if quick else min(repeats, 5))
        png, cache, old = ([t / len(epoch) for t in side] for side, epoch in zip(times, epochs, strict=True))
        name = f"loader, {workers} worker{'' if workers == 1 else 's'}, from"
        rows.append(_row(f"{name} PNG", "training-loader", png, old))
        rows.append(_row(f"{name} cache", "training-loader", cache, old))
    return rows


def _loader(data: Dataset, epoch: Sequence[Key], workers: int) -> DataLoader:
    batches = [epoch[start : start + BATCH] for start in range(0, len(epoch), BATCH)]
    options = {"worker_init_fn": loader_worker, "persistent_workers": workers > 0}
    return DataLoader(data, batch_sampler=batches, num_workers=workers, **options)


class OriginalLoop:
    """The original repository's loop: float32 in NCHW, logits enlarged all at once, the loss read in every step."""

    def __init__(self) -> None:
        torch.manual_seed(SEED)
        self.model = FastSCNN().train()
        self.optimizer = torch.optim.Adam(self.model.parameters())

    def step(self, images: Tensor, targets: Tensor) -> float:
        """Learns from (N, 3, H, W) float32 and (N, H, W) int64."""
        loss = F.cross_entropy(self.model(images), targets, ignore_index=IGNORE_INDEX)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss.item()


def make_learner() -> Learner:
    """Returns a learner of the original's recipe, in the precision that the CPU is fastest in."""
    torch.manual_seed(SEED)
    cpu = torch.device("cpu")
    return Learner(parse_args(["--batch_size", str(BATCH)]), FastSCNN(), cpu, 1_000_000, half_precision(cpu))


def _batch(size: tuple[int, int]) -> list[Tensor]:
    """Noise for steps alone: images and targets as TrainSet gives them, and no change of colors."""
    generator = torch.Generator().manual_seed(SEED)
    images = torch.randint(0, 256, (BATCH, *size, 3), dtype=torch.uint8, generator=generator)
    targets = torch.randint(0, 19, (BATCH, *size), dtype=torch.uint8, generator=generator)
    return [images, targets, UNCHANGED.expand(BATCH, 4)]


def our_steps(size: tuple[int, int]) -> Callable[[int], object]:
    """Returns what takes a step with a batch that lies ready."""
    learner, batch = make_learner(), _batch(size)
    learner.model.train()
    return lambda number: learner.step(number, *batch)


def original_steps(size: tuple[int, int]) -> Callable[[int], object]:
    """Returns the same for the original."""
    loop, (images, targets, _) = OriginalLoop(), _batch(size)
    images, targets = normalise(images).contiguous(), targets.long()
    return lambda _: loop.step(images, targets)


def two_steps(make: Callable[[tuple[int, int]], Callable[[int], object]], size: tuple[int, int]) -> None:
    """What the peak memory is that of."""
    step = make(size)
    for number in range(2):
        step(number)


def step_rows(samples: Sequence[Sample], cached: Read, repeats: int, quick: bool) -> list[dict]:
    """Times training steps alone, and takes their memory, each side in a process of its own."""
    size = QUICK_CROP if quick else CROP
    times = alternate([our_steps(size), original_steps(size)], 2 if quick else min(repeats, 7))
    ours, old = ([t / BATCH for t in side] for side in times)
    row = _row(f"step, {BATCH} crops of {size[0]}x{size[1]}", "training-step", ours, old, size)
    if not quick:
        row["peak_mib"] = peak_in_fresh_process(two_steps, our_steps, size)
        row["baseline_peak_mib"] = peak_in_fresh_process(two_steps, original_steps, size)
    return [{**row, **_computed()}]


def loop_rows(samples: Sequence[Sample], cached: Read, repeats: int, quick: bool) -> list[dict]:
    """Times whole loops, loader and steps; each epoch has the same crops for all, the first from the same weights."""
    size, workers = QUICK_CROP if quick else CROP, min(2, os.cpu_count() or 1)
    keys = crop_keys(len(samples), 2 * BATCH if quick else 7 * BATCH)
    learners, loop = [make_learner(), make_learner()], OriginalLoop()
    losses: list[list[float]] = [[], [], []]

    def epoch(side: int, loader: Iterable) -> None:
        for batch in loader:
            if side < 2:
                learners[side].model.train()
                loss = learners[side].step(len(losses[side]), *batch)[0]
            else:
                loss = loop.step(*batch)
            losses[side].append(float(loss))

    data = [*(TrainSet(samples, size, SEED, SCALES, read=read) for read in (read_pair, cached))]
    loaders = [_loader(one, keys, workers) for one in (*data, OriginalSet(samples, size))]
    functions = [lambda _, side=side, loader=loader: epoch(side, loader) for side, loader in enumerate(loaders)]
    png, cache, old = ([t / len(keys) for t in side] for side in alternate(functions, 1 if quick else min(repeats, 3)))
    name = f"loop, {workers} workers, {BATCH} crops of {size[0]}x{size[1]}, from"
    first = len(keys) // BATCH
    means = [[sum(side[n : n + first]) / first for n in range(0, len(side), first)] for side in losses]
    return [
        {
            **_row(f"{name} {where}", "training-loop", ours, old, size),
            **_computed(),
            "epoch_losses": mean,
            "baseline_epoch_losses": means[2],
        }
        for where, ours, mean in (("PNG", png, means[0]), ("cache", cache, means[1]))
    ]


def _computed() -> dict[str, str]:
    half = half_precision(torch.device("cpu"))
    return {"backend": "torch", "precision": "bf16" if half == torch.bfloat16 else "fp32"}
