"""The flags of train.py, the recipes that set their defaults, and resuming.

Each flag is declared once, in FLAGS: the parser, its checks, Options and the comparison of resumed runs come from
there.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import math
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import distributed
from frames.cityscapes import default_data_path
from frames.classes import CITYSCAPES, IGNORE_INDEX, Classes, LabelFormat
from frames.samples import Sample, Scales
from model import INPUT_SIDES, MIN_SIZE
from training.losses import LOSSES
from utils import UserError, check_finite, load_checkpoint

OPTIMIZERS = ("adam", "adamw", "muon", "sgd")


class Flag(NamedTuple):
    """One flag of train.py. The default gives its type; without a default, it is text."""

    default: object  # of the original recipe
    help: str
    low: float = -math.inf  # numbers below are refused
    high: float = math.inf  # and above
    choices: tuple[str, ...] | None = None
    metavar: str | None = None
    decides: bool = False  # the result depends on it: a resumed run has to agree
    several: bool = False  # takes one or more values, a list


# Source of the recipe flags' defaults: github.com/leftthomas/FastSCNN, README.
FLAGS: dict[str, dict[str, Flag]] = {
    "recipe: data": {
        "recipe": Flag("original", "sets the defaults of the flags down to --ema"),
        "data_path": Flag(None, "folder in Cityscapes layout, or a .yaml file that describes a data set"),
        "data_root": Flag(None, "with a .yaml file: the folder that its paths are relative to", metavar="DIR"),
        "extra_data": Flag(
            None,
            "more data sets of the same classes to train on; repeat a name to sample it twice as often",
            metavar="DATA",
            decides=True,
            several=True,
        ),
        "crop_h": Flag(1024, "crop height in training", low=MIN_SIZE, decides=True),
        "crop_w": Flag(2048, "crop width in training", low=MIN_SIZE, decides=True),
        "batch_size": Flag(12, "crops per step, over all processes", decides=True),
        "save_step": Flag(5, "write val predictions every N epochs", low=1),
        "epochs": Flag(100, "passes over the training split", low=1, decides=True),
        "scales": Flag("0.5,0.75,1,1.25,1.5,1.75,2", "crop scales: a list (0.5,1,2) or a range (0.5-2)", decides=True),
        "color_strength": Flag(0.0, "photometric distortion, from 0 (none) to 1", 0, 1, decides=True),
        "class_uniform": Flag(
            0.0, "share of crops centred on a class drawn evenly from the frame's", 0, 1, decides=True
        ),
        "class_mix": Flag(0.0, "share of crops with half of another crop's classes pasted in", 0, 1, decides=True),
    },
    "recipe: loss and optimizer": {
        "loss": Flag("cross_entropy", "bce: a sigmoid per class; ohem: hard pixels only", choices=LOSSES, decides=True),
        "lovasz_weight": Flag(0.0, "weight of the Lovász loss, a surrogate of the IoU", 0, 10, decides=True),
        "aux_weight": Flag(0.0, "weight of each auxiliary loss; 0: no auxiliary heads", 0, 10, decides=True),
        "optimizer": Flag(
            "adam", "muon: orthogonal steps for dense convolutions; sgd: momentum 0.9", choices=OPTIMIZERS, decides=True
        ),
        "lr": Flag(1e-3, "peak learning rate, for a total batch of --base_batch", 1e-9, 10, decides=True),
        "base_batch": Flag(0, "scale the rate by total batch / this; 0: take it as it is", low=0, decides=True),
        "weight_decay": Flag(0.0, "weight decay", 0, 1, decides=True),
        "decay_all": Flag(True, "decay depthwise convolutions, biases and batch norm too", decides=True),
        "power": Flag(0.0, "exponent of the polynomial schedule; 0: constant", 0, 10, decides=True),
        "warmup_steps": Flag(0, "steps in which the rate rises from zero", low=0, decides=True),
        "ema": Flag(
            0.0, "decay of the averaged weights, which are scored and saved; 0: none", 0, 0.99999, decides=True
        ),
    },
    "run": {
        "train_split": Flag("train", "frames to train on", choices=("train", "train+val"), decides=True),
        "init_weights": Flag(None, "start from these weights", metavar="FILE"),
        "reset_head": Flag(False, "with --init_weights: re-initialise the classifier if the classes differ"),
        "input_scale": Flag(
            1.0, "the network sees images enlarged by this; saved with the weights", 0.25, 8, decides=True
        ),
        "input_side": Flag(
            0,
            "at test time, resize pictures to this longer side (0: never); stored in the weights",
            *INPUT_SIDES,
            decides=True,
        ),
        "resume": Flag(None, "resume from a {crop_h}_{crop_w}_last.pth", metavar="FILE"),
        "seed": Flag(0, "seed of weights, order, crops and dropout", low=0, decides=True),
        "device": Flag("auto", "auto (CUDA, MPS or CPU), cpu, cuda, cuda:N or mps"),
        "amp": Flag(False, "mixed precision: bf16, or fp16 on a GPU without bf16", decides=True),
        "compile": Flag(False, "compile the training step; the first one takes minutes", decides=True),
        "workers": Flag(min(8, os.cpu_count() or 1), "loader processes", low=0),
        "cache": Flag(None, "keep decoded frames here, at 4 bytes a pixel", metavar="DIR"),
        "output_dir": Flag(".", "folder of weights, statistics and predictions"),
        "overwrite": Flag(False, "replace an earlier run in --output_dir"),
        "check": Flag(False, "only check every file of the data set, and print what it holds"),
        "report": Flag(False, "at the end, write a page of the best weights' scores and all val frames"),
        "tensorboard": Flag(False, "also write TensorBoard events (needs the package tensorboard)"),
    },
}
ALL_FLAGS = {name: flag for group in FLAGS.values() for name, flag in group.items()}

# Every recipe gives the defaults of these flags. Expected Cityscapes val class mIoU: see the README.
_NOT_IN_RECIPES = ("recipe", "data_path", "data_root", "extra_data", "save_step")
ORIGINAL = {
    name: flag.default
    for name, flag in {**FLAGS["recipe: data"], **FLAGS["recipe: loss and optimizer"]}.items()
    if name not in _NOT_IN_RECIPES
}
# Ours: docs/experiments.md says what each part brought. Adaptive steps need no other rate for another batch.
STRONG: dict[str, object] = {
    **ORIGINAL,
    "crop_h": 512,
    "crop_w": 1024,
    "batch_size": 4,
    "epochs": 1000,
    "scales": "0.75-2",
    "color_strength": 0.8,
    "class_uniform": 0.5,
    "lovasz_weight": 1.0,
    "optimizer": "muon",
    "lr": 2e-3,
    "weight_decay": 0.05,
    "decay_all": False,
    "power": 0.9,
    "warmup_steps": 100,
    "ema": 0.99,
}
RECIPES: dict[str, dict[str, object]] = {
    # Source: the original's README. Reported: 58.0 after 100 epochs of 1024x2048 crops.
    "original": ORIGINAL,
    # Paper: section 4.1. Reported: 68.6 on val with fine labels. Weight decay and what it spares are second-hand: they
    # were not checked against the paper's text.
    "paper": {
        **ORIGINAL,
        "epochs": 1000,
        "scales": "0.5-2",
        "color_strength": 1.0,
        "aux_weight": 0.4,
        "optimizer": "sgd",
        "lr": 0.045,
        "base_batch": 12,
        "weight_decay": 4e-5,
        "decay_all": False,
        "power": 0.9,
    },
    "strong": STRONG,
    # Ours, for several cameras and labels of other networks: weights/street.pth, docs/street.md.
    "street": {
        **STRONG,
        "crop_h": 384,
        "crop_w": 768,
        "batch_size": 8,
        "epochs": 20,
        "scales": "0.5-2.5",
        "color_strength": 1.0,
        "class_uniform": 0.3,
    },
}
# Flags of earlier versions and what did nothing: a run that was begun with another value cannot be resumed.
REMOVED = {"max_class_share": 1.0, "label_smoothing": 0.0, "min_lr": 0.0}
# These only matter before the first step.
FIRST_ONLY = ("recipe", "resume", "init_weights", "reset_head", "overwrite", "check")


def _type_of(flag: Flag) -> object:
    """Returns the type of a flag's values."""
    if flag.default is None:
        return list[str] | None if flag.several else str | None
    return type(flag.default)


