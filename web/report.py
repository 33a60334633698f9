"""The report of scores: a folder that opens from disk in a browser, see report_page/.

Everything that the page shows is in data.js, a fixed beginning and JSON behind it; pictures lie beside it by number.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from pathlib import Path

from evaluation.scores import ScoredFrame, Scores
from frames.classes import Classes
from frames.samples import Sample
from utils import UserError
from web.folder import FolderAside, first_foreign
from web.other_report import END, PREFIX, ComparedReport, picture_name, read_picture
from web.pictures import draw_pictures, picture_size
from web.report_data import About, Frame, find_groups, frame_table, page_data, sparse

PAGE = Path(__file__).parent / "report_page"
WIDTH = 640  # of the pictures
WIDTHS = (64, 4096)
FROM_OTHER = {"other_prediction": "prediction", "other_errors": "errors"}
_PICTURE = re.compile(r"pictures/\d{4,}_(input|truth|prediction|errors|other_prediction|other_errors)\.webp")


class Report:
    """Builds a report: `encode` and `write` each frame, then `finish`. As a context manager it removes a partial one.

    What cannot be written does not end the scoring: `finish` raises it.

    Args:
        folder: missing, empty, or an earlier report, which is replaced at the end.
        classes: of the labels.
        samples: the frames.
        width: most pixels of the pictures, in WIDTHS.
        compare: another report of the same frames.
        outputs: other files and folders that will be written, which may not lie in the folder.

    Raises:
        UserError: the folder is refused, or the other report is.
    """

    def __init__(
        self,
        folder: str | Path,
        classes: Classes,
        samples: Sequence[Sample],
        width: int = WIDTH,
        compare: str | Path | None = None,
        outputs: Sequence[str | Path | None] = (),
    ):
        self.aside = FolderAside(folder, "--report", "report", _foreign)
        self.path = self.aside.path
        for output in filter(None, outputs):
            if Path(os.path.realpath(output)).is_relative_to(self.path):
                raise UserError(f"{output} lies in --report {folder}, whose files are all replaced; name another place")
        self.classes, self.samples, self.width = classes, list(samples), width
        self.groups = find_groups(classes)
        self.compare = compare
        self.compared = None if compare is None else ComparedReport.read(compare, classes, self.samples)
        self.frames: dict[int, Frame] = {}
        self.failed: UserError | None = None

    def __enter__(self) -> Report:
        return self

    def __exit__(self, *error: object) -> None:
        self.aside.discard()

    def start(self) -> None:
        """Does nothing: an earlier report stays until this one is finished."""

    def encode(self, frame: ScoredFrame) -> tuple[int, Frame, dict[str, bytes]]:
        """Returns the arguments of `write` for a frame: its row and its pictures; any process may do this."""
        size = frame.image.shape[:2]
        shown = picture_size(size, self.width)
        pictures, labels = draw_pictures(frame.image, frame.truth, frame.prediction, self.classes, self.groups, shown)
        return frame.index, Frame(size, shown, sparse(frame.confusion), labels), pictures

    def write(self, index: int, frame: Frame, pictures: dict[str, bytes]) -> None:
        """Adds a frame, and writes its pictures."""
        self.frames[index] = frame
        for kind, content in pictures.items():
            self._write(picture_name(index, kind), content)

    def _write(self, name: str, content: bytes) -> None:
        """Writes a file of the report, if none has failed."""
        if not self.failed:
            try:
                self.aside.write(name, content)
            except UserError as error:
                self.failed = error
                self.aside.discard()  # a full disk has room again for other files

    def finish(self, scores: Scores, about: About) -> str | None:
        """Writes the rest and puts the report in its place.

        Args:
            scores: of all frames.
            about: what was scored.

        Returns:
            Why the report was written without the comparison: the other report has other labels or sizes. Else None.

        Raises:
            UserError: it could not be written, and an earlier report is untouched.
        """
        frames = [self.frames[index] for index in range(len(self.samples))]
        difference = self.compared.difference(frames, len(self.classes)) if self.compared else None
        other = None if difference else self.compared
        if other:
            for index in range(len(other.frames)):
                for kind, source in FROM_OTHER.items():
                    self._write(picture_name(index, kind), read_picture(self.compare, index, source))
        theirs = (other.about, other.frames) if other else None
        data = page_data(about, self.classes, scores, self.samples, frames, theirs)
        self._write("data.js", PREFIX + json.dumps(data, allow_nan=False, separators=(",", ":")).encode() + END)
        table = frame_table(self.classes, self.samples, frames, other.frames if other else None)
        self._write("frames.csv", table.encode())
        for path in PAGE.iterdir():
            self._write(path.name, path.read_bytes())
        if self.failed:
            raise self.failed
        self.aside.exchange()
        return difference


def _foreign(folder: Path) -> str | None:
    """Returns the first file of a folder that no report has; any, if it is no report."""
    try:
        with open(folder / "data.js", "rb") as file:
            is_report = file.read(len(PREFIX)) == PREFIX
    except OSError:
        is_report = False
    known = {path.name for path in PAGE.iterdir()} | {"data.js", "frames.csv"}
    return first_foreign(folder, lambda name: is_report and (name in known or bool(_PICTURE.fullmatch(name))))
