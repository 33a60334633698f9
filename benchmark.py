"""Measures the reported speed: our side and the baseline in turn, in one run.

python benchmark.py --quick
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path

import cv2
import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from frames.cityscapes import find_samples
from frames.images import read_image
from model import FastSCNN
from speed.gpu import gpu_rows
from speed.load import MOST, Load, open_load
from speed.plain import measured_network
from speed.predictions import EXPLAINED, add_memory, image_rows, label_head_rows, open_engines
from speed.timing import FRAME, SIZES, STAGES, Groups, machine, report, table
from street.scene import draw_scene
from utils import UserError, count_parameters_and_macs, run_cli, save_checkpoint


def build_parser() -> argparse.ArgumentParser:
    """Returns the parser of the command line."""
    parser = argparse.ArgumentParser(
        description="Measure parameters, multiply-adds and predictions.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    switch = argparse.BooleanOptionalAction
    parser.add_argument("--data_path", metavar="FOLDER", help="in Cityscapes layout; if not given, frames are drawn")
    parser.add_argument("--model_weight", metavar="FILE", help="weights; weights/street.pth if not given")
    parser.add_argument("--repeats", metavar="N", type=int, default=35, help="repetitions of each side")
    parser.add_argument("--load", metavar="N", type=int, default=0, help="also predict beside N counting processes")
    parser.add_argument("--quick", action=switch, default=False, help="three repetitions, nothing slow to prepare")
    parser.add_argument("--json", metavar="FILE", help="write the rows here")
    parser.add_argument("--markdown", action=switch, default=False, help="print tables in Markdown")
    return parser


def parse_args() -> argparse.Namespace:
    """Reads the command line."""
    args = build_parser().parse_args()
    if args.repeats < 3:
        raise UserError(f"--repeats is {args.repeats}, expected at least 3 for a median")
    if not 0 <= args.load <= MOST:
        raise UserError(f"--load is {args.load}, expected a number of processes from 0 to {MOST}")
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
    """Prints the size of the network, and what others reported."""
    ours = f"{row['parameters'] / 1e6:.2f} M", f"{row['macs'] / 1e9:.2f} G", f"{row['thop_macs'] / 1e9:.2f} G"
    lines = [
        ("this repository", *ours),
        ("original, reported", "1.14 M", "-", "6.92 G (older thop)"),
        ("paper, reported", "1.11 M", "-", "-"),
    ]
    print(table((f"at {FRAME[0]}x{FRAME[1]}", "parameters", "MACs", "MACs by thop"), lines, markdown))


def read_images(data_path: str | None) -> tuple[np.ndarray, list[np.ndarray]]:
    """Returns an image to predict, and images to calibrate int8 with; they are drawn without a data set."""
    if data_path is None:
        return draw_scene(0, *FRAME)[0], [draw_scene(seed, 512, 1024)[0] for seed in range(4)]
    samples = find_samples(data_path, "val")
    some = samples[:: max(1, len(samples) // 16)]
    return read_image(samples[len(samples) // 2].image), [read_image(sample.image) for sample in some]


def inference_groups(args: argparse.Namespace, folder: Path, load: Load | None) -> Groups:
    """Measures predictions: the engines and the label head at every size, then the GPU; yields titles and rows."""
    model = measured_network(args.model_weight)
    weights = folder / "weights.pth"
    metadata = {"align_corners": model.align_corners, "variant": model.variant._asdict()}
    save_checkpoint(weights, {"model": model.state_dict(), "metadata": metadata})
    scene, calibration = read_images(args.data_path)
    with open_engines(weights, folder, calibration, args.quick) as (engines, missing):
        print("\n".join(["", EXPLAINED, *missing]))
        for size in SIZES[:1] if args.quick else SIZES:
            image = cv2.resize(scene, size[::-1], interpolation=cv2.INTER_LINEAR)
            for stage, title in zip(STAGES, ("picture to labels", "network, to the logits at 1/8"), strict=True):
                rows = image_rows(engines, image, stage, args.repeats, load)
                if size == FRAME and stage == STAGES[0]:  # later ones would show the same peak
                    add_memory(rows, engines)
                yield title, rows
            heads = label_head_rows(engines[0], model.align_corners, image, args.repeats, load)
            yield "label head", heads
            for head in heads:
                mixed = f"{100 * head['mixed_share']:.1f} % of the cells are mixed"
                print(f"{head['name']}: {mixed}, {head['differing']} labels differ from the baseline's (near-ties)")
    if torch.cuda.is_available():
        yield from gpu_rows(model, scene, args.repeats, args.quick)
    else:
        print("\nno CUDA device: GPU rows not run")


def main() -> int:
    """Prints the rows."""
    args = parse_args()
    print(machine())
    before = f"load average before: {os.getloadavg()[0]:.1f}"  # above zero, something else was running
    print(f"{args.repeats} repetitions of each side, alternately; medians, smallest and largest; {before}\n")
    print_size(size_row(), args.markdown)
    with tempfile.TemporaryDirectory() as folder, open_load(args.load) as load:
        report(inference_groups(args, Path(folder), load), args.markdown, args.json)
    return 0


if __name__ == "__main__":
    run_cli(main)
