"""The reported speed, both sides of every comparison alternately in one run.

python benchmark.py
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from augment import Scales, TrainSet
from dataset import IGNORE_INDEX, MEAN, STD, DataError, Sample, find_samples
from model import FastSCNN
from synthetic import write_dataset
from utils import UserError, count_parameters_and_macs, run_cli, write_file

FRAME = (1024, 2048)
CROP = (512, 1024)
SCALES = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0)


def parse_args() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description="Measure parameters, multiply-adds and the time of a training sample.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--data_path", help="frames to read; without it some are drawn at 1024x2048")
    parser.add_argument("--repeats", type=int, default=35, help="samples that each side makes")
    parser.add_argument("--json", metavar="FILE", help="write the rows here")
    args = parser.parse_args()
    if args.repeats < 3:
        raise UserError(f"--repeats is {args.repeats}, expected at least 3 for a median")
    return args


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


def alternate(ours: Callable[[int], object], baseline: Callable[[int], object], repeats: int) -> tuple[list, list]:
    """Times two functions of the repetition's number in turn, after one call of each; returns seconds of each."""
    times: tuple[list, list] = ([], [])
    for repeat in range(-1, repeats):
        for function, seconds in zip((ours, baseline), times, strict=True):
            start = time.perf_counter()
            function(max(repeat, 0))
            if repeat >= 0:
                seconds.append(time.perf_counter() - start)
    return times


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

    new, old = alternate(ours, baseline, repeats)
    ratio = statistics.median(b / a for a, b in zip(new, old, strict=True))
    mean_ratio = sum(old) / sum(new)
    return {
        "name": f"training sample, crop {CROP[0]}x{CROP[1]}",
        "median_ms": 1e3 * statistics.median(new),
        "baseline_median_ms": 1e3 * statistics.median(old),
        "spread_ms": [1e3 * min(new), 1e3 * max(new)],
        "baseline_spread_ms": [1e3 * min(old), 1e3 * max(old)],
        "ratio": ratio,
        "images_per_s": len(new) / sum(new),
        "baseline_images_per_s": len(old) / sum(old),
        "throughput_ratio": mean_ratio,
    }


def size_row() -> dict:
    """Counts parameters and multiply-adds at 1024x2048."""
    parameters, thop_macs = count_parameters_and_macs(FastSCNN(), *FRAME)
    with torch.device("meta"), FlopCounterMode(display=False) as counter, torch.no_grad():
        FastSCNN().eval()(torch.empty(1, 3, *FRAME))
    return {
        "name": f"Fast-SCNN, {FRAME[0]}x{FRAME[1]}",
        "parameters": parameters,
        "macs": counter.get_total_flops() // 2,
        "thop_macs": thop_macs,
    }


def main() -> int:
    """Prints the rows."""
    args = parse_args()
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}")
    size = size_row()
    print(f"\n{'':<24}{'parameters':>12}{'MACs':>10}")
    print(
        f"{'this repository':<24}{size['parameters'] / 1e6:>10.2f} M{size['macs'] / 1e9:>8.2f} G"
        f"  convolutions and matrix products; thop says {size['thop_macs'] / 1e9:.2f} G, counting batch norm too"
    )
    print(f"{'original, reported':<24}{1.14:>10.2f} M{6.92:>8.2f} G  an older thop")
    print(f"{'paper, reported':<24}{1.11:>10.2f} M{'-':>10}")
    with tempfile.TemporaryDirectory() as folder:
        if args.data_path is None:
            write_dataset(Path(folder), *FRAME, train=4, val=0, test=0, seed=0)
        row = loader_row(find_samples(args.data_path or folder, "train"), args.repeats)
    print(f"\n{row['name']}, from PNG, one core, {args.repeats} samples of each side, alternately")
    print(f"{'':<24}{'median':>12}{'spread':>18}{'samples/s':>12}")
    for name, prefix in (("this repository", ""), ("original's order", "baseline_")):
        low, high = row[f"{prefix}spread_ms"]
        rate = row[f"{prefix}images_per_s"]
        print(f"{name:<24}{row[f'{prefix}median_ms']:>9.1f} ms{f'{low:.0f} - {high:.0f} ms':>18}{rate:>12.1f}")
    print(f"{'ratio':<24}{row['ratio']:>9.2f} x{'':>19}{row['throughput_ratio']:>10.2f} x")
    if args.json:
        write_file(args.json, json.dumps([size, row], indent=2).encode())
    return 0


if __name__ == "__main__":
    run_cli(main, DataError)
