"""Predictions on a CUDA GPU, from images in its memory to labels in its memory.

python -m speed.gpu --quick

This file needs torch and NumPy only, so that it runs on a bare GPU machine. All variants run in turn with the
baseline; one that cannot be prepared is reported in one line and skipped.
"""

from __future__ import annotations

import argparse
import copy
import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from inference.cuda import GraphNetwork
from model import FastSCNN
from speed.plain import PlainNetwork, measured_network
from speed.timing import SIZES, STAGES, Groups, clock, compare, interleave, machine, make_row, report
from utils import UserError, run_cli

BATCHES = (1, 2, 4, 8, 16, 32)
PRECISIONS = ("fp16", "bf16", "fp32")  # the first size runs in all of them, the others in the first
# Source: arXiv 1902.04502, and the original repository's README.
REPORTED = (("paper, Titan Xp, batch 1", 123.5), ("original repository, V100, batch 12", 197.0))
BURST = 8  # calls that are queued at once to measure throughput
NAMES = {
    "baseline": "baseline: eager NCHW, interpolate + argmax",
    "torch": "eager channels_last",
    "torch-graph": "CUDA graph",
}


class Variant(NamedTuple):
    """One way to compute a stage of some images: its row, still without times, and the call to be timed."""

    row: dict
    call: Callable[[], Tensor]


def prepare(backend: str, precision: str, stage: str, model: FastSCNN, images: Tensor) -> list[Variant]:
    """Returns a variant after its first call, or no variant if that fails, with a line that says why."""
    batch, *size, _ = images.shape
    device = images.device
    prefix = "network, " if stage == "network" else ""
    name = f"{prefix}{NAMES[backend]}, {precision}, {size[0]}x{size[1]}, batch {batch}"
    try:
        if backend == "baseline":
            network = PlainNetwork(model)
        else:
            network = GraphNetwork(model, device, precision)
            if backend != "torch-graph":
                network = network.network  # which it records
        function = network.logits if stage == "network" else network.labels
        if function(images).is_cuda:
            torch.cuda.synchronize()
    except Exception as error:  # drivers raise anything
        reason = (str(error).strip().splitlines() or [""])[0][:160]
        print(f"{name}: not run ({type(error).__name__}: {reason})", flush=True)
        return []
    row = make_row(name, stage, backend, precision, size, batch=batch)
    row["device"] = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return [Variant(row, functools.partial(function, images))]


def measure(variants: Sequence[Variant], device: torch.device, repeats: int, burst: int = 1) -> list[dict]:
    """Times variants in turn, and compares their labels with the labels of the first, the baseline.

    Returns:
        A row for each; `equal` is the share of equal labels, None for the network without a label head.
    """
    times = interleave([functools.partial(clock, variant.call, device, burst) for variant in variants], repeats, device)
    expected = variants[0].call()
    rows = []
    for variant, seconds in zip(variants, times, strict=True):
        row = {**variant.row, "queued": burst, **compare(seconds, times[0])}
        if burst > 1:
            row["name"] += ", queued"
        row["images_per_s"] = 1e3 * row["batch"] / row["median_ms"]
        row["equal"] = None if row["stage"] == "network" else float((variant.call() == expected).float().mean())
        rows.append(row)
    return rows


def stage_rows(
    stage: str, model: FastSCNN, images: Tensor, backends: Sequence[str], precision: str, repeats: int, burst: int = 1
) -> list[dict]:
    """Prepares and measures a stage on backends; there are no rows if the baseline or all of the backends fail."""
    variants = [variant for backend in backends for variant in prepare(backend, precision, stage, model, images)]
    baseline = prepare("baseline", "fp32", stage, model, images)
    if not variants or not baseline:
        return []
    try:
        return measure([*baseline, *variants], images.device, repeats, burst)
    except torch.cuda.OutOfMemoryError:
        print(f"batch {len(images)}: not run (the baseline does not fit into the GPU's memory)", flush=True)
        return []


