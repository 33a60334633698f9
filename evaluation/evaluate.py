"""One evaluation for train.py and evaluate.py: every reported number comes from here."""

from __future__ import annotations

import itertools
import math
import os
import shlex
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

import distributed
from evaluation.prediction_files import PredictionWriter
from evaluation.scores import Scores
from frames.classes import IGNORE_INDEX, Classes
from frames.samples import Read, Sample, read_pair
from frames.unions import Members, Unions
from frames.workers import FrameSet, frame_loader, naming_dead_workers
from inference.engine import Engine
from inference.label_head import labels_from_logits
from inference.predictor import check_size
from training.losses import pixel_loss
from web.report import Report


class _WrittenByFirst:
    """What any process makes of a frame and the first one writes: its own at once, that of the others by and by.

    Args:
        write: what the first process does with it.
        most: frames of the process that has the most.
    """

    EVERY = 16  # frames of each process: more would wait in memory

    def __init__(self, write: Callable[..., None], most: int):
        self.write = write
        self.most = most
        self.count = 0
        self.waiting: list[tuple] = []

    def put(self, made: tuple) -> None:
        """Takes the arguments of `write`."""
        if distributed.is_first():
            self.write(*made)
        else:
            self.waiting.append(made)
        self.count += 1
        if self.count % self.EVERY == 0:
            self._send()

    def finish(self) -> None:
        """Sends what still waits; some processes have one frame less, and all have to send equally often."""
        if -(-self.most // self.EVERY) > self.count // self.EVERY:
            self._send()

    def _send(self) -> None:
        for made in itertools.chain.from_iterable(distributed.gather_to_first(self.waiting)):
            self.write(*made)
        self.waiting.clear()


@torch.inference_mode()
def evaluate(
    network: Engine,
    samples: Sequence[Sample],
    classes: Classes,
    *,
    workers: int = 0,
    writer: PredictionWriter | None = None,
    report: Report | None = None,
    read: Read = read_pair,
    with_loss: bool = False,
    before_each: Callable[[], None] = lambda: None,
) -> Scores:
    """Predicts every frame at its full size and scores the predictions: the one path to every reported number.

    Of several processes, each takes its share of the frames, no frame twice; all get the scores of the whole set, and
    the first writes all predictions and the pictures of the report.

    Args:
        network: on any engine.
        samples: the frames; those without labels are only predicted.
        classes: of the labels and of the network.
        workers: loader processes.
        writer: writes the predictions, if given.
        report: gets every frame, if given.
        read: reads a frame, from files or from a cache.
        with_loss: also compute the loss, which takes longer than everything else; otherwise it is NaN.
        before_each: called before each frame; may raise to stop.

    Raises:
        UserError: a file is damaged.
        UserError: a prediction cannot be written.
    """
    if writer and distributed.is_first():
        writer.clear()
    places = range(len(samples))[distributed.rank() :: distributed.count()]
    loader = frame_loader(FrameSet([samples[place] for place in places], read), workers)
    unions = Unions.of([classes.labels], len(classes))
    table = unions.table(classes.labels)
    confusion = torch.zeros(len(classes), len(classes), dtype=torch.int64)
    loss_sum = 0.0
    most = -(-len(samples) // distributed.count())
    predictions = _WrittenByFirst(writer.write, most) if writer else None
    drawn = _WrittenByFirst(report.add, most) if report else None
    with naming_dead_workers(loader):
        for images, targets, index in tqdm(loader, desc="evaluate", leave=False, disable=distributed.hide_bars()):
            before_each()
            place = places[int(index)]
            sample = samples[place]
            check_size(images.shape[1:3], sample.image)
            if with_loss:
                logits = network.logits(images)
                labels = labels_from_logits(logits, images.shape[1:3], network.align_corners)
                learnt = targets if table is None else torch.from_numpy(table)[targets.long()]
                loss_sum += summed_loss(logits, learnt, network.align_corners, unions.members)
            else:
                labels = network.labels(images)
            counts = confusion_matrix(targets.to(labels.device), labels, len(classes)).cpu()
            confusion += counts
            train_ids = labels[0].to(torch.uint8).cpu().numpy() if writer or report else None
            if writer:
                predictions.put(writer.encode(sample, train_ids))
            if report:
                drawn.put(report.draw(place, images[0].numpy(), targets[0].numpy(), train_ids, counts.numpy()))
    for written in filter(None, (predictions, drawn)):
        written.finish()
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


def seen_note(split: str, train_split: str) -> str:
    """Returns a note to print if a split is part of the one that was trained on, else an empty string."""
    seen = split in train_split.split("+")
    return f"the {split} split was seen in training: these scores say little about other pictures" if seen else ""
