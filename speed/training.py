"""Training samples, loaders, steps and whole loops, compared with the original repository's order of work."""

from __future__ import annotations

import functools
import itertools
import os
from collections.abc import Callable, Sequence

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from frames.classes import IGNORE_INDEX
from frames.samples import Read, Sample, Scales, read_pair
from frames.workers import loader_worker
from model import MEAN, STD, FastSCNN, normalise
from speed.timing import CPU, Groups, clock, compare, in_fresh_process, interleave, make_row, peak_memory
from training.augment import UNCHANGED, TrainSet
from training.learner import Learner, half_precision
from training.recipes import parse_args

CROP = (512, 1024)
QUICK_CROP = (192, 384)  # of steps and loops, whose cost per pixel is the same
BATCH = 4
SCALES = Scales((0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0), continuous=False)
SEED = 0
WORKERS = (0, 1, 2)

Key = tuple[int, int]  # epoch and index of a sample


class OriginalSet(Dataset):
    """The crops of TrainSet, drawn from the same numbers, in the original repository's order of work.

    Decode, resize the whole image, normalise the whole in float, pad, crop, flip; the label becomes int64.
    """

    def __init__(self, samples: Sequence[Sample], size: tuple[int, int]):
        self.samples = samples
        self.size = size

    def __getitem__(self, key: Key) -> tuple[Tensor, Tensor]:
        sample = self.samples[key[1]]
        rng = np.random.default_rng((SEED, *key))
        scale, at, flip = SCALES.draw(rng), (rng.random(), rng.random()), rng.random() < 0.5
        image = cv2.imread(str(sample.image), cv2.IMREAD_COLOR)[..., ::-1]
        label = cv2.imread(str(sample.label), cv2.IMREAD_GRAYSCALE)
        label = cv2.LUT(label, sample.labels.table)
        scaled = (round(image.shape[1] * scale), round(image.shape[0] * scale))
        image = cv2.resize(image, scaled, interpolation=cv2.INTER_LINEAR)
        label = cv2.resize(label, scaled, interpolation=cv2.INTER_NEAREST)
        image = (np.asarray(image, np.float32) / 255 - np.float32(MEAN)) / np.float32(STD)
        height, width = self.size
        bottom, right = max(0, height - label.shape[0]), max(0, width - label.shape[1])
        if bottom or right:
            image = cv2.copyMakeBorder(image, 0, bottom, 0, right, cv2.BORDER_CONSTANT, value=(0, 0, 0))
            label = cv2.copyMakeBorder(label, 0, bottom, 0, right, cv2.BORDER_CONSTANT, value=IGNORE_INDEX)
        y, x = int(at[0] * (label.shape[0] - height + 1)), int(at[1] * (label.shape[1] - width + 1))
        image = image[y : y + height, x : x + width].transpose(2, 0, 1)
        label = label[y : y + height, x : x + width].astype(np.int64)
        if flip:
            image, label = image[..., ::-1], label[:, ::-1]
        return torch.from_numpy(image.copy()), torch.from_numpy(label.copy())


def training_groups(samples: Sequence[Sample], cached: Read, repeats: int, quick: bool) -> Groups:
    """Measures samples, loaders, steps and loops; yields titles and rows."""
    order = "compared with the original's order of work"
    yield f"training sample, {order}", sample_rows(samples, cached, repeats)
    yield f"loader, {order}", loader_rows(samples, cached, repeats, quick)
    yield f"step, {order}", step_rows(repeats, quick)
    loops = loop_rows(samples, cached, repeats, quick)
    yield f"whole loop, {order}", loops
    for row in loops:
        ours, original = (" ".join(f"{loss:.4f}" for loss in row[f"{side}epoch_losses"]) for side in ("", "baseline_"))
        print(f"{row['name']}: mean loss of each epoch {ours}; baseline {original}")


