"""The scores of a confusion matrix: class and category IoU by the official Cityscapes rules, and their table."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from frames.classes import Classes
from frames.samples import Sample
from frames.unions import joined_classes


@dataclass(frozen=True)
class Scores:
    """The scores of a confusion matrix, by the rules of csEvalPixelLevelSemanticLabeling. IoUs are fractions.

    A class that is neither in the ground truth nor predicted is NaN and left out of the means; one that is only
    predicted has an IoU of 0, and counts.

    Attributes:
        classes: K of them.
        confusion: (K, K) int64 pixel counts; rows are ground truth, columns predictions; ignored pixels are absent.
        loss: mean cross-entropy over the labelled pixels, NaN if it was not computed.
    """

    classes: Classes
    confusion: np.ndarray
    loss: float = math.nan

    @property
    def class_iou(self) -> np.ndarray:
        """(K,) IoU of each class: TP / (TP + FP + FN) over the whole set."""
        true_positive = np.diagonal(self.confusion)
        return _ratio(true_positive, self.confusion.sum(0) + self.confusion.sum(1) - true_positive)

    @property
    def category_iou(self) -> np.ndarray:
        """IoU of each category; a confusion within a category is not an error. NaN for one without classes."""
        places = range(len(self.classes))
        member = np.array([[i in ids for i in places] for _, ids in self.classes.categories], np.int64)
        member = member.reshape(-1, len(self.classes))
        grouped = member @ self.confusion @ member.T
        true_positive = np.diagonal(grouped)
        return _ratio(true_positive, grouped.sum(0) + grouped.sum(1) - true_positive)

    @property
    def class_miou(self) -> float:
        """Mean class IoU, the official average."""
        return _mean(self.class_iou)

    @property
    def category_miou(self) -> float:
        """Mean category IoU, the official average; NaN without categories."""
        return _mean(self.category_iou)

    @property
    def class_miou_present(self) -> float:
        """Mean IoU over the classes present in the ground truth: to be compared on data that lacks classes."""
        return _mean(self.class_iou[self.confusion.sum(1) > 0])

    @property
    def pixel_accuracy(self) -> float:
        """Share of the labelled pixels whose class is right."""
        return float(_ratio(np.trace(self.confusion), self.confusion.sum()))

    @property
    def joined(self) -> Scores | None:
        """The scores with each union of the labels as one class, which any of its classes is right for; or None."""
        if not self.classes.labels.unions:
            return None
        classes, parts = joined_classes(self.classes)
        return Scores(classes, parts @ self.confusion @ parts.T, self.loss)

    @property
    def joined_miou(self) -> float:
        """Mean joined IoU over those present in the ground truth; NaN where the labels have no unions."""
        return self.joined.class_miou_present if self.joined else math.nan

    def as_json(self) -> dict:
        """Returns the scores under the official script's keys, plus some of ours; None where there is no score."""
        names = self.classes.names
        by_name = dict(zip(names, self.class_iou, strict=True))
        categories = [name for name, _ in self.classes.categories]
        scores = {
            "classScores": {name: by_name.get(name, math.nan) for name in self.classes.label_names or names},
            "categoryScores": dict(zip(categories, self.category_iou, strict=True)),
            "averageScoreClasses": self.class_miou,
            "averageScoreCategories": self.category_miou,
            "averageScoreClassesPresent": self.class_miou_present,
            "pixel_accuracy": self.pixel_accuracy,
        }
        if self.joined:
            scores["joinedScores"] = dict(zip(self.joined.classes.names, self.joined.class_iou, strict=True))
            scores["averageScoreJoined"] = self.joined_miou
        return _without_nan(scores)

    def table(self) -> str:
        """Returns the per-class, per-category and joined table with averages, in percent."""
        names, unions = self.classes.names, self.classes.labels.unions
        width = max(15, *(len(name) + 1 for name in names))
        lines = [f"{'class':<{width}}{'IoU %':>8}{'pixels %':>11}", *self._rows(width)]
        if self.classes.categories:
            lines += ["", f"{'category':<{width}}{'IoU %':>8}"]
        lines += [
            f"{name:<{width}}{_percent(iou):>8}"
            for (name, members), iou in zip(self.classes.categories, self.category_iou, strict=True)
            if members
        ]
        if self.joined:
            lines += ["", f"{'joined':<{width}}{'IoU %':>8}{'pixels %':>11}", *self.joined._rows(width)]
            lines += ["", *(f"{names[k]}: any of {', '.join(names[i] for i in ids)}" for k, ids in unions)]
        present = int((self.confusion.sum(1) > 0).sum())
        lines += [
            "",
            f"class mIoU            {_percent(self.class_miou):>6} %",
            f"class mIoU, present   {_percent(self.class_miou_present):>6} %  ({present} classes in the ground truth)",
            *([f"joined mIoU           {_percent(self.joined_miou):>6} %"] if self.joined else []),
            *([f"category mIoU         {_percent(self.category_miou):>6} %"] if self.classes.categories else []),
            f"pixel accuracy        {_percent(self.pixel_accuracy):>6} %",
        ]
        return "\n".join(lines)

    def _rows(self, width: int) -> list[str]:
        """Returns the name, IoU and share of the pixels of each class."""
        counts = self.confusion.sum(1) / max(1, self.confusion.sum())
        return [
            f"{name:<{width}}{_percent(iou):>8}{100 * share:>11.2f}"
            for name, iou, share in zip(self.classes.names, self.class_iou, counts, strict=True)
        ]


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore"):
        return np.asarray(part, np.float64) / whole  # 0 / 0 is NaN


def _mean(values: np.ndarray) -> float:
    valid = values[~np.isnan(values)]
    return float(valid.mean()) if valid.size else math.nan


def _percent(value: float) -> str:
    return "-" if math.isnan(value) else f"{100 * value:.2f}"


def _without_nan(value: object) -> object:
    if isinstance(value, dict):
        return {key: _without_nan(inner) for key, inner in value.items()}
    return None if math.isnan(value) else float(value)


def statistics_row(epoch: int, train_loss: float, scores: Scores, lr: float, images_per_s: float) -> dict:
    """Returns the row of an epoch in the statistics file, with the scores of its validation."""
    return {
        "epoch": epoch,
        "train_loss": train_loss,
        "val_loss": scores.loss,
        "pixel_accuracy": scores.pixel_accuracy,
        "class_miou": scores.class_miou,
        "class_miou_present": scores.class_miou_present,
        "joined_miou": scores.joined_miou,
        "category_miou": scores.category_miou,
        "lr": lr,
        "images_per_s": images_per_s,
    }


class ScoredFrame(NamedTuple):
    """A frame with its prediction, for what is written of it.

    Attributes:
        index: of the frame among all.
        sample: its files.
        image: (H, W, 3) uint8 RGB.
        truth: (H, W) uint8 train ids.
        prediction: the same.
        confusion: (K, K) pixel counts.
    """

    index: int
    sample: Sample
    image: np.ndarray
    truth: np.ndarray
    prediction: np.ndarray
    confusion: np.ndarray
