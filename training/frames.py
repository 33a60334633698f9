"""The frames of a run, and their check before the first step."""

from __future__ import annotations

import argparse

from classes import Classes
from dataset import DataSet, Sample, train_ids_note
from images import DataError
from loading import Check, check_frames
from training import distributed


def find_frames(args: argparse.Namespace, data: DataSet) -> tuple[list[Sample], list[Sample]]:
    """Returns the training and the validation frames, whose labels have all been read, and the validation pictures.

    Raises:
        DataError: a file is missing or wrong, or no class has pixels.
    """
    train_samples = data.find("train")
    val_samples = data.find("val")
    if args.train_split == "train+val":
        print("training on train+val: the validation scores below are on frames seen in training")
    for samples, split in ((train_samples, "train"), (val_samples, "val")):
        check = check_split(samples, split, data.classes, args.workers, decode_images=split == "val")
        if check.absent() and split == "train":
            print(check.absent())
    if args.train_split == "train+val":
        train_samples = train_samples + val_samples
    note = train_ids_note([*train_samples, *val_samples])
    if note:
        print(note)
    return train_samples, val_samples


def check_split(
    samples: list[Sample], split: str, classes: Classes, workers: int, decode_images: bool, go_on: bool = False
) -> Check:
    """Checks the files of a split, each process its share; in the first one, refuses a split without labels.

    Args:
        samples: all frames of the split.
        split: its name.
        classes: of the data set.
        workers: loader processes.
        decode_images: see check_frames.
        go_on: collect problems, of which that of a split without labels is one.
    """
    share = check_frames(
        samples[distributed.rank() :: distributed.count()], split, classes, workers, decode_images, go_on
    )
    check = Check(split, classes)
    for part in distributed.gather_to_first(share):
        check.add(part)
    if distributed.is_first() and split != "test" and not check.problems:  # which may be all that is wrong
        try:
            check.refuse_unlabelled()
        except DataError as error:
            if not go_on:
                raise
            check.problems[str(error)] = str(error), check.frames
    return check


def print_check(data: DataSet, workers: int) -> None:
    """Checks every file of the data set and prints what was found, and of each kind the first problem.

    Raises:
        DataError: there are problems.
    """
    problems: list[str] = []
    for split in dict.fromkeys(("train", "val", *data.splits)):
        try:
            samples = data.find(split)
        except DataError as error:
            needed = split != "test"  # which training does without
            problems += [str(error)] * needed
            print(f"{split}: {'problem' if needed else 'not there'}: {error}", flush=True)
            continue
        check = check_split(samples, split, data.classes, workers, decode_images=True, go_on=True)
        problems += [first for first, _ in check.problems.values()]
        if distributed.is_first():
            print(check.report(), flush=True)
    if problems:
        others = f" (and {len(problems) - 1} other kinds of problems, listed above)" if problems[1:] else ""
        raise DataError(problems[0] + others)