def throughput_rows(model: FastSCNN, image: np.ndarray, batches: Sequence[int], repeats: int) -> list[dict]:
    """Times batches, queued behind each other, until one does not fit."""
    rows: list[dict] = []
    for batch in batches:
        images = resized(image, SIZES[0], batch, next(model.parameters()).device)
        measured = stage_rows(STAGES[0], model, images, ["torch-graph"], PRECISIONS[0], repeats, BURST)
        if not measured:
            break
        rows += measured
    return rows


def resized(image: np.ndarray, size: tuple[int, int], batch: int, device: torch.device) -> Tensor:
    """Returns a (H, W, 3) uint8 image as (N, height, width, 3) on the device."""
    source = torch.from_numpy(np.ascontiguousarray(image)).to(device).permute(2, 0, 1)[None].float()
    scaled = F.interpolate(source, size, mode="bilinear").round().to(torch.uint8)
    return scaled.permute(0, 2, 3, 1).expand(batch, *size, 3).contiguous()


@torch.no_grad()
def gpu_rows(model: FastSCNN, image: np.ndarray, repeats: int, quick: bool, device: str = "cuda") -> Groups:
    """Measures a (H, W, 3) uint8 image, resized to every size, the largest first; yields titles and rows.

    With `quick`, the smaller sizes, the other precisions and the largest batches are left out. On a CPU nothing is
    recorded or timed by events.
    """
    model = copy.deepcopy(model).eval().requires_grad_(False).to(device)
    backends = ["torch", "torch-graph"]
    for size in SIZES[:1] if quick else SIZES:
        images = resized(image, size, 1, torch.device(device))
        if size == SIZES[0]:
            rows = stage_rows("network", model, images, backends, PRECISIONS[0], repeats)
            yield "network, to the logits at 1/8", rows
        for precision in PRECISIONS if size == SIZES[0] and not quick else PRECISIONS[:1]:
            yield "picture to labels", stage_rows(STAGES[0], model, images, backends, precision, repeats)
    yield "throughput", throughput_rows(model, image, BATCHES[:4] if quick else BATCHES, repeats)
    for name, rate in REPORTED:
        print(f"reported, other hardware: {rate:g} frames/s ({name})")


def build_parser() -> argparse.ArgumentParser:
    """Returns the parser of the command line."""
    parser = argparse.ArgumentParser(
        description="Measure predictions on a CUDA GPU.", formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    switch = argparse.BooleanOptionalAction
    parser.add_argument("--model_weight", metavar="FILE", help="weights; weights/street.pth if not given")
    parser.add_argument("--repeats", metavar="N", type=int, default=50, help="repetitions of each side")
    parser.add_argument("--json", metavar="FILE", help="write the rows here, anew after each group")
    parser.add_argument("--quick", action=switch, default=False, help="1024x2048 in fp16 only, nothing slow to prepare")
    return parser


def parse_args() -> argparse.Namespace:
    """Reads the command line."""
    args = build_parser().parse_args()
    if args.repeats < 3:
        raise UserError(f"--repeats is {args.repeats}, expected at least 3 for a median")
    return args


def main() -> int:
    """Prints the rows."""
    args = parse_args()
    if not torch.cuda.is_available():
        raise UserError("no CUDA device: nothing was measured; benchmark.py measures the processor")
    model = measured_network(args.model_weight)
    print(
        f"{torch.cuda.get_device_name()}, torch {torch.__version__}, CUDA {torch.version.cuda}, "
        f"cuDNN {torch.backends.cudnn.version()}; {machine()}"
    )
    print(f"{args.repeats} repetitions of each side, alternately; medians, smallest and largest", flush=True)
    blobs = np.random.default_rng(0).integers(0, 256, (9, 18, 3), np.uint8)  # once they are enlarged
    report(gpu_rows(model, blobs, args.repeats, args.quick), markdown=False, path=args.json)
    return 0


if __name__ == "__main__":
    run_cli(main)
