"""What a run is asked to do: the recipes, the flags that override them, and the checks of both."""

from __future__ import annotations

import argparse
import math
import os
import sys
from pathlib import Path

from dataset import default_data_path
from model import MIN_SIZE
from training import distributed
from training.augment import Scales
from training.losses import LOSSES
from utils import UserError, load_checkpoint

OPTIMIZERS = ("adam", "adamw", "muon", "sgd")

# Each recipe is the defaults of the flags of the same names. Expected Cityscapes val class mIoU: see the README.
RECIPES: dict[str, dict[str, object]] = {
    # Source: github.com/leftthomas/FastSCNN, README. Reported: 58.0 after 100 epochs of 1024x2048 crops.
    "original": {
        "crop_h": 1024, "crop_w": 2048, "batch_size": 12, "epochs": 100, "scales": "0.5,0.75,1,1.25,1.5,1.75,2",
        "color_strength": 0.0, "max_class_share": 1.0, "class_uniform": 0.0, "class_mix": 0.0,
        "loss": "cross_entropy", "label_smoothing": 0.0, "lovasz_weight": 0.0, "aux_weight": 0.0,
        "optimizer": "adam", "lr": 1e-3, "base_batch": 0,
        "weight_decay": 0.0, "decay_all": True, "power": 0.0, "warmup_steps": 0, "min_lr": 0.0, "ema": 0.0,
    },
    # Paper: section 4.1. Reported: 68.6 on val with fine labels. Weight decay and what it spares are second-hand: they
    # were not checked against the paper's text.
    "paper": {
        "crop_h": 1024, "crop_w": 2048, "batch_size": 12, "epochs": 1000, "scales": "0.5-2",
        "color_strength": 1.0, "max_class_share": 1.0, "class_uniform": 0.0, "class_mix": 0.0,
        "loss": "cross_entropy", "label_smoothing": 0.0, "lovasz_weight": 0.0, "aux_weight": 0.4,
        "optimizer": "sgd", "lr": 0.045, "base_batch": 12,
        "weight_decay": 4e-5, "decay_all": False, "power": 0.9, "warmup_steps": 0, "min_lr": 0.0, "ema": 0.0,
    },
    # Ours: docs/experiments.md says what each part brought. Adaptive steps need no other rate for another batch.
    "strong": {
        "crop_h": 512, "crop_w": 1024, "batch_size": 4, "epochs": 1000, "scales": "0.75-2",
        "color_strength": 0.8, "max_class_share": 1.0, "class_uniform": 0.5, "class_mix": 0.0,
        "loss": "cross_entropy", "label_smoothing": 0.0, "lovasz_weight": 1.0, "aux_weight": 0.0,
        "optimizer": "muon", "lr": 2e-3, "base_batch": 0,
        "weight_decay": 0.05, "decay_all": False, "power": 0.9, "warmup_steps": 100, "min_lr": 0.0, "ema": 0.99,
    },
}  # fmt: skip


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    """Reads the command line; the defaults that --help shows are those of the recipe that is named beside it.

    Raises:
        UserError: a value makes no sense.
    """
    first = argparse.ArgumentParser(add_help=False)
    first.add_argument("--recipe", choices=RECIPES, default="original")
    recipe = first.parse_known_args(arguments)[0].recipe
    parser = argparse.ArgumentParser(
        description="Train Fast-SCNN on data in Cityscapes layout.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    _add_recipe_flags(parser)
    run = parser.add_argument_group("run")
    run.add_argument("--train_split", default="train", choices=("train", "train+val"), help="frames to train on")
    run.add_argument("--init_weights", metavar="FILE", help="start from these weights instead of random ones")
    run.add_argument("--reset_head", action=argparse.BooleanOptionalAction, default=False,
                     help="leave a head of another size in --init_weights out")  # fmt: skip
    run.add_argument("--input_scale", type=float, default=1.0, help="the network sees pictures enlarged by this")
    run.add_argument("--resume", metavar="FILE", help="go on from a {crop_h}_{crop_w}_last.pth")
    run.add_argument("--seed", type=int, default=0, help="of weights, order, crops and dropout")
    run.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps")
    run.add_argument("--amp", action=argparse.BooleanOptionalAction, default=False,
                     help="compute in bf16 where that is safe, in fp16 on a GPU without bf16")  # fmt: skip
    run.add_argument("--compile", action=argparse.BooleanOptionalAction, default=False,
                     help="compile the network for the training step")  # fmt: skip
    run.add_argument("--workers", type=int, default=min(8, os.cpu_count() or 1), help="loader processes")
    run.add_argument("--cache", metavar="DIR", help="keep decoded frames here, at 4 bytes a pixel")
    run.add_argument("--output_dir", default=".", help="where weights, statistics and predictions go")
    run.add_argument("--tensorboard", action=argparse.BooleanOptionalAction, default=False,
                     help="also write TensorBoard events (needs the package tensorboard)")  # fmt: skip
    parser.set_defaults(**RECIPES[recipe])
    args = parser.parse_args(arguments)
    _check(args)
    return args


def _add_recipe_flags(parser: argparse.ArgumentParser) -> None:
    data = parser.add_argument_group("recipe: data")
    data.add_argument("--recipe", choices=RECIPES, default="original", help="sets the defaults of the flags below")
    data.add_argument("--data_path", default=default_data_path(), help="data set in Cityscapes layout")
    data.add_argument("--crop_h", type=int, help="crop height for training pictures")
    data.add_argument("--crop_w", type=int, help="crop width for training pictures")
    data.add_argument("--batch_size", type=int, help="crops in each step")
    data.add_argument("--save_step", type=int, default=5, help="epochs between two savings of the val predictions")
    data.add_argument("--epochs", type=int, help="sweeps over the training split")
    data.add_argument("--scales", help="scales of the crops: a list as 0.5,1,2 or a range as 0.5-2")
    data.add_argument("--color_strength", type=float, help="photometric distortion, 0 for none to 1")
    data.add_argument("--max_class_share", type=float, help="draw a crop again if one class covers more; 1: never")
    data.add_argument("--class_uniform", type=float, help="share of the crops centred on a class drawn evenly")
    data.add_argument("--class_mix", type=float, help="share of the crops with half of another's classes pasted in")
    loss = parser.add_argument_group("recipe: loss and optimizer")
    loss.add_argument("--loss", choices=LOSSES, help="what is minimised")
    loss.add_argument("--label_smoothing", type=float, help="probability spread over all classes")
    loss.add_argument("--lovasz_weight", type=float, help="weight of the Lovász loss, which rewards the IoU itself")
    loss.add_argument("--aux_weight", type=float, help="weight of each auxiliary loss; 0: no auxiliary heads")
    loss.add_argument("--optimizer", choices=OPTIMIZERS, help="SGD has a momentum of 0.9")
    loss.add_argument("--lr", type=float, help="highest learning rate, for a total batch of --base_batch")
    loss.add_argument("--base_batch", type=int, help="the rate scales with total batch / this; 0: it is taken as is")
    loss.add_argument("--weight_decay", type=float, help="decay of the weights")
    loss.add_argument("--decay_all", action=argparse.BooleanOptionalAction,
                      help="decay depthwise convolutions, biases and batch norm too")  # fmt: skip
    loss.add_argument("--power", type=float, help="of the polynomial schedule; 0: constant")
    loss.add_argument("--warmup_steps", type=int, help="steps in which the rate rises linearly from zero")
    loss.add_argument("--min_lr", type=float, help="the schedule stays above this")
    loss.add_argument("--ema", type=float, help="decay of the average of the weights that is scored; 0: no average")


def _check(args: argparse.Namespace) -> None:
    if args.batch_size < 2:
        raise UserError(
            f"--batch_size is {args.batch_size}, expected at least 2: batch normalisation after the 1x1 pooling bin "
            "has a single value per channel with one crop"
        )
    for name, low, high in (
        ("crop_h", MIN_SIZE, math.inf), ("crop_w", MIN_SIZE, math.inf), ("save_step", 1, math.inf),
        ("epochs", 1, math.inf), ("seed", 0, math.inf), ("workers", 0, math.inf), ("color_strength", 0, 1),
        ("max_class_share", 0.05, 1), ("class_uniform", 0, 1), ("class_mix", 0, 1),
        ("label_smoothing", 0, 0.99), ("aux_weight", 0, 10),
        ("lovasz_weight", 0, 10), ("lr", 1e-9, 10), ("base_batch", 0, math.inf), ("weight_decay", 0, 1),
        ("power", 0, 10), ("warmup_steps", 0, math.inf), ("min_lr", 0, args.lr), ("ema", 0, 0.99999),
        ("input_scale", 0.25, 8),
    ):  # fmt: skip
        value = getattr(args, name)
        if not low <= value <= high:  # NaN is in no range
            limits = f"at least {low:g}" if high == math.inf else f"{low:g} to {high:g}"
            raise UserError(f"--{name} is {value:g}, expected {limits}")
    seen = args.input_scale * min(args.crop_h, args.crop_w)
    if seen < MIN_SIZE:
        raise UserError(
            f"--input_scale {args.input_scale:g} makes crops of {seen:g} pixels, expected {MIN_SIZE} or more"
        )
    try:
        Scales.parse(args.scales)
    except ValueError as error:
        raise UserError(f"--scales: {error}; expected a list as 0.5,1,2 or a range as 0.5-2") from None
    for name in ("resume", "init_weights"):
        path = getattr(args, name)
        # A run that was killed between two renames has the state before the last one only.
        before = previous_path(path) if path and name == "resume" else Path()
        if path and not Path(path).is_file() and not before.is_file():
            raise UserError(f"--{name}: no file at {path}; leave it out to start a new run")
    if args.resume and args.init_weights:
        raise UserError("--resume and --init_weights were both given; a resumed run has its weights: leave one out")


# A resumed run must agree on these: they decide its result. --epochs does too where the learning rate depends on it.
SAME_RUN = ("seed", "train_split", "input_scale", "amp", "compile", *RECIPES["original"])
# These matter before the first step alone.
FIRST_ONLY = ("recipe", "resume", "init_weights", "reset_head")


def previous_path(path: str | Path) -> Path:
    """Where the state before the last one is kept."""
    return Path(path).with_suffix(".prev.pth")


def load_resumable(path: str) -> dict:
    """Loads the state after the last finished epoch of an earlier run, or the one before if that file is damaged.

    Raises:
        UserError: neither can be read, or it is no such state.
    """
    previous = previous_path(path)
    try:
        state = load_checkpoint(path)
    except UserError as error:
        if not previous.is_file():
            raise
        state = load_checkpoint(previous)
        if distributed.is_first():
            print(f"{error}; going on from {previous}, one epoch earlier", file=sys.stderr)
    if not {"model", "metadata", "optimizer", "history", "best", "args"} <= state.keys():
        raise UserError(f"--resume: {path} cannot be resumed; expected the ..._last.pth of a run")
    return state


def compare_settings(path: str, before: dict, now: dict) -> None:
    """Names the flags that differ from those of the run that is resumed.

    Raises:
        UserError: one of them decides the result.
    """
    before = {**RECIPES["original"], **before}  # a flag that came later does nothing in it
    differ = [name for name in now if name not in FIRST_ONLY and before.get(name) != now[name]]
    deciding = {*SAME_RUN, "train_frames"} - ({"epochs"} if not now["power"] else set())
    refused = [f"{name} {before.get(name)} (now {now[name]})" for name in differ if name in deciding]
    if refused:
        raise UserError(f"--resume: {path} comes from another run: {', '.join(refused)}; give the same values")
    for name in differ:
        print(f"resumed with another {name}: {now[name]} (was {before.get(name)})")
