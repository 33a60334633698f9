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
from typing import Protocol

import torch
from torch import Tensor
from tqdm import tqdm

import distributed
from evaluation.scores import ScoredFrame, Scores
from frames.classes import IGNORE_INDEX, Classes
from frames.samples import Read, Sample, read_pair
from frames.unions import Unions
from frames.workers import FrameSet, frame_loader, naming_dead_workers
from inference.engine import Engine
from inference.label_head import labels_from_logits
from inference.predictor import check_size


class Output(Protocol):
    """What is written of every frame: label files, a report."""

    def start(self) -> None:
        """Makes room, once, before the first frame; only the first process does this."""

    def encode(self, frame: ScoredFrame) -> tuple:
        """Returns the arguments of `write`; any process may do this."""

    def write(self, *encoded: object) -> object:
        """Writes a frame; only the first process does this."""


@torch.inference_mode()
def evaluate(
    engine: Engine,
    samples: Sequence[Sample],
    classes: Classes,
    *,
    workers: int = 0,
    outputs: Sequence[Output] = (),
    read: Read = read_pair,
    loss: Callable[..., float] | None = None,
    before_each: Callable[[], None] = lambda: None,
) -> Scores:
    """Predicts every frame at its full size and scores the predictions: the one path to every reported number.

    Of several processes, each takes its share of the frames, no frame twice; all get the scores of the whole set, and
    the first one writes.

    Args:
        engine: of any backend.
        samples: the frames; those without labels are only predicted.
        classes: of the labels and of the network.
        workers: loader processes.
        outputs: get every frame.
        read: reads a frame, from files or from a cache.
        loss: from logits, targets, align_corners and unions to a loss summed over the labelled pixels, see
            training.losses.summed_cross_entropy; it takes longer than everything else. Without one, the loss is NaN.
        before_each: called before each frame; may raise to stop.

    Raises:
        UserError: a file is damaged, or a prediction cannot be written.
    """
    if distributed.is_first():
        for output in outputs:
            output.start()
    share = range(len(samples))[distributed.rank() :: distributed.count()]
    loader = frame_loader(FrameSet([samples[index] for index in share], read), workers)
    unions = Unions.of([classes.labels], len(classes))
    table = unions.table(classes.labels)
    confusion = torch.zeros(len(classes), len(classes), dtype=torch.int64)
    loss_sum = 0.0
    with naming_dead_workers(loader):
        bar = tqdm(loader, desc="evaluate", leave=False, disable=distributed.hide_bars())
        # Some processes have one frame less, and all have to write equally often.
        for _, item in itertools.zip_longest(range(0, len(samples), distributed.count()), bar):
            encoded = [None for _ in outputs]
            if item is not None:
                before_each()
                images, targets, place = item
                sample = samples[share[int(place)]]
                check_size(images.shape[1:3], sample.image)
                if loss is None:
                    labels = engine.labels(images)
                else:
                    logits = engine.logits(images)
                    labels = labels_from_logits(logits, images.shape[1:3], engine.align_corners)
                    learnt = targets if table is None else torch.from_numpy(table)[targets.long()]
                    loss_sum += loss(logits, learnt, engine.align_corners, unions.members)
                counts = confusion_matrix(targets.to(labels.device), labels, len(classes)).cpu()
                confusion += counts
                if outputs:
                    prediction = labels[0].to(torch.uint8).cpu().numpy()
                    arrays = images[0].numpy(), targets[0].numpy(), prediction, counts.numpy()
                    frame = ScoredFrame(share[int(place)], sample, *arrays)
                    encoded = [output.encode(frame) for output in outputs]
            for output, one in zip(outputs, encoded, strict=True):
                for received in distributed.gather_to_first(one):
                    if received is not None:
                        output.write(*received)
    confusion = distributed.all_reduce_sum(confusion)
    loss_sum = float(distributed.all_reduce_sum(torch.tensor(loss_sum, dtype=torch.float64)))
    pixels = int(confusion.sum())
    return Scores(classes, confusion.numpy(), loss_sum / pixels if loss and pixels else math.nan)


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
