"""The reported number: class and category IoU by the official Cityscapes rules, and the prediction PNGs.

python evaluate.py --model_weight 1024_2048_model.pth --split val --json scores.json
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import math
import os
import shlex
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from classes import IGNORE_INDEX, Classes
from dataset import SPLITS, Read, Sample, check_headers, read_at_width, read_pair, train_ids_note
from description import add_data_flags, open_data
from images import DataError
from inference.backends import Network
from inference.label_head import labels_from_logits
from inference.predictions import PredictionWriter
from inference.predictor import add_backend_flags, check_size, load_network
from loading import FrameSet, check_frames, frame_loader, naming_dead_workers
from model import MIN_SIZE
from training import distributed
from training.losses import pixel_loss
from unions import Members, Unions, joined_classes
from utils import UserError, refuse_input, run_cli, writable_folder, write_file


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


@torch.inference_mode()
def evaluate(
    network: Network,
    samples: Sequence[Sample],
    classes: Classes,
    *,
    workers: int = 0,
    writer: PredictionWriter | None = None,
    read: Read = read_pair,
    with_loss: bool = False,
    before_each: Callable[[], None] = lambda: None,
) -> Scores:
    """Predicts every frame at its full size and scores the predictions: the one path to every reported number.

    Of several processes, each takes its share of the frames, no frame twice; all get the scores of the whole set, and
    the first writes all predictions.

    Args:
        network: on any engine.
        samples: the frames; those without labels are only predicted.
        classes: of the labels and of the network.
        workers: loader processes.
        writer: writes the predictions, if given.
        read: reads a frame, from files or from a cache.
        with_loss: also compute the loss, which takes longer than everything else; otherwise it is NaN.
        before_each: called before each frame; may raise to stop.

    Raises:
        DataError: a file is damaged.
        UserError: a prediction cannot be written.
    """
    if writer and distributed.is_first():
        writer.clear()
    samples = samples[distributed.rank() :: distributed.count()]
    loader = frame_loader(FrameSet(samples, read), workers)
    unions = Unions.of([classes.labels], len(classes))
    table = unions.table(classes.labels)
    confusion = torch.zeros(len(classes), len(classes), dtype=torch.int64)
    loss_sum = 0.0
    unwritten = []
    with naming_dead_workers(loader):
        for images, targets, index in tqdm(loader, desc="evaluate", leave=False, disable=distributed.hide_bars()):
            before_each()
            sample = samples[int(index)]
            check_size(images.shape[1:3], sample.image)
            if with_loss:
                logits = network.run(images)
                labels = labels_from_logits(logits, images.shape[1:3], network.align_corners)
                learnt = targets if table is None else torch.from_numpy(table)[targets.long()]
                loss_sum += summed_loss(logits, learnt, network.align_corners, unions.members)
            else:
                labels = network.labels(images)
            confusion += confusion_matrix(targets.to(labels.device), labels, len(classes)).cpu()
            if writer:
                encoded = writer.encode(sample, labels[0].to(torch.uint8).cpu().numpy())
                if distributed.is_first():
                    writer.write(*encoded)
                else:
                    unwritten.append(encoded)
    if writer:
        for encoded in itertools.chain.from_iterable(distributed.gather_to_first(unwritten)):
            writer.write(*encoded)
    confusion = distributed.all_reduce_sum(confusion)
    loss_sum = float(distributed.all_reduce_sum(torch.tensor(loss_sum, dtype=torch.float64)))
    pixels = int(confusion.sum())
    return Scores(classes, confusion.numpy(), loss_sum / pixels if with_loss and pixels else math.nan)


def summed_loss(logits: Tensor, targets: Tensor, align_corners: bool, unions: Members = ()) -> float:
    """Returns the cross-entropy of upsampled (N, K, h, w) logits, summed over the labelled pixels of the targets."""
    targets = targets.to(logits.device).long()
    full = F.interpolate(logits, targets.shape[1:], mode="bilinear", align_corners=align_corners)
    return float(pixel_loss("cross_entropy", full, targets, unions=unions)[0])


def confusion_matrix(targets: Tensor, predictions: Tensor, count: int) -> Tensor:
    """Counts pixels: (K, K) int64, rows ground truth, columns predictions, from two tensors of train ids.

    Args:
        targets: of any shape, with IGNORE_INDEX.
        predictions: of that shape.
        count: K.
    """
    valid = targets != IGNORE_INDEX
    pairs = targets[valid].long() * count + predictions[valid].long()
    return torch.bincount(pairs, minlength=count**2).view(count, count)


def official_command(data_path: str | Path, results: Path, export: Path) -> str:
    """Returns the shell command that scores the written predictions with cityscapesScripts."""
    script = "csEvalPixelLevelSemanticLabeling"
    folders = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    variables = {"CITYSCAPES_DATASET": data_path, "CITYSCAPES_RESULTS": results, "CITYSCAPES_EXPORT_DIR": export}
    words = [f"{name}={shlex.quote(os.path.abspath(value))}" for name, value in variables.items()]
    return " ".join([*words, shlex.quote(shutil.which(script, path=folders) or script)])


def build_parser() -> argparse.ArgumentParser:
    """Returns the parser of evaluate.py."""
    parser = argparse.ArgumentParser(
        description="Score a checkpoint by the official Cityscapes rules.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add_data_flags(parser)
    parser.add_argument(
        "--model_weight",
        default="1024_2048_model.pth",
        help="weights of train.py, a bare state dict or an exported file",
    )
    parser.add_argument(
        "--split", default="val", choices=SPLITS, help="test is only predicted: it has no public labels"
    )
    parser.add_argument("--width", type=int, help="resize pictures and labels to this width first; scores only")
    parser.add_argument("--save_dir", help="write label-id PNGs here (test: $CITYSCAPES_RESULTS, else ./results)")
    parser.add_argument("--color_dir", help="write color PNGs here")
    parser.add_argument("--json", metavar="FILE", help="write the scores here")
    add_backend_flags(parser)
    parser.add_argument("--workers", type=int, default=min(4, os.cpu_count() or 1), help="loader processes")
    return parser


def main() -> int:
    """Scores a checkpoint on a split, or predicts the test split."""
    args = build_parser().parse_args()
    predict_only = args.split == "test"
    if predict_only and args.json:
        raise UserError("--json was given for the test split, which has no public labels to score; use --split val")
    if args.width is not None and (args.save_dir or predict_only or not MIN_SIZE <= args.width <= 16384):
        raise UserError(f"--width is {args.width}, expected {MIN_SIZE} to 16384, to score a split without --save_dir")
    data = open_data(args.data_path, args.data_root)
    samples = data.find(args.split)
    check_headers(samples)
    network, metadata = load_network(args.model_weight, args.device, args.backend, args.precision, data.classes)
    save_dir = args.save_dir
    if save_dir is None and predict_only:
        save_dir = os.environ.get("CITYSCAPES_RESULTS", "results")
    if args.color_dir and save_dir is None:
        raise UserError("--color_dir was given without --save_dir; give both")
    writer = PredictionWriter(save_dir, samples, data.classes, args.color_dir) if save_dir else None
    if args.json:
        writable_folder(Path(args.json).absolute().parent)
        refuse_input(args.json, "--json", [args.model_weight, *(file for s in samples for file in (s.image, s.label))])

    note = train_ids_note(samples)
    if note:
        print(note)
    if args.split in metadata.get("train_split", "train").split("+"):
        print(f"the {args.split} split was seen in training: these scores say little about other pictures")
    wide = f" made {args.width} wide" if args.width else ""
    epoch = f", epoch {metadata['epoch']}" if "epoch" in metadata else ""
    print(f"{args.model_weight}{epoch} on {args.data_path}, {args.split}: {len(samples)} frames{wide}, {network.name}")
    read = functools.partial(read_at_width, width=args.width) if args.width else read_pair
    scores = evaluate(network, samples, data.classes, workers=args.workers, writer=writer, read=read)
    if writer:
        print(f"predictions: {writer.folder}")
    if predict_only:
        print("the test split is predicted only: its labels are not public")
        return 1 if writer.refused else 0
    if not scores.confusion.any():
        check_frames(samples, args.split, data.classes, args.workers, decode_images=False).refuse_unlabelled()
    print(scores.table())
    if args.json:
        write_file(args.json, json.dumps(scores.as_json(), indent=2).encode())
    return 1 if writer and writer.refused else 0


if __name__ == "__main__":
    run_cli(main, DataError)