def training_sets(samples: Sequence[Sample], cached: Read, size: tuple[int, int]) -> tuple[Dataset, Dataset, Dataset]:
    """Returns the same crops three times: ours from PNG, ours from the cache, and in the original's order of work."""
    png, cache = (TrainSet(samples, size, SEED, SCALES, read=read) for read in (read_pair, cached))
    return png, cache, OriginalSet(samples, size)


def crop_keys(frames: int, count: int) -> list[Key]:
    """Returns samples that have every scale equally often, as the scale decides what a sample costs the baseline."""

    def find(frame: int, scale: float) -> Key:
        keys = ((epoch, frame) for epoch in itertools.count(1))
        return next(key for key in keys if SCALES.draw(np.random.default_rng((SEED, *key))) == scale)

    # Every third scale in turn, so that a few samples have small and large ones too.
    return [find(i % frames, SCALES.values[3 * i % len(SCALES.values)]) for i in range(count)]


def training_row(name: str, stage: str, ours: Sequence[float], baseline: Sequence[float], size: Sequence[int]) -> dict:
    """Returns a row from the seconds per image of each repetition; its ratio is that of the rates."""
    backend, precision = "opencv", "uint8"
    if stage in ("training-step", "training-loop"):
        backend, precision = "torch", "bf16" if half_precision(CPU) == torch.bfloat16 else "fp32"
    row = make_row(name, stage, backend, precision, size, **compare(ours, baseline))
    row["images_per_s"] = len(ours) / sum(ours)
    row["baseline_images_per_s"] = len(baseline) / sum(baseline)
    row["ratio"] = row["images_per_s"] / row["baseline_images_per_s"]
    return row


def source_rows(
    name: str, stage: str, timers: Sequence[Callable[[], float]], repeats: int, size: Sequence[int]
) -> list[dict]:
    """Returns a row for each source of frames, by timers of training_sets; `name` has a place for the source."""
    png, cache, original = interleave(timers, repeats)
    return [
        training_row(name.format("PNG"), stage, png, original, size),
        training_row(name.format("cache"), stage, cache, original, size),
    ]


def sample_rows(samples: Sequence[Sample], cached: Read, repeats: int) -> list[dict]:
    """Times one training sample on one core, from PNG and from the cache."""
    cv2.setNumThreads(1)
    keys = crop_keys(len(samples), repeats)

    def timer(data: Dataset) -> Callable[[], float]:
        order = iter([keys[0], *keys])  # one more for the warm-up
        return lambda: clock(lambda: data[next(order)])

    timers = [timer(data) for data in training_sets(samples, cached, CROP)]
    name = f"training sample, crop {CROP[0]}x{CROP[1]}, from {{}}, one core"
    return source_rows(name, "training-sample", timers, repeats, CROP)


def epoch_timer(
    data: Dataset, keys: Sequence[Key], workers: int, step: Callable[..., object] = lambda *batch: None
) -> Callable[[], float]:
    """Returns a function that takes a step with each batch of an epoch, and returns the seconds per image."""
    batches = [keys[start : start + BATCH] for start in range(0, len(keys), BATCH)]
    options = {"worker_init_fn": loader_worker, "persistent_workers": workers > 0}
    loader = DataLoader(data, batch_sampler=batches, num_workers=workers, **options)

    def epoch() -> None:
        for batch in loader:
            step(*batch)

    return lambda: clock(epoch) / len(keys)


def loader_rows(samples: Sequence[Sample], cached: Read, repeats: int, quick: bool) -> list[dict]:
    """Times whole loaders, over the number of their workers; an epoch of each in turn, while the others are idle."""
    keys = crop_keys(len(samples), 2 if quick else 7)
    # With as many crops as the others, an epoch from the cache would be over before all workers have started.
    epochs = (keys, 8 * keys, keys)
    rows = []
    for workers in WORKERS[::2] if quick else WORKERS:
        sets = training_sets(samples, cached, CROP)
        timers = [epoch_timer(data, epoch, workers) for data, epoch in zip(sets, epochs, strict=True)]
        name = f"loader, {workers} worker{'' if workers == 1 else 's'}, from {{}}"
        rows += source_rows(name, "training-loader", timers, 1 if quick else min(repeats, 5), CROP)
    return rows


