"""Where the frames of a described data set lie: its folders, patterns and lists, and the label of each picture."""

from __future__ import annotations

import glob
import os
import sys
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from frames.classes import LabelFormat
from frames.folders import files_below, is_data
from frames.images import PICTURES
from frames.samples import Sample, Scales
from utils import UserError, quoted

LOSSY_ENDINGS = (".jpg", ".jpeg")
LABEL_ENDINGS = (".png", *sorted({*PICTURES} - {".png", ".jp2", *LOSSY_ENDINGS}))


@dataclass(frozen=True)
class Layout:
    """What a description says about files.

    Attributes:
        file: the description, for messages.
        root: the absolute folder that it calls `path`.
        splits: the folders, patterns and lists of each split that it has.
        masks: a folder and what stands in its place in the path of a label, each of one or more parts.
        below_root: these folders are looked for below `root` only, else in the whole path.
        suffixes: the end of a picture's file name and the end of its label's; if empty, only the ending differs.
        labels: what the values of the label files mean.
        scales: of training crops, if the description has them.
    """

    file: str
    root: Path
    splits: dict[str, tuple[str, ...]]
    masks: tuple[tuple[str, str], ...]
    below_root: bool
    suffixes: tuple[tuple[str, str], ...]
    labels: LabelFormat
    scales: Scales | None = None

    def suffix(self, picture: Path) -> tuple[str, str] | None:
        """Returns the longest of `suffixes` that a picture ends with, and its label's suffix; None without one."""
        fitting = [pair for pair in self.suffixes if picture.name.endswith(pair[0])]
        return max(fitting, key=lambda pair: len(pair[0]), default=None)


def find_frames(layout: Layout, split: str) -> list[Sample]:
    """Finds the frames of a split, sorted by folder and name; what is left out is said on stderr.

    The folder of a frame is that below what all entries of the split have in common. Labels of the test split are not
    read: that is only predicted.

    Raises:
        UserError: a folder, list or picture is missing, a picture has no label, or two cannot be told apart;
            or a folder cannot be read.
    """
    try:
        if split not in layout.splits:
            raise UserError(f"it has no `{split}`, only {', '.join(layout.splits)}; add `{split}: FOLDER`")
        found = [_search(layout, split, entry) for entry in layout.splits[split]]
        named = [picture for search in found for picture in search.pictures]
        frames = _named(dict.fromkeys(named), _common(search.base for search in found))
        finder = LabelFinder(layout)
        pairs = {picture: None if split == "test" else finder.label(picture) for picture in frames}
    except UserError as error:
        raise UserError(f"{layout.file}: {error}") from None

    for count, what in (
        (len(named) - len(frames), "pictures named more than once, read once"),
        (sum(search.foreign for search in found), "pictures skipped: no key of label_suffix matches their names"),
        (finder.without_picture(pairs, found), "labels without a picture"),
    ):
        if count:
            print(f"note: {layout.file}: {split}: {what}: {count}", file=sys.stderr)
    order = sorted(frames, key=frames.get)
    return [Sample(frames[path][1], path, pairs[path], layout.labels, frames[path][0], layout.scales) for path in order]


class _Search(NamedTuple):
    """What an entry of a split leads to."""

    base: Path  # the folder above all its pictures
    pictures: list[Path]
    whole: bool = False  # folders with all that is in them
    foreign: int = 0  # pictures that `suffixes` leaves out, without the labels among them


def _search(layout: Layout, split: str, entry: str) -> _Search:
    """Returns the pictures that an entry of a split names; one that begins with ../ is tried without it too."""
    for text in dict.fromkeys((entry, entry.removeprefix("../"))):
        place = absolute(layout.root / text)
        if place.suffix.lower() == ".txt" and os.path.isfile(place):
            pictures = _listed(place, layout.root)
            return _Search(_common(picture.parent for picture in pictures), pictures)
        places = [place] if os.path.exists(place) else _matches(layout.root, text)
        if places:
            return _collect(layout, split, entry, places)
    raise UserError(
        f"`{split}` names {quoted(entry)}, which is not in {layout.root}; expected a folder, a pattern or a .txt list"
    )


