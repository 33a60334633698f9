"""What a run prints: its start, and a line for each epoch."""

from __future__ import annotations

import argparse
import math

import torch

import distributed
from training.augment import EpochSampler
from training.learner import Learner


def print_start(args: argparse.Namespace, learner: Learner, sampler: EpochSampler, val_frames: int, macs: int) -> None:
    """Prints what is about to be trained, on which device and data."""
    device = learner.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} threads"
    if distributed.count() > 1:
        name = f"{distributed.count()} processes, each {name}"
    precision = {None: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16, gradients scaled"}[learner.half]
    print(f"device {device} ({name}), {precision}, torch {torch.__version__}")
    if args.amp and learner.half is None:
        print(
            "--amp changes nothing: this processor has no instructions for bf16, without which it is slower than fp32"
        )
    parameters = sum(parameter.numel() for parameter in learner.model.parameters())
    print(f"Fast-SCNN: {parameters:,} parameters, {macs / 1e9:.2f} G MACs at {args.crop_h}x{args.crop_w} (thop)")
    print(
        f"{sampler.length} training and {val_frames} validation frames; total batch {args.batch_size}, "
        f"{len(sampler)} steps per epoch, {args.epochs} epochs, {args.epochs * len(sampler)} steps"
    )
    print(f"recipe {args.recipe}: {args.optimizer}, lr {learner.peak_lr:g}, {args.loss}, seed {args.seed}", flush=True)


def epoch_line(row: dict, epochs: int) -> str:
    """Returns an epoch in one line.

    Args:
        row: as in the statistics file.
        epochs: of the run.
    """
    rest = ""
    if row["class_miou"] != row["class_miou_present"]:
        rest += f"of present classes {100 * row['class_miou_present']:.2f} %  "
    if not math.isnan(row["joined_miou"]):
        rest += f"joined {100 * row['joined_miou']:.2f} %  "
    if not math.isnan(row["category_miou"]):
        rest += f"category mIoU {100 * row['category_miou']:.2f} %  "
    return (
        f"epoch {row['epoch']}/{epochs}  train loss {row['train_loss']:.4f}  val loss {row['val_loss']:.4f}  "
        f"pixel accuracy {100 * row['pixel_accuracy']:.2f} %  class mIoU {100 * row['class_miou']:.2f} %  "
        f"{rest}{row['images_per_s']:.1f} images/s"
    )