def our_step() -> Callable[..., Tensor]:
    """Returns a function from a batch of TrainSet to its loss, after a step in the CPU's fastest precision."""
    torch.manual_seed(SEED)
    args = parse_args(["--batch_size", str(BATCH)])
    learner = Learner(args, FastSCNN(), CPU, 1_000_000, half_precision(CPU))
    numbers = itertools.count()
    return lambda *batch: learner.step(next(numbers), *batch)[0]


def original_step() -> Callable[..., float]:
    """Returns the same for OriginalSet: float32 in NCHW, logits upsampled at once, the loss read in every step."""
    torch.manual_seed(SEED)
    model = FastSCNN()
    optimizer = torch.optim.Adam(model.parameters())

    def step(images: Tensor, targets: Tensor) -> float:
        loss = F.cross_entropy(model(images), targets, ignore_index=IGNORE_INDEX)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def step_on_noise(ours: bool, size: tuple[int, int]) -> Callable[[], object]:
    """Returns a function that takes a step, ours or the original's, with a prepared batch."""
    generator = torch.Generator().manual_seed(SEED)
    images = torch.randint(0, 256, (BATCH, *size, 3), dtype=torch.uint8, generator=generator)
    targets = torch.randint(0, 19, (BATCH, *size), dtype=torch.uint8, generator=generator)
    if ours:
        return functools.partial(our_step(), images, targets, UNCHANGED.expand(BATCH, 4))
    return functools.partial(original_step(), normalise(images).contiguous(), targets.long())


def peak_of_two_steps(ours: bool, size: tuple[int, int]) -> float:
    """Returns the highest memory use of this process in MiB after two steps."""
    step = step_on_noise(ours, size)
    step()
    step()
    return peak_memory()


def step_rows(repeats: int, quick: bool) -> list[dict]:
    """Times steps on prepared batches, and unless `quick` takes their peak memory, each in a process of its own."""
    size = QUICK_CROP if quick else CROP
    timers = [functools.partial(clock, step_on_noise(ours, size)) for ours in (True, False)]
    times = interleave(timers, 2 if quick else min(repeats, 7))
    ours, original = ([seconds / BATCH for seconds in side] for side in times)
    row = training_row(f"step, {BATCH} crops of {size[0]}x{size[1]}", "training-step", ours, original, size)
    if not quick:
        row["peak_mib"] = in_fresh_process(peak_of_two_steps, True, size)
        row["baseline_peak_mib"] = in_fresh_process(peak_of_two_steps, False, size)
    return [row]


def loop_rows(samples: Sequence[Sample], cached: Read, repeats: int, quick: bool) -> list[dict]:
    """Times whole loops, loader and steps; each epoch has the same crops for all, the first from the same weights."""
    size = QUICK_CROP if quick else CROP
    workers = min(2, os.cpu_count() or 1)
    keys = crop_keys(len(samples), 2 * BATCH if quick else 7 * BATCH)
    losses: list[list[float]] = []

    def timer(data: Dataset, step: Callable[..., object]) -> Callable[[], float]:
        seen: list[float] = []
        losses.append(seen)
        return epoch_timer(data, keys, workers, lambda *batch: seen.append(float(step(*batch))))

    steps = (our_step(), our_step(), original_step())
    timers = [timer(data, step) for data, step in zip(training_sets(samples, cached, size), steps, strict=True)]
    name = f"loop, {workers} workers, {BATCH} crops of {size[0]}x{size[1]}, from {{}}"
    rows = source_rows(name, "training-loop", timers, 1 if quick else min(repeats, 3), size)
    count = len(keys) // BATCH
    means = [[sum(seen[n : n + count]) / count for n in range(0, len(seen), count)] for seen in losses]
    for row, epoch_losses in zip(rows, means[:2], strict=True):
        row["epoch_losses"] = epoch_losses
        row["baseline_epoch_losses"] = means[2]
    return rows
