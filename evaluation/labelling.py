"""Labels of pictures that nobody scores: any number of them, by any number of processes, each written at once."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

import distributed
from evaluation.prediction_files import PredictionWriter
from frames.images import read_image
from frames.samples import Sample
from frames.workers import as_it_is, frame_loader, naming_dead_workers
from inference.engine import Engine
from inference.predictor import check_size
from utils import UserError

OUTCOMES = ("labelled", "already there", "left out")


class _Pictures(Dataset):
    """Yields (picture or None, problem or ""). None: already labelled, or unreadable. Pictures are (H, W, 3) uint8 RGB.

    The keys are the samples themselves: a shared list would be copied into every worker by reference counting.
    """

    def __init__(self, done: Callable[[Sample], bool] | None):
        self.done = done

    def __getitem__(self, sample: Sample) -> tuple[Tensor | None, str]:
        if self.done and self.done(sample):
            return None, ""
        try:
            image = read_image(sample.image)
            check_size(image.shape[:2], sample.image)
        except UserError as error:
            return None, str(error)
        return torch.from_numpy(image), ""


@torch.inference_mode()
def label_pictures(
    engine: Engine, samples: Sequence[Sample], writer: PredictionWriter, *, workers: int = 0, keep: bool = False
) -> dict[str, int]:
    """Labels pictures at their full size; of several processes, each writes its share, no picture twice.

    A picture that is damaged or too small is named on stderr and left out. Memory does not grow with their number.

    Args:
        engine: of any backend.
        samples: the frames.
        writer: writes the predictions.
        workers: loader processes.
        keep: leave out frames whose predictions are there; else earlier ones are removed first.

    Returns:
        The number of pictures of each of OUTCOMES, over all processes.

    Raises:
        UserError: a prediction cannot be written.
    """
    if distributed.is_first() and not keep:
        writer.start()
    distributed.all_reduce_sum(torch.zeros(1))  # nobody writes before that
    mine = samples[distributed.rank() :: distributed.count()]
    data = _Pictures(writer.has if keep else None)
    loader = frame_loader(data, workers, batch_size=None, sampler=mine, collate_fn=as_it_is)
    counts = dict.fromkeys(OUTCOMES, 0)
    with naming_dead_workers(loader):
        pictures = tqdm(loader, "label", len(mine), leave=False, disable=distributed.hide_bars(), unit="frame")
        for sample, (image, problem) in zip(mine, pictures, strict=True):
            outcome = "left out" if problem else "already there"
            if problem:
                print(f"left out: {problem}", file=sys.stderr)
            elif image is not None:
                train_ids = engine.labels(image[None])[0].to(torch.uint8).cpu().numpy()
                outcome = "labelled" if writer.write(*writer.encode_labels(sample, train_ids)) else "left out"
            counts[outcome] += 1
    totals = distributed.all_reduce_sum(torch.tensor(list(counts.values())))
    return dict(zip(OUTCOMES, totals.tolist(), strict=True))