def _collect(layout: Layout, split: str, entry: str, places: Sequence[Path]) -> _Search:
    """Returns the pictures in folders, and those that are named themselves."""
    folders = [place for place in places if os.path.isdir(place)]
    files = [place for place in places if not os.path.isdir(place)]
    files += [path for folder in folders for path in files_below(folder)]
    files = [path for path in dict.fromkeys(files) if path.suffix.lower() in PICTURES]
    pictures = [path for path in files if not layout.suffixes or layout.suffix(path)]
    if not pictures:
        ends = " or ".join(old for old, _ in layout.suffixes)
        kind = f"picture that ends with {quoted(ends)}" if files else f"picture ({', '.join(PICTURES)})"
        raise UserError(
            f"`{split}` names {quoted(entry)}, which holds no {kind}; name another folder below {layout.root}"
        )
    ends = tuple(new for _, new in layout.suffixes)
    foreign = sum(not (path.name.endswith(ends) or layout.suffix(path)) for path in files) if ends else 0
    base = _common(place if place in folders else place.parent for place in places)
    return _Search(base, pictures, folders == places, foreign)


def _matches(root: Path, pattern: str) -> list[Path]:
    """Returns what a pattern matches, sorted; empty for a text that is no pattern."""
    literal = Path(pattern).parts
    found = glob.glob(pattern, root_dir=root, recursive=True) if glob.has_magic(pattern) else []
    kept = (match for match in found if all(part in literal or is_data(part) for part in Path(match).parts))
    return sorted({absolute(root / match) for match in kept})


def _listed(file: Path, root: Path) -> list[Path]:
    """Returns the pictures that the lines of a text file name, beside it or below `root`."""
    try:
        lines = file.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8"
        raise UserError(f"cannot read the list {file} ({reason}); expected a picture's path in each line") from None
    pictures = []
    for number, line in enumerate(map(str.strip, lines), 1):
        if line:
            places = [absolute(folder / line) for folder in (file.parent, root) if "\0" not in line]
            found = [place for place in places if os.path.isfile(place)]
            if not found or found[0].suffix.lower() not in PICTURES:
                folders = " or ".join(map(str, dict.fromkeys((file.parent, root))))
                raise UserError(f"{file}, line {number}: {quoted(line)} is no picture in {folders}; correct it")
            pictures.append(found[0])
    if not pictures:
        raise UserError(f"the list {file} is empty; expected a picture's path in each line")
    return pictures


def _named(pictures: Iterable[Path], common: Path) -> dict[Path, tuple[str, str]]:
    """Returns folder and name of each picture."""
    places: dict[tuple[str, str], Path] = {}
    for picture in pictures:
        folder = picture.parent.relative_to(common).as_posix()
        key = ("" if folder == "." else folder, picture.stem)
        if key in places:
            raise UserError(f"{places[key]} and {picture} differ only in their ending; remove or rename one of them")
        places[key] = picture
    return {picture: key for key, picture in places.items()}


