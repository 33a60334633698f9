"""The reported speed, both sides of every comparison alternately in one run.

python benchmark.py --quick
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

import cv2
import torch
from torch.utils.flop_counter import FlopCounterMode

from dataset import DataError, find_samples, read_image
from inference.checkpoints import load_model
from model import FastSCNN
from speed.gpu import gpu_rows
from speed.predictions import STAGES, add_memory, label_head_rows, open_sides, picture_rows
from speed.timing import in_fresh_process, machine, table
from street.scene import draw_scene
from training.cache import open_cache
from utils import UserError, count_parameters_and_macs, keep_freed_memory, run_cli, save_checkpoint, write_file

FRAME = (1024, 2048)
SIZES = (FRAME, (512, 1024), (360, 480))
MOST_FRAMES = 8  # that training rows read: a cache of all of Cityscapes takes 27 GiB
WEIGHTS = Path(__file__).resolve().parent / "weights" / "camvid.pth"


def parse_args() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description="Measure parameters, multiply-adds, predictions and training samples.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--data_path", help="frames to read; without it some are drawn at 1024x2048")
    parser.add_argument("--model_weight", help="weights to predict with (default: weights/camvid.pth)")
    parser.add_argument("--repeats", type=int, default=35, help="repetitions of each side")
    parser.add_argument("--train", action=argparse.BooleanOptionalAction, default=False, help="training rows only")
    parser.add_argument("--quick", action=argparse.BooleanOptionalAction, default=False,
                        help="three repetitions, nothing that takes long to prepare; under a minute")  # fmt: skip
    parser.add_argument("--json", metavar="FILE", help="write the rows here")
    parser.add_argument("--markdown", action=argparse.BooleanOptionalAction, default=False,
                        help="print the tables for a README")  # fmt: skip
    args = parser.parse_args()
    if args.repeats < 3:
        raise UserError(f"--repeats is {args.repeats}, expected at least 3 for a median")
    if args.quick:
        args.repeats = 3
    return args


def size_row() -> dict:
    """Counts parameters and multiply-adds at 1024x2048."""
    parameters, thop_macs = count_parameters_and_macs(FastSCNN(), *FRAME)
    with torch.device("meta"), FlopCounterMode(display=False) as counter, torch.no_grad():
        FastSCNN().eval()(torch.empty(1, 3, *FRAME))
    return {"parameters": parameters, "macs": counter.get_total_flops() // 2, "thop_macs": thop_macs}


def print_size(row: dict, markdown: bool) -> None:
    """Prints the size of the network beside what was reported elsewhere."""
    lines = [
        ("this repository", f"{row['parameters'] / 1e6:.2f} M", f"{row['macs'] / 1e9:.2f} G",
         f"{row['thop_macs'] / 1e9:.2f} G"),
        ("original, reported", "1.14 M", "-", "6.92 G (older thop)"),
        ("paper, reported", "1.11 M", "-", "-"),
    ]  # fmt: skip
    print(table((f"at {FRAME[0]}x{FRAME[1]}", "parameters", "MACs", "MACs by thop"), lines, markdown))


def print_rows(title: str, rows: list[dict], markdown: bool) -> None:
    """Prints measured rows and the baseline that they were measured beside."""

    def spread(row: dict, prefix: str) -> str:
        return f"{row[f'{prefix}low_ms']:.1f} - {row[f'{prefix}high_ms']:.1f}"

    lines = [
        (
            row["name"], f"{row['median_ms']:.1f}", spread(row, ""), f"{row['baseline_median_ms']:.1f}",
            spread(row, "baseline_"), f"{row['ratio']:.2f}",
            f"{row['peak_mib']:.0f} / {row['baseline_peak_mib']:.0f}" if "peak_mib" in row else "",
        )
        for row in rows
    ]  # fmt: skip
    header = (title, "ms", "spread", "baseline ms", "spread", "times faster", "peak MiB / baseline")
    keep = len(header) - (not any("peak_mib" in row for row in rows))
    print()
    print(table(header[:keep], [line[:keep] for line in lines], markdown), flush=True)


def inference_rows(args: argparse.Namespace, folder: Path) -> list[dict]:
    """Measures and prints predictions: engines at every size, then the label head."""
    weights = args.model_weight or (str(WEIGHTS) if WEIGHTS.is_file() else None)
    if weights is None:
        torch.manual_seed(0)
        weights = str(folder / "random.pth")
        torch.save(FastSCNN().state_dict(), weights)
        print("\nno weights: the network is random, and its labels are noise")
    model, metadata = load_model(weights)
    if model.input_scale != 1:
        print(f"\n{weights} enlarges its input by {model.input_scale:g}: here it runs without")
        weights = str(folder / "weights.pth")
        save_checkpoint(weights, {"model": model.state_dict(), "metadata": {**metadata, "input_scale": 1.0}})
        model, _ = load_model(weights)
    if args.data_path:
        samples = find_samples(args.data_path, "val")
        scene = read_image(samples[len(samples) // 2].image)
        pictures = [read_image(sample.image) for sample in samples[:: max(1, len(samples) // 16)]]
    else:
        scene, pictures = draw_scene(0, *FRAME)[0], [draw_scene(seed, 512, 1024)[0] for seed in range(4)]
    rows = []
    with ExitStack() as stack:
        sides, missing = open_sides(model, weights, folder, pictures, FRAME if args.quick else None, stack)
        print("\n".join(["", *missing]) if missing else "")
        for height, width in SIZES[:1] if args.quick else SIZES:
            picture = cv2.resize(scene, (width, height), interpolation=cv2.INTER_LINEAR)
            measured = picture_rows(sides, picture, args.repeats)
            if (height, width) == FRAME:  # the first: later it would be the same
                add_memory(measured, sides)
            for stage, title in zip(STAGES, ("picture to labels", "network, to the logits at 1/8"), strict=True):
                print_rows(title, [row for row in measured if row["stage"] == stage], args.markdown)
            heads = label_head_rows(model, picture, args.repeats)
            print_rows("label head", heads, args.markdown)
            for row in heads:
                same = "every label equal" if row["same"] else "labels differ (only exact ties may)"
                print(f"{row['name']}: {100 * row['mixed_share']:.1f} % of the cells are mixed, {same}")
            rows += measured + heads
    if torch.cuda.is_available():
        return rows + gpu_rows(model, scene, args.repeats, args.quick)
    print("\nno CUDA device: GPU rows not run")
    return rows


def draw_frames(folder: Path, count: int) -> None:
    """Draws training frames of 1024x2048."""
    sizes = {"height": FRAME[0], "width": FRAME[1], "train": count, "val": 0, "test": 0}
    flags = [f"--{name}={value}" for name, value in {"output": folder, **sizes}.items()]
    script = Path(__file__).resolve().parent / "synthetic.py"
    subprocess.run([sys.executable, str(script), *flags], check=True, capture_output=True)


def training_rows(args: argparse.Namespace, folder: Path) -> list[dict]:
    """Measures and prints training samples and loaders."""
    # Here, as it imports torchvision: over a second, in each process whose memory is measured too.
    from speed.training import loader_rows, loop_rows, sample_rows, step_rows

    if args.data_path is None:
        draw_frames(folder / "frames", 2 if args.quick else 4)
    samples = find_samples(args.data_path or folder / "frames", "train")
    samples = samples[:: -(-len(samples) // MOST_FRAMES)]
    cached = open_cache(folder / "cache", samples).read
    keep_freed_memory()  # as in training; both sides have it
    rows = []
    for title, measure in (
        ("training sample", sample_rows), ("loader", loader_rows), ("step", step_rows), ("whole loop", loop_rows)
    ):  # fmt: skip
        measured = measure(samples, cached, args.repeats, args.quick)
        print_training_rows(f"{title}, beside the original's order of work", measured, args.markdown)
        rows += measured
    for row in rows:
        if "peak_mib" in row:
            print(f"\n{row['name']}: peak memory {row['peak_mib']:.0f} MiB, baseline {row['baseline_peak_mib']:.0f}")
        if "epoch_losses" in row:
            ours, old = (", ".join(f"{loss:.4f}" for loss in row[f"{side}epoch_losses"]) for side in ("", "baseline_"))
            print(f"{row['name']}: mean loss of each epoch {ours}; baseline {old}")
    return rows


def print_training_rows(title: str, rows: list[dict], markdown: bool) -> None:
    """Prints rates, and the rates that they were measured beside."""
    lines = [
        (
            row["name"], f"{row['images_per_s']:.1f}", f"{row['baseline_images_per_s']:.1f}", f"{row['ratio']:.2f}",
            f"{row['median_ms']:.2f}", f"{row['low_ms']:.2f} - {row['high_ms']:.2f}",
            f"{row['baseline_median_ms']:.1f}", f"{row['baseline_low_ms']:.1f} - {row['baseline_high_ms']:.1f}",
        )
        for row in rows
    ]  # fmt: skip
    header = (title, "images/s", "baseline images/s", "times faster", "ms", "spread", "baseline ms", "spread")
    print()
    print(table(header, lines, markdown), flush=True)


def save_rows(args: argparse.Namespace, rows: list[dict]) -> None:
    """Writes the rows, if there are any, where --json says, if anywhere."""
    if args.json and rows:
        write_file(args.json, json.dumps(rows, indent=2).encode())


def main() -> int:
    """Prints the rows."""
    args = parse_args()
    print(machine())
    load = f"load before: {os.getloadavg()[0]:.1f}"  # above zero, something else was running
    print(f"{args.repeats} repetitions of each side, alternately; medians, smallest and largest; {load}\n")
    if not args.train:
        print_size(size_row(), args.markdown)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows = [] if args.train else inference_rows(args, folder)
        save_rows(args, rows)  # what was measured stays, whatever comes next
        # Exporting leaves threads behind, with which a process cannot be forked: loader workers would crash it.
        rows += in_fresh_process(training_rows, args, folder)
        save_rows(args, rows)
    return 0


if __name__ == "__main__":
    run_cli(main, DataError)