# The flags as read and checked: one field for each of ALL_FLAGS.
Options = dataclasses.make_dataclass(
    "Options", [(name, _type_of(flag)) for name, flag in ALL_FLAGS.items()], frozen=True
)


def build_parser(recipe: str = "original") -> argparse.ArgumentParser:
    """Returns the parser of train.py with the defaults of a recipe."""
    parser = argparse.ArgumentParser(
        description="Train Fast-SCNN.", formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    for title, flags in FLAGS.items():
        group = parser.add_argument_group(title)
        for name, flag in flags.items():
            if isinstance(flag.default, bool):
                options = {"action": argparse.BooleanOptionalAction}
            else:
                options = {"type": str if flag.default is None else type(flag.default), "metavar": flag.metavar}
                options["choices"] = tuple(RECIPES) if name == "recipe" else flag.choices
                options["nargs"] = "+" if flag.several else None
            group.add_argument(f"--{name}", default=flag.default, help=flag.help, **options)
    parser.set_defaults(data_path=default_data_path(), recipe=recipe, **RECIPES[recipe])
    return parser


def parse_args(arguments: list[str] | None = None) -> Options:
    """Reads the command line; --recipe decides the defaults of the others, which --help shows.

    Raises:
        UserError: a value makes no sense.
    """
    first = argparse.ArgumentParser(add_help=False)
    first.add_argument("--recipe", choices=RECIPES, default="original")
    recipe = first.parse_known_args(arguments)[0].recipe
    options = Options(**vars(build_parser(recipe).parse_args(arguments)))
    _check(options)
    return options


def _check(args: Options) -> None:
    if args.batch_size < 2:
        raise UserError(
            f"--batch_size is {args.batch_size}, expected at least 2: batch normalisation after the 1x1 pooling bin "
            "has a single value per channel with one crop"
        )
    for name, flag in ALL_FLAGS.items():
        value, low, high = getattr(args, name), flag.low, flag.high
        if (low, high) == (-math.inf, math.inf):
            continue
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
        raise UserError(f"--scales: {error}; expected a list (0.5,1,2) or a range (0.5-2)") from None
    if args.resume and args.init_weights:
        raise UserError("--resume and --init_weights were both given; a resumed run has its weights: leave one out")
    # A run that was killed between two renames only has the state before the last one.
    if args.resume and not any(map(os.path.isfile, (args.resume, previous_path(args.resume)))):
        raise UserError(f"--resume: no file at {args.resume}; leave it out to start a new run")
    if args.init_weights and not os.path.isfile(args.init_weights):
        raise UserError(f"--init_weights: no file at {args.init_weights}; leave it out to start from random weights")


def previous_path(path: str | Path) -> Path:
    """Where the state before the last one is kept."""
    return Path(path).with_suffix(".prev.pth")


def load_resumable(path: str) -> dict:
    """Loads the state after the last finished epoch of an earlier run, or the one before if that file is damaged.

    Raises:
        UserError: neither can be read, or it is not such a state.
    """
    previous = previous_path(path)
    try:
        state = load_checkpoint(path)
    except UserError as error:
        if not os.path.isfile(previous):
            raise
        state = load_checkpoint(previous)
        if distributed.is_first():
            print(f"{error}; resuming from {previous}, one epoch earlier", file=sys.stderr)
    check_finite(path, state)
    if not {"model", "metadata", "optimizer", "history", "best", "args"} <= state.keys():
        raise UserError(f"--resume: {path} cannot be resumed; expected the ..._last.pth of a run")
    return state


def compare_settings(path: str, before: dict, now: dict) -> None:
    """Names the settings that differ from the run that is resumed.

    Raises:
        UserError: one of them decides the result.
    """
    defaults = {name: flag.default for name, flag in ALL_FLAGS.items()}
    for name, default in REMOVED.items():
        if before.get(name, default) != default:
            raise UserError(
                f"--resume: {path} was begun with --{name} {before[name]}, which no longer exists: begin anew"
            )
    before = {**defaults, **data_settings(CITYSCAPES, [], []), **before}  # a flag that came later does nothing in it
    differ = [name for name in now if name not in FIRST_ONLY and before.get(name) != now[name]]
    deciding = {*data_settings(CITYSCAPES, [], []), *(name for name, flag in ALL_FLAGS.items() if flag.decides)}
    if not now["power"]:  # a constant rate does not depend on the number of epochs
        deciding.remove("epochs")
    refused = [f"{name} {_difference(name, before.get(name), now[name])}" for name in differ if name in deciding]
    if refused:
        raise UserError(f"--resume: {path} comes from another run: {', '.join(refused)}; give the same values")
    for name in differ:
        print(f"resumed with another {name}: {now[name]} (was {before.get(name)})")


def data_settings(classes: Classes, extra: Iterable[Classes], samples: Sequence[Sample]) -> dict:
    """Returns what of its data decides a run's result, in plain values.

    Args:
        classes: of --data_path.
        extra: the classes of --extra_data.
        samples: the training frames.
    """
    extra = list(extra)
    unions = [union for one in (classes, *extra) for union in one.labels.unions]
    return {
        "train_frames": len(samples),
        "classes": list(classes.names),
        "label_values": _label_values(classes.labels),
        "extra_values": [text for one in extra for text in _label_values(one.labels)],
        "unions": [str(union) for union in unions],
        "data_scales": [str(scales.values) for scales in dict.fromkeys(s.scales for s in samples) if scales],
    }


def _label_values(labels: LabelFormat) -> list[str]:
    values = [*labels.meant, *labels.colors, *([("others", IGNORE_INDEX)] if labels.ignore_unknown else [])]
    return sorted(map(str, values))


def _difference(name: str, before: object, now: object) -> str:
    """Returns two values of a setting in words; of two lists, the first place where they differ."""
    if name == "label_values":  # in no order: one more is no change of those behind it
        before, now = ([pair for pair in one if pair not in other] for one, other in ((before, now), (now, before)))
    if isinstance(before, list) and isinstance(now, list):
        pairs = itertools.zip_longest(before, now, fillvalue="none")
        before, now = next(pair for pair in pairs if pair[0] != pair[1])
    return f"{before} (now {now})"
