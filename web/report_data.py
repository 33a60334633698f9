"""What a report says: the data of its page and the table of its frames, computed from pixel counts."""

from __future__ import annotations

import base64
import csv
import datetime
import io
import math
import os
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from evaluation.scores import Scores
from frames.classes import Classes
from frames.samples import Sample
from frames.unions import joined_classes
from utils import printable

# Of `<name>_model.pth` and what deploy.py makes of it.
_OF_A_RUN = re.compile(r"(.+)_(model|last)\.[a-z]+")
MOST_BYTES = 1 << 24
MOST_EPOCHS = 20_000
COLUMNS = ("train_loss", "val_loss", "pixel_accuracy", "category_miou", "class_miou", "joined_miou", "lr")
FORMAT = 1  # of the data; another one is refused where reports are compared
MOST_TEXT = 10_000  # characters
MOST_EPOCH = 10**9


@dataclass(frozen=True)
class About:
    """What was scored, for the top of the page.

    Attributes:
        weights: their file.
        data: the data set's folder or description.
        split: of the data set.
        network: engine and precision.
        command: that wrote the report.
        epoch: of the weights; shown if it is a whole number.
        note: what a reader should know of the scores, or "".
    """

    weights: str
    data: str
    split: str
    network: str
    command: str
    epoch: object = None
    note: str = ""


class Frame(NamedTuple):
    """What a report keeps of a frame.

    Attributes:
        size: (height, width) of the frame.
        shown: the same of its pictures.
        confusion: (N, 3) int64: a class, what it was taken for, and how many pixels; none of them 0.
        labels: see web.pictures.pack_labels.
    """

    size: tuple[int, int]
    shown: tuple[int, int]
    confusion: np.ndarray
    labels: bytes

    def scores(self, classes: Classes) -> Scores:
        """Returns the scores of this frame alone."""
        return Scores(classes, dense(self.confusion, len(classes)))

    def mean_iou(self, classes: Classes) -> float | None:
        """Returns the mean IoU over the classes that the labels have, joined if they have unions; None without any."""
        scores = self.scores(classes)
        return _number((scores.joined or scores).class_miou_present)

    def entries(self, classes: Classes) -> dict:
        """Returns the frame in plain values."""
        return {
            "size": list(self.size),
            "shown": list(self.shown),
            "iou": self.mean_iou(classes),
            "confusion": self.confusion.ravel().tolist(),
            "labels": base64.b64encode(self.labels).decode(),
        }


def sparse(confusion: np.ndarray) -> np.ndarray:
    """Returns (N, 3): the row, the column and the value of what is not 0 in a matrix."""
    places = np.argwhere(confusion)
    return np.column_stack([places, confusion[tuple(places.T)]])


def dense(entries: np.ndarray, count: int) -> np.ndarray:
    """Returns the (K, K) matrix whose entries other than 0 are given."""
    confusion = np.zeros((count, count), np.int64)
    confusion[entries[:, 0], entries[:, 1]] = entries[:, 2]
    return confusion


def find_groups(classes: Classes) -> np.ndarray:
    """Returns (256,): from a train id to a number that is the same for all classes of a union, else its own."""
    groups = np.arange(256)
    if classes.labels.unions:
        groups[: len(classes)] = joined_classes(classes)[1].argmax(0)
        groups[len(classes) :] += 256  # no number of a group
    return groups


def page_data(
    about: About,
    classes: Classes,
    scores: Scores,
    samples: Sequence[Sample],
    frames: Sequence[Frame],
    other: tuple[dict, Sequence[Frame]] | None,
) -> dict:
    """Returns what the page shows, in plain values; names are never keys.

    Args:
        about: what was scored.
        classes: of the labels.
        scores: of all frames.
        samples: the frames.
        frames: the same, scored.
        other: what another report says about itself, and its frames.
    """
    texts = {name: printable(str(value))[:MOST_TEXT] for name, value in asdict(about).items()}
    epoch = about.epoch if type(about.epoch) is int and 0 <= about.epoch <= MOST_EPOCH else None
    now = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
    data = {
        "format": FORMAT,
        "about": {**texts, "epoch": epoch, "date": now},
        "classes": {
            "names": list(classes.names),
            "colors": [list(color) for color in classes.colors],
            "groups": find_groups(classes)[: len(classes)].tolist(),
            "unions": [[train_id, list(members)] for train_id, members in classes.labels.unions],
        },
        "scores": score_entries(scores),
        "confusion": sparse(scores.confusion).ravel().tolist(),
        "frames": [
            {"folder": printable(sample.folder), "name": printable(sample.name), **frame.entries(classes)}
            for sample, frame in zip(samples, frames, strict=True)
        ],
        "curves": read_curves(about.weights),
        "other": None,
    }
    if other:
        their_about, theirs = other
        total = Scores(classes, sum(dense(frame.confusion, len(classes)) for frame in theirs))
        data["other"] = {
            "about": their_about,
            "scores": score_entries(total),
            "frames": [frame.entries(classes) for frame in theirs],
        }
    return data


