"""The files of a training run: weights, the state to resume from, statistics and plots."""

from __future__ import annotations

import csv
import io
import math
import re
import shlex
import sys
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch

import distributed
from frames.classes import Classes
from model import FastSCNN
from training.plots import plot_confusion, plot_curves
from training.recipes import Options, previous_path
from utils import UserError, save_checkpoint, writable_folder, write_file

OF_A_RUN = re.compile(r"\d+_\d+_(model|last|last\.prev)\.pth|\d+_\d+_statistics\.csv")
COLUMNS = (
    "epoch",
    "train_loss",
    "val_loss",
    "pixel_accuracy",
    "class_miou",
    "class_miou_present",
    "joined_miou",
    "category_miou",
    "lr",
    "images_per_s",
)

MEANS = ("class_miou", "class_miou_present", "joined_miou")  # which a weight file says of itself


class RunFiles:
    """The files of one run in its output folder, which is created if missing.

    Raises:
        UserError: the folder holds another run and may not be overwritten, or cannot be written to, or the package
            tensorboard is missing.
    """

    def __init__(self, options: Options, classes: Classes):
        self.classes = classes
        self.folder = Path(options.output_dir)
        self.prefix = f"{options.crop_h}_{options.crop_w}"
        self.best = self.folder / f"{self.prefix}_model.pth"
        self.last = self.folder / f"{self.prefix}_last.pth"
        self.statistics = self.folder / f"{self.prefix}_statistics.csv"
        # The files of an earlier run, which are removed before the first step.
        self.earlier = self._earlier_run(options.resume) if distributed.is_first() else []
        if self.earlier and not options.overwrite:
            names = ", ".join(path.name for path in self.earlier[:4])
            state = next((path for path in self.earlier if path.name.endswith("_last.pth")), "FILE")
            raise UserError(
                f"{self.folder} holds another run ({names}): resume it with --resume {state}, name another "
                "--output_dir, or replace it with --overwrite"
            )
        writable_folder(self.folder)
        self.command = shlex.join(["train.py", *sys.argv[1:]])
        self.train_split = options.train_split
        self.extra_data = options.extra_data or []
        self.board = _open_board(self.folder) if options.tensorboard and distributed.is_first() else None

    def _earlier_run(self, resumed: str | None) -> list[Path]:
        """Returns the files of an earlier run of any crop size, none if it is the run that is resumed."""
        if not self.folder.is_dir():
            return []
        if resumed and Path(resumed).resolve() in (self.last.resolve(), previous_path(self.last).resolve()):
            return []
        return sorted(path for path in self.folder.iterdir() if OF_A_RUN.fullmatch(path.name))

    def remove_earlier(self) -> None:
        """Removes the run that is overwritten, and what a run left that was killed while it saved."""
        for path in [*self.earlier, *self.folder.glob(f".{self.prefix}_*.tmp")]:
            path.unlink(missing_ok=True)

    def save_epoch(self, state: dict, best_metadata: dict, confusion: np.ndarray) -> None:
        """Saves an epoch: first the state, from which everything else can be written again, then the other files.

        Args:
            state: what training resumes from, with `history` and `best`.
            best_metadata: metadata of the best weights.
            confusion: (K, K) pixel counts of the validation.
        """
        row = state["history"][-1]
        save_checkpoint(self.last, state, previous_path(self.last))
        self.save_results(state["history"], state["best"]["model"], best_metadata)
        plot_confusion(self.folder / "confusion.png", confusion, self.classes, f"epoch {row['epoch']}, validation")
        if self.board:
            for name in COLUMNS[1:]:
                self.board.add_scalar(name, row[name], row["epoch"])

    def save_results(self, history: list[dict], best_weights: dict, best_metadata: dict) -> None:
        """Saves the best weights, if they are new, the statistics and the curves."""
        if best_metadata["epoch"] == history[-1]["epoch"] or not self.best.exists():
            save_checkpoint(self.best, {"model": best_weights, "metadata": best_metadata})
        write_csv(self.statistics, COLUMNS, history)
        plot_curves(self.folder / "curves.png", history, self.command)

    def metadata(self, model: FastSCNN, row: dict) -> dict:
        """Returns what a weight file says about itself, in plain values."""
        return {
            "network": "Fast-SCNN",
            **model.options(),
            "classes": self.classes.as_dict(),
            "train_split": self.train_split,
            "epoch": row["epoch"],
            **{name: row[name] for name in MEANS if not math.isnan(row[name])},
            "extra_data": self.extra_data,
            "command": self.command,
            "torch": str(torch.__version__),
        }


def write_csv(path: str | Path, columns: Iterable[str], rows: Iterable[dict]) -> None:
    """Writes a whole table, so that a resumed run never leaves half a row or a row twice."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, fieldnames=list(columns), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_file(path, text.getvalue().encode())


def _open_board(folder: Path) -> object:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise UserError("--tensorboard needs the package tensorboard: pip install tensorboard") from None
    return SummaryWriter(folder / "tensorboard")
