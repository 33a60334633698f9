"""The frames of a run, and their check before the first step."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import distributed
from frames.check import Check, check_frames
from frames.cityscapes import train_ids_note
from frames.classes import Classes
from frames.samples import DataSet, Sample, Scales
from frames.unions import Unions
from training.crop import padding_share
from training.recipes import Options
from utils import UserError


class Frames(NamedTuple):
    """The frames of a run.

    Attributes:
        train: those to train on; a frame that is to be drawn twice as often is in it twice.
        val: those to score.
        sizes: how many of `train` have scales of their own, or None, and a (height, width); of several processes only
            the first knows.
    """

    train: list[Sample]
    val: list[Sample]
    sizes: Counter[tuple[Scales | None, tuple[int, int]]]


def find_frames(options: Options, data: DataSet, extra: Mapping[str, DataSet]) -> Frames:
    """Returns the frames of a run, after all labels and the validation pictures have been read.

    Args:
        options: of the run.
        data: the data set that is named by --data_path.
        extra: those that are named by --extra_data, by their path.

    Raises:
        UserError: a file is missing or wrong, or no class has pixels.
    """
    if options.train_split == "train+val":
        print("training on train+val: the validation scores below are on frames seen in training")
    train, val = (_checked(data, split, options.workers) for split in ("train", "val"))
    added = {path: _checked(other, "train", options.workers, extra=path) for path, other in extra.items()}
    labelled = Check("train", data.classes)
    for _, check in (train, *added.values()):
        labelled.add(check)
    parts = [
        train,
        *([val] if options.train_split == "train+val" else []),
        *(added[path] for path in options.extra_data or ()),
    ]
    sizes = Counter()
    for samples, check in parts:
        sizes.update({(samples[0].scales, size): count for size, count in check.sizes.items()})
    frames = Frames([sample for samples, _ in parts for sample in samples], val[0], sizes)
    for path, (samples, _) in added.items():
        print(f"extra data {path}: {len(samples)} training frames")
    for note in (labelled.absent(), train_ids_note([*frames.train, *frames.val])):
        if note:
            print(note)
    return frames


def _checked(data: DataSet, split: str, workers: int, extra: str = "") -> tuple[list[Sample], Check]:
    """Returns the frames of a split, and what its files hold; see check_split."""
    samples = data.find(split)
    return samples, check_split(samples, split, data.classes, workers, decode_images=split == "val", extra=extra)


def find_unions(options: Options, samples: Iterable[Sample], classes: int) -> Unions:
    """Returns the unions of the training frames' labels.

    Raises:
        UserError: --loss cannot learn them, or there are too many.
    """
    unions = Unions.of({sample.labels for sample in samples}, classes)
    if unions.members and options.loss == "bce":
        raise UserError(
            "--loss is bce, which learns each class alone, but the labels have unions of several classes: choose "
            "cross_entropy or ohem"
        )
    return unions


def padding(options: Options, sizes: Counter[tuple[Scales | None, tuple[int, int]]]) -> float:
    """Returns the share of the pixels of training crops that is expected to be padding; `sizes` as in Frames."""
    usual, crop = Scales.parse(options.scales), (options.crop_h, options.crop_w)
    shares = [count * padding_share(size, (own or usual).spread(), crop) for (own, size), count in sizes.items()]
    return sum(shares) / max(1, sizes.total())


def refuse_other_names(path: str, found: Classes, expected: Classes) -> None:
    """Raises UserError if --extra_data has other classes than --data_path, or the same in another order."""
    if difference := found.first_difference(expected.names):
        index, name, wanted = difference
        raise UserError(
            f"--extra_data {path}: class {index} is {name!r}, in --data_path {wanted!r}: give both the same "
            "names in the same order"
        )


def check_split(
    samples: list[Sample],
    split: str,
    classes: Classes,
    workers: int,
    decode_images: bool,
    extra: str = "",
    go_on: bool = False,
) -> Check:
    """Checks the files of a split, each process its share; in the first one, refuses a split without labels.

    Args:
        samples: all frames of the split.
        split: its name.
        classes: of the data set.
        workers: loader processes.
        decode_images: see check_frames.
        extra: what --extra_data names, if it is a split of that.
        go_on: collect problems; a split without labels is one too.
    """
    share = check_frames(
        samples[distributed.rank() :: distributed.count()], split, classes, workers, decode_images, go_on
    )
    check = Check(split, classes)
    for part in distributed.gather_to_first(share):
        check.add(part)
    if distributed.is_first() and split != "test" and not check.problems:  # which may be all that is wrong
        try:
            check.refuse_unlabelled(extra)
        except UserError as error:
            if not go_on:
                raise
            check.problems[str(error)] = str(error), check.frames
    return check


def print_check(data: DataSet, extra: Mapping[str, DataSet], workers: int) -> None:
    """Checks every file of the data sets and prints what was found, and of each kind the first problem.

    Args:
        data: all of its splits are checked.
        extra: the data sets of --extra_data by their path; their train splits are checked.
        workers: loader processes.

    Raises:
        UserError: there are problems.
    """
    splits = dict.fromkeys(("train", "val", *data.splits))
    problems = [problem for split in splits for problem in _print_split(data, split, workers)]
    for path, added in extra.items():
        problems += _print_split(added, "train", workers, path)
    if problems:
        others = f" (and {len(problems) - 1} other kinds of problems, listed above)" if problems[1:] else ""
        raise UserError(problems[0] + others)


def _print_split(data: DataSet, split: str, workers: int, extra: str = "") -> list[str]:
    """Checks a split and prints what was found; returns the first problem of each kind."""
    title = f"extra data {extra}, " if extra else ""
    try:
        samples = data.find(split)
    except UserError as error:
        needed = split != "test"  # which training does without
        print(f"{title}{split}: {'problem' if needed else 'not there'}: {error}", flush=True)
        return [str(error)] if needed else []
    check = check_split(samples, split, data.classes, workers, decode_images=True, extra=extra, go_on=True)
    if distributed.is_first():
        print(f"{title}{check.report()}", flush=True)
    return [first for first, _ in check.problems.values()]
