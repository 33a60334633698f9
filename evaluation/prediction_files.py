"""Predictions on disk, as the official script expects them."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np

from evaluation.scores import ScoredFrame
from frames.classes import Classes
from frames.folders import files_below
from frames.images import color, count_values, encode_png, picture_size, read_image
from frames.samples import Sample
from utils import UserError, locked, name_refused, writable_folder, write_file

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
        self, folder: str | Path, samples: Sequence[Sample], classes: Classes, color_folder: str | Path | None = None
    ):
        self.folder = writable_folder(folder)
        self.color_folder = writable_folder(color_folder) if color_folder else None
        self.classes = classes
        self.samples = samples
        self.flat = len({sample.name.casefold() for sample in samples}) == len(samples)
        self.refused = 0  # predictions whose names the file system did not take
        self._made = self.folder  # the last folder that was made
        names = set()
        for found, own in self._earlier(self.folder):
            if own:
                continue
            names = names or {sample.name for sample in samples}
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

    def _earlier(self, folder: Path) -> Iterator[tuple[Path, bool]]:
        """Yields the PNGs below a folder, and whether they are files of these frames."""
        own: set[str] = set()  # only made if there are any: it takes as much memory as the frames do
        for found in files_below(folder):
            if found.suffix == ".png":
                own = own or {str(path) for sample in self.samples for path in self.paths(sample)}
                yield found, str(found) in own

    def path(self, sample: Sample) -> Path:
        """Returns the file of a frame's prediction."""
        folder = self.folder if self.flat else self.folder / sample.folder
        return folder / f"{sample.name}{ENDING}"

    def color_path(self, sample: Sample) -> Path:
        """Returns the file of a frame's prediction in color."""
        folder = self.color_folder if self.flat else self.color_folder / sample.folder
        return folder / f"color_{sample.name}.png"

    def paths(self, sample: Sample) -> list[Path]:
        """Returns the files of a frame: its prediction, and that in color if there is to be one."""
        return [self.path(sample), *([self.color_path(sample)] if self.color_folder else [])]

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Keeps other runs out of the folders during the block, and removes what killed ones left unfinished in it.

        The system releases the lock if this process is killed. Without file locks (Windows), nobody is kept out.

        Raises:
            UserError: another run is writing there.
        """
        with locked(self.folder), locked(self.color_folder) if self.color_folder else contextlib.nullcontext():
            for folder in filter(None, {self.folder, self.color_folder}):
                for pattern in (f".*{ENDING}.*.tmp", ".color_*.png.*.tmp"):  # see utils.unfinished_path
                    for left in folder.rglob(pattern):
                        left.unlink(missing_ok=True)
            yield

    def start(self) -> None:
        """Removes earlier predictions of these frames, so that an interruption leaves no mixture."""
        for folder in filter(None, {self.folder, self.color_folder}):
            for found, own in self._earlier(folder):
                if own:
                    found.unlink()

    def has(self, sample: Sample) -> bool:
        """Returns whether the files of a frame are whole, of the size of its picture, and hold values of the classes.

        Of the picture only the header is read, where that is enough.
        """
        try:
            label_ids, *color = (read_image(path, cv2.IMREAD_UNCHANGED) for path in self.paths(sample))
            sizes = {image.shape[:2] for image in (label_ids, *color)} | {picture_size(sample.image)}
        except UserError:
            return False
        values = np.flatnonzero(count_values(label_ids)) if label_ids.ndim == 2 else [-1]
        return len(sizes) == 1 and bool(np.isin(values, self.classes.labels.file_values).all())

    def encode(self, frame: ScoredFrame) -> tuple[Sample, bytes, bytes]:
        """Returns the arguments of `write` for a frame; any process may do this."""
        return self.encode_labels(frame.sample, frame.prediction)

    def encode_labels(self, sample: Sample, train_ids: np.ndarray) -> tuple[Sample, bytes, bytes]:
        """Returns the arguments of `write` for (H, W) uint8 train ids; any process may do this."""
        drawn = cv2.cvtColor(color(train_ids, self.classes), cv2.COLOR_RGB2BGR) if self.color_folder else None
        return (
            sample,
            encode_png(self.classes.labels.file_values[train_ids]),
            b"" if drawn is None else encode_png(drawn),
        )

    def write(self, sample: Sample, label_ids: bytes, color: bytes) -> bool:
        """Writes one prediction; one whose name the file system refuses is reported and left out: False."""
        before = self.refused
        for path, content in zip(self.paths(sample), (label_ids, color), strict=False):
            try:
                if not self.flat and path.parent != self._made:
                    self._made = writable_folder(path.parent)
                write_file(path, content)
            except UserError as error:
                if not name_refused(error):
                    raise
                self.refused += 1
                print(f"left out: {error}", file=sys.stderr)
        return self.refused == before
