"""The frames of a run, and their check before the first step."""

from __future__ import annotations

import argparse

from classes import Classes
from dataset import DataSet, Sample, train_ids_note
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


def check_split(samples: list[Sample], split: str, classes: Classes, workers: int, decode_images: bool) -> Check:
    """Checks the files of a split, each process its share; in the first one, refuses a split without labels."""
    share = check_frames(samples[distributed.rank() :: distributed.count()], split, classes, workers, decode_images)
    check = Check(split, classes)
    for part in distributed.gather_to_first(share):
        check.add(part)
    if distributed.is_first() and split != "test":
        check.refuse_unlabelled()
    return check


def print_check(data: DataSet, workers: int) -> None:
    """Checks every file of the data set and prints what was found."""
    for split in data.splits:
        print(check_split(data.find(split), split, data.classes, workers, decode_images=True).report(), flush=True)