def score_entries(scores: Scores) -> dict:
    """Returns scores in plain values, None where there is no number."""
    categories = zip(scores.classes.categories, scores.category_iou, strict=True)
    joined = scores.joined
    return {
        "class_miou": _number(scores.class_miou),
        "class_miou_present": _number(scores.class_miou_present),
        "joined_miou": _number(scores.joined_miou),
        "category_miou": _number(scores.category_miou),
        "pixel_accuracy": _number(scores.pixel_accuracy),
        "iou": [_number(iou) for iou in scores.class_iou],
        "categories": [[name, _number(iou)] for (name, members), iou in categories if members],
        "joined": [[name, _number(iou)] for name, iou in zip(joined.classes.names, joined.class_iou, strict=True)]
        if joined
        else [],
    }


def frame_table(
    classes: Classes, samples: Sequence[Sample], frames: Sequence[Frame], theirs: Sequence[Frame] | None
) -> str:
    """Returns the scores of every frame as CSV, with an empty cell where there is none.

    Args:
        classes: of the labels.
        samples: the frames.
        frames: the same, scored.
        theirs: the frames of another report.
    """
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    columns = ["picture", "folder", "name", "height", "width", "labelled_pixels", "wrong_pixels", "mean_iou"]
    columns += ["other_mean_iou"] if theirs else []
    writer.writerow([*columns, *(as_text(f"IoU {name}") for name in classes.names)])
    groups = find_groups(classes)
    for index, (sample, frame) in enumerate(zip(samples, frames, strict=True)):
        truth, prediction, pixels = frame.confusion.T
        wrong = pixels[groups[truth] != groups[prediction]].sum()
        row = [index + 1, as_text(printable(sample.folder)), as_text(printable(sample.name)), *frame.size]
        row += [pixels.sum(), wrong, frame.mean_iou(classes)]
        row += [theirs[index].mean_iou(classes)] if theirs else []
        writer.writerow([*row, *map(_number, frame.scores(classes).class_iou)])
    return text.getvalue()


def as_text(cell: str) -> str:
    """Returns a cell of a table that no spreadsheet takes for a formula."""
    return f"'{cell}" if cell.startswith(("=", "+", "-", "@")) else cell


def _number(value: float) -> float | None:
    return None if math.isnan(value) else float(value)


def read_curves(weights: str | Path) -> dict | None:
    """Returns the statistics of the run that wrote a weight file, None if there are none beside it.

    Returns:
        `file`, its name; `problem`, why it is not shown, or ""; `epochs`; and `columns`, each a name and its values,
        None for what is no number.
    """
    weights = Path(weights)
    found = _OF_A_RUN.fullmatch(weights.name)
    path = weights.with_name(f"{found[1]}_statistics.csv") if found else None
    if path is None or not path.is_file():
        return None
    curves = {"file": printable(path.name), "problem": "", "epochs": [], "columns": []}
    try:
        if os.path.getsize(path) > MOST_BYTES:
            raise ValueError(f"larger than {MOST_BYTES / 1e6:.0f} MB")
        with open(path, newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        epochs = [int(row["epoch"]) for row in rows]
        if not 0 < len(epochs) <= MOST_EPOCHS:
            raise ValueError(f"{len(epochs)} epochs, expected 1 to {MOST_EPOCHS}")
        columns = [[name, [_cell(row.get(name)) for row in rows]] for name in COLUMNS]
    except (OSError, ValueError, KeyError, TypeError, csv.Error) as error:
        reason = getattr(error, "strerror", None) or f"{type(error).__name__}: {error}"
        return {**curves, "problem": printable(reason)[:200]}
    shown = [column for column in columns if any(value is not None for value in column[1])]
    return {**curves, "epochs": epochs, "columns": shown}


def _cell(text: object) -> float | None:
    """Returns the number that a cell holds; None for one that is missing, infinite or no number."""
    try:
        value = float(text)
    except (TypeError, ValueError):
        return None
    return value if math.isfinite(value) else None
