"""A loader whose worker dies at a frame, for test_dataset.py: inside a test the death would be pytest's too."""

from __future__ import annotations

import os
import signal
import time

import numpy as np

from frames.cityscapes import find_samples
from frames.samples import Sample, Scales, read_pair
from frames.workers import frame_loader, naming_dead_workers
from training.augment import TrainSet
from utils import run_cli


class Fatal:
    """Reads frames, and ends its process at one of them."""

    def __init__(self, name: str, how: str):
        self.name, self.how = name, how

    def __call__(self, sample: Sample) -> tuple[np.ndarray, np.ndarray]:
        if sample.name == self.name:
            if self.how == "exit":
                os._exit(3)
            os.kill(os.getpid(), getattr(signal, self.how))
        return read_pair(sample)


def load(root: str, name: str, how: str, start: str, seconds: float) -> int:
    """Loads every frame; what is done with one takes that many seconds."""
    data = TrainSet(find_samples(root, "train"), (32, 64), 0, Scales((1.0,), False), read=Fatal(name, how))
    keys = [[(1, index)] for index in range(len(data.samples))]
    loader = frame_loader(data, 2, batch_sampler=keys, multiprocessing_context=start)

    def main() -> None:
        with naming_dead_workers(loader):
            for _ in loader:
                time.sleep(seconds)

    try:
        run_cli(main)
    except SystemExit as end:
        return end.code