class LabelFinder:
    """The label files of pictures; each folder is listed once."""

    def __init__(self, layout: Layout):
        self.layout = layout
        self._listings: dict[Path, dict[str, list[str]]] = {}

    def sample(self, path: Path) -> Sample:
        """Returns a picture, with its label if there is one."""
        try:
            label = self.label(absolute(path))
        except UserError:
            label = None
        return Sample(path.stem, path, label, self.layout.labels)

    def label(self, picture: Path) -> Path:
        """Returns the label of a picture: with the ending that it should have, else with another one."""
        layout = self.layout
        folder = self._folder(picture)
        old, new = layout.suffix(picture) or (picture.suffix, ".png")
        stem, ending = os.path.splitext(picture.name.removesuffix(old) + new)
        present = self._listing(folder).get(stem, []) if folder else []
        files = {one.lower(): folder / (stem + one) for one in present}
        for one in (ending.lower(), *LABEL_ENDINGS):
            if one in files and files[one] != picture and one not in LOSSY_ENDINGS:
                return files[one]
        self._refuse_polygons(picture, files.get(".txt"))
        if folder is None:
            names = " or ".join(f"`{old}`" for old, _ in layout.masks)
            raise UserError(
                f"no label for {picture}: its path has no folder {names} that masks_dir could replace; write masks_dir "
                "as a mapping from the folder of pictures to the folder of labels, such as {left: labels}"
            )
        if picture in files.values():
            raise UserError(f"the label of {picture} would be the picture itself; name its folder with masks_dir")
        lossy = [files[one] for one in LOSSY_ENDINGS if one in files]
        if lossy:
            raise UserError(f"{lossy[0]} is a JPEG, which changes the values of a label; save labels as PNG")
        where = f"expected {folder / (stem + ending)}" if os.path.isdir(folder) else f"there is no folder {folder}"
        raise UserError(f"no label for {picture}: {where}; add it, or name its folder with masks_dir")

    def without_picture(self, pairs: dict[Path, Path | None], found: Sequence[_Search]) -> int:
        """Returns the number of files beside labels of whole folders that look like labels and belong to no picture."""
        known = {*pairs, *pairs.values()}
        folders = {label.parent for one in found if one.whole for path in one.pictures if (label := pairs[path])}
        ends = tuple(os.path.splitext(new)[0] for _, new in self.layout.suffixes) or ("",)
        return sum(
            stem.endswith(ends) and ending.lower() in LABEL_ENDINGS and folder / (stem + ending) not in known
            for folder in folders
            for stem, endings in self._listing(folder).items()
            for ending in endings
        )

    def _folder(self, picture: Path) -> Path | None:
        """Returns the folder of a picture's label, None if masks_dir does not say it.

        Of several folders that masks_dir could replace it is the last one, of those that end there the longest. Without
        one, suffixes alone tell labels from the pictures beside them.
        """
        layout = self.layout
        start = layout.root if layout.below_root and picture.is_relative_to(layout.root) else Path(picture.anchor)
        parts = picture.parent.relative_to(start).parts
        fitting = []
        for old, new in layout.masks:
            length = len(wanted := PurePosixPath(old).parts)
            ends = [end for end in range(length, len(parts) + 1) if parts[end - length : end] == wanted]
            fitting += [(end, length, new) for end in ends]
        if not fitting:
            return picture.parent if layout.suffixes and not layout.below_root else None
        end, length, new = max(fitting)
        return absolute(start.joinpath(*parts[: end - length], new, *parts[end:]))

    def _listing(self, folder: Path) -> dict[str, list[str]]:
        """Returns the endings of the files in a folder by the rest of their name; empty if there is no such folder."""
        if folder not in self._listings:
            listing = self._listings[folder] = defaultdict(list)
            try:
                names = os.listdir(folder) if os.path.isdir(folder) else []
            except OSError as error:
                raise UserError(f"cannot read the folder {folder} ({error.strerror}); check its permissions") from None
            for stem, ending in map(os.path.splitext, sorted(filter(is_data, names))):
                listing[stem].append(ending)
        return self._listings[folder]

    def _refuse_polygons(self, picture: Path, text: Path | None) -> None:
        """Raises UserError if a text file lies where polygons of YOLO lie."""
        parts = picture.parent.parts
        folders = [picture.parent]
        if "images" in parts:
            last = len(parts) - 1 - parts[::-1].index("images")
            folders.append(Path(*parts[:last], "labels", *parts[last + 1 :]))
        for path in (text, *(folder / f"{picture.stem}.txt" for folder in folders)):
            if path and os.path.isfile(path):
                raise UserError(
                    f"the label of {picture} is {path}, polygons of YOLO; expected a mask: convert them to PNG"
                )


def absolute(path: str | Path) -> Path:
    """Returns an absolute path without `..`; links in it are only resolved where that would change its meaning."""
    return Path(os.path.realpath(path) if ".." in Path(path).parts else os.path.abspath(path))


def _common(folders: Iterable[Path]) -> Path:
    return Path(os.path.commonpath(list(folders)))
