"""Predictions on disk, as the official script expects them."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from classes import Classes
from dataset import Sample
from images import encode_png
from utils import UserError, files_below, name_refused, writable_folder, write_file

ENDING = "_pred_labelIds.png"


class PredictionWriter:
    """Writes predictions as the official script expects them: one PNG of label ids per frame, at the frame's size.

    Files lie in one folder if the names of the frames differ, else in folders as the frames do.

    Args:
        folder: the results root; created if missing.
        samples: the frames that will be written.
        classes: give the values to write and the colors.
        color_folder: also write color images here; the official script cannot take their names for predictions.

    Raises:
        UserError: a folder cannot be written, or the results root holds predictions of other frames, or another
            prediction of one of these, which would end the official script.
    """

    def __init__(
        self,
        folder: str | Path,
        samples: Sequence[Sample],
        classes: Classes,
        color_folder: str | Path | None = None,
    ):
        self.folder = writable_folder(folder)
        self.color_folder = writable_folder(color_folder) if color_folder else None
        self.classes = classes
        self.flat = len({sample.name.casefold() for sample in samples}) == len(samples)
        self.files = {self.path(sample) for sample in samples}
        if self.color_folder:
            self.files |= {self.color_path(sample) for sample in samples}
        self.refused = 0  # predictions whose names the file system did not take
        names = {sample.name for sample in samples}
        for found in files_below(self.folder):
            if found.suffix != ".png" or found in self.files:
                continue
            frame = "_".join(found.stem.split("_")[:3])
            if frame in names:
                raise UserError(
                    f"{found} is a second prediction of {frame}, and the official script stops at two; "
                    f"remove it or write to another folder than {self.folder}"
                )
            if found.name.endswith(ENDING):
                raise UserError(
                    f"{self.folder} holds predictions of other frames ({found.name}), with which these would be mixed; "
                    "remove them or name another folder"
                )

    def path(self, sample: Sample) -> Path:
        """Returns the file of a frame's prediction."""
        folder = self.folder if self.flat else self.folder / sample.folder
        return folder / f"{sample.name}{ENDING}"

    def color_path(self, sample: Sample) -> Path:
        """Returns the file of a frame's prediction in color."""
        folder = self.color_folder if self.flat else self.color_folder / sample.folder
        return folder / f"color_{sample.name}.png"

    def clear(self) -> None:
        """Removes earlier predictions of these frames, so that an interruption leaves no mixture."""
        for folder in filter(None, {self.folder, self.color_folder}):
            for found in files_below(folder):
                if found in self.files:
                    found.unlink()

    def encode(self, sample: Sample, train_ids: np.ndarray) -> tuple[Sample, bytes, bytes]:
        """Returns the arguments of `write` for (H, W) uint8 train ids; this part can be done in any process."""
        color = cv2.cvtColor(self.classes.palette[train_ids], cv2.COLOR_RGB2BGR) if self.color_folder else None
        return (
            sample,
            encode_png(self.classes.labels.file_values[train_ids]),
            b"" if color is None else encode_png(color),
        )

    def write(self, sample: Sample, label_ids: bytes, color: bytes) -> None:
        """Writes one prediction; one whose name the file system refuses is reported and left out."""
        files = [(self.path(sample), label_ids)]
        if self.color_folder:
            files.append((self.color_path(sample), color))
        for path, content in files:
            try:
                if not self.flat:
                    writable_folder(path.parent)
                write_file(path, content)
            except UserError as error:
                if not name_refused(error):
                    raise
                self.refused += 1
                print(f"left out: {error}", file=sys.stderr)
