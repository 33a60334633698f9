"""What a class is: names, colors, categories, and what the values of label files mean; CITYSCAPES is the default.

Nothing else knows the table of Cityscapes.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

IGNORE_INDEX = 255  # pixels of this train id count neither in the loss nor in a score
MOST_CLASSES = 255  # train ids 0 to 254
RGB = tuple[int, int, int]


@dataclass(frozen=True)
class LabelFormat:
    """How the values of label files become train ids. Equal formats are equal objects; they can be pickled.

    Attributes:
        train_ids: each known value of a file, 0 to 255, and its train id or IGNORE_INDEX.
        expected: the known values in words, for messages: "label ids 0-33".
        names: what values mean, where that is more than the name of their class.
        ignore_unknown: other values are ignored; else they are refused.
        colors: labels are pictures in color: each color and its train id or IGNORE_INDEX. `train_ids` then holds train
            ids themselves, which is what such a label is read as.
        advice: what to do about unknown values, for messages; {values} in it becomes these values, mapped to ignored.
        alternatives: equivalent values, one per file (1 or 255 in binary masks).
        unions: train ids of coarse labels, and the train ids of all classes that each may mean, its own among them, in
            order.
        own: values listed in the description, preferred when predictions are written.
    """

    train_ids: tuple[tuple[int, int], ...]
    expected: str
    names: tuple[tuple[int, str], ...] = ()
    ignore_unknown: bool = False
    colors: tuple[tuple[RGB, int], ...] = ()
    advice: str = ""
    alternatives: tuple[int, ...] = ()
    unions: tuple[tuple[int, tuple[int, ...]], ...] = ()
    own: tuple[int, ...] = ()

    @functools.cached_property
    def table(self) -> np.ndarray:
        """(256,) uint8: from a value to its train id; IGNORE_INDEX for unknown values."""
        table = np.full(256, IGNORE_INDEX, np.uint8)
        for value, train_id in self.train_ids:
            table[value] = train_id
        return table

    @functools.cached_property
    def known(self) -> np.ndarray:
        """(256,) bool: whether a value may occur. No train id marks the others: all of them can be classes."""
        known = np.full(256, self.ignore_unknown)
        known[[value for value, _ in self.train_ids]] = True
        return known

    @functools.cached_property
    def file_values(self) -> np.ndarray:
        """(256,) uint8: from a train id, or IGNORE_INDEX, to the lowest value that means it; of `own`, if one does."""
        values = np.full(256, IGNORE_INDEX, np.uint8)
        for value, train_id in sorted(
            self.train_ids, key=lambda pair: (pair[0] not in self.own, pair[0]), reverse=True
        ):
            values[train_id] = value
        return values

    @property
    def meant(self) -> list[tuple[int, int]]:
        """The values that mean a class, and its train id."""
        return [pair for pair in self.train_ids if pair[1] != IGNORE_INDEX]

    @functools.cached_property
    def digest(self) -> str:
        """Hash of what decides how a label file is read."""
        decides = sorted(self.meant), sorted(self.colors), self.ignore_unknown
        return hashlib.sha256(repr(decides).encode()).hexdigest()[:16]

    def meaning(self, value: int, class_names: tuple[str, ...]) -> str:
        """Returns in words what a value means."""
        train_id = int(self.table[value])
        plain = class_names[train_id] if train_id < len(class_names) else "ignored"
        return dict(self.names).get(value, plain if self.known[value] else "unknown")


@dataclass(frozen=True)
class Classes:
    """The classes of a data set or of a network; a class's train id is its place.

    Attributes:
        names: 2 to 255, all different.
        colors: RGB of each.
        categories: name and train ids of groups of classes, which are scored too; may be empty.
        labels: what the values of label files mean.
        label_names: names under which the scores are written, in order, with labels that are not classes; the names
            of the classes if empty.
        named: false if a weight file gave no names, and these are made up.
    """

    names: tuple[str, ...]
    colors: tuple[RGB, ...]
    categories: tuple[tuple[str, tuple[int, ...]], ...]
    labels: LabelFormat
    label_names: tuple[str, ...] = ()
    named: bool = True

    def __len__(self) -> int:
        return len(self.names)

    def first_difference(self, names: Iterable[object]) -> tuple[int, str, object] | None:
        """Returns the first place where others are named otherwise, and both names; "none" where one has no more."""
        pairs = itertools.zip_longest(self.names, names, fillvalue="none")
        return next(((index, *pair) for index, pair in enumerate(pairs) if pair[0] != pair[1]), None)

    @functools.cached_property
    def palette(self) -> np.ndarray:
        """(256, 3) uint8: from a train id to RGB; black for ignored pixels."""
        palette = np.zeros((256, 3), np.uint8)
        palette[: len(self)] = self.colors
        return palette

    def as_dict(self) -> dict:
        """Returns what a weight file says of its classes, in plain values; the values of label files are not in it."""
        return {
            "names": list(self.names),
            "colors": [list(color) for color in self.colors],
            "categories": {name: list(members) for name, members in self.categories},
            "named": self.named,
        }

    @classmethod
    def from_dict(cls, entries: Mapping) -> Classes:
        """Returns the classes that as_dict describes; CITYSCAPES itself if it is described.

        Raises:
            ValueError, TypeError, KeyError: they are not described as as_dict does.
        """
        names = tuple(entries["names"])
        named = bool(entries.get("named", True))
        colors = tuple((int(r), int(g), int(b)) for r, g, b in entries["colors"])
        categories = tuple((str(name), tuple(map(int, ids))) for name, ids in entries.get("categories", {}).items())
        if not 2 <= len(names) == len(colors) <= MOST_CLASSES or not all(isinstance(name, str) for name in names):
            raise ValueError("expected 2 to 255 names, with a color each")
        same = (names, colors, categories) == (CITYSCAPES.names, CITYSCAPES.colors, CITYSCAPES.categories)
        return CITYSCAPES if same else cls(names, colors, categories, plain_labels(len(names)), named=named)

    @classmethod
    def unnamed(cls, count: int) -> Classes:
        """Returns classes for weights that do not name theirs: CITYSCAPES if the number fits."""
        if count == len(CITYSCAPES):
            return CITYSCAPES
        names = tuple(f"class_{index}" for index in range(count))
        return cls(names, distinct_colors(count), (), plain_labels(count), named=False)


def plain_labels(count: int) -> LabelFormat:
    """Returns the format of label files that hold train ids."""
    ids = (*range(count), IGNORE_INDEX)
    return LabelFormat(tuple((index, index) for index in ids), f"train ids 0-{count - 1} and {IGNORE_INDEX}")


def ranges_in_words(values: list[int]) -> str:
    """Returns sorted values in words: "values 0-18, 100, 255"."""
    runs: list[list[int]] = []
    for value in values:
        if runs and value == runs[-1][1] + 1:
            runs[-1][1] = value
        else:
            runs.append([value, value])
    texts = [str(first) if first == last else f"{first}-{last}" for first, last in runs]
    return f"values {', '.join(texts[:12])}{', ...' if len(texts) > 12 else ''}"


def distinct_colors(count: int, given: Mapping[int, RGB] | None = None) -> tuple[RGB, ...]:
    """Returns colors that are well apart, those that are given among them.

    Each is the one of a grid whose distance from black, white and all before it is the largest, in CIELAB. More classes
    therefore change no color of the first ones.

    Args:
        count: at most 255.
        given: from train ids to their colors.
    """
    given = dict(given or {})
    levels = np.linspace(0, 255, 12).round().astype(np.uint8)
    grid = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), -1).reshape(-1, 3)
    grid = grid[_cielab(grid)[:, 0] > 25]  # ignored pixels are black: nothing nearly black beside them
    places = _cielab(grid)
    distance = np.full(len(grid), np.inf)
    colors = []
    for color in ((0, 0, 0), (255, 255, 255), *given.values()):
        distance = np.minimum(distance, np.linalg.norm(places - _cielab(np.array([color])), axis=1))
    for index in range(count):
        if index not in given:
            best = int(distance.argmax())
            distance = np.minimum(distance, np.linalg.norm(places - places[best], axis=1))
            given[index] = tuple(int(value) for value in grid[best])
        colors.append(given[index])
    return tuple(colors)


def colors_for(names: tuple[str, ...], given: Mapping[int, RGB]) -> tuple[RGB, ...]:
    """Returns distinct_colors; but those that everybody knows for the classes of Cityscapes, if none is given."""
    return CITYSCAPES.colors if names == CITYSCAPES.names and not given else distinct_colors(len(names), given)


def _cielab(rgb: np.ndarray) -> np.ndarray:
    """Returns the (N, 3) CIELAB values of (N, 3) sRGB colors. Source: IEC 61966-2-1 and CIE 15, white point D65."""
    linear = rgb / 255.0
    linear = np.where(linear <= 0.04045, linear / 12.92, ((linear + 0.055) / 1.055) ** 2.4)
    matrix = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    xyz = linear @ matrix.T / (0.9505, 1.0, 1.089)
    f = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz / (3 * (6 / 29) ** 2) + 4 / 29)
    return np.stack([116 * f[:, 1] - 16, 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])], 1)


class Label(NamedTuple):
    """One row of the official label table."""

    name: str
    id: int
    train_id: int
    category: str
    color: RGB


# Source: cityscapesscripts.helpers.labels 2.3.0; a test compares them. `license plate` (id -1) is in no label file.
LABELS = (
    Label("unlabeled", 0, 255, "void", (0, 0, 0)),
    Label("ego vehicle", 1, 255, "void", (0, 0, 0)),
    Label("rectification border", 2, 255, "void", (0, 0, 0)),
    Label("out of roi", 3, 255, "void", (0, 0, 0)),
    Label("static", 4, 255, "void", (0, 0, 0)),
    Label("dynamic", 5, 255, "void", (111, 74, 0)),
    Label("ground", 6, 255, "void", (81, 0, 81)),
    Label("road", 7, 0, "flat", (128, 64, 128)),
    Label("sidewalk", 8, 1, "flat", (244, 35, 232)),
    Label("parking", 9, 255, "flat", (250, 170, 160)),
    Label("rail track", 10, 255, "flat", (230, 150, 140)),
    Label("building", 11, 2, "construction", (70, 70, 70)),
    Label("wall", 12, 3, "construction", (102, 102, 156)),
    Label("fence", 13, 4, "construction", (190, 153, 153)),
    Label("guard rail", 14, 255, "construction", (180, 165, 180)),
    Label("bridge", 15, 255, "construction", (150, 100, 100)),
    Label("tunnel", 16, 255, "construction", (150, 120, 90)),
    Label("pole", 17, 5, "object", (153, 153, 153)),
    Label("polegroup", 18, 255, "object", (153, 153, 153)),
    Label("traffic light", 19, 6, "object", (250, 170, 30)),
    Label("traffic sign", 20, 7, "object", (220, 220, 0)),
    Label("vegetation", 21, 8, "nature", (107, 142, 35)),
    Label("terrain", 22, 9, "nature", (152, 251, 152)),
    Label("sky", 23, 10, "sky", (70, 130, 180)),
    Label("person", 24, 11, "human", (220, 20, 60)),
    Label("rider", 25, 12, "human", (255, 0, 0)),
    Label("car", 26, 13, "vehicle", (0, 0, 142)),
    Label("truck", 27, 14, "vehicle", (0, 0, 70)),
    Label("bus", 28, 15, "vehicle", (0, 60, 100)),
    Label("caravan", 29, 255, "vehicle", (0, 0, 90)),
    Label("trailer", 30, 255, "vehicle", (0, 0, 110)),
    Label("train", 31, 16, "vehicle", (0, 80, 100)),
    Label("motorcycle", 32, 17, "vehicle", (0, 0, 230)),
    Label("bicycle", 33, 18, "vehicle", (119, 11, 32)),
)


def _cityscapes() -> Classes:
    rows = sorted((row for row in LABELS if row.train_id != IGNORE_INDEX), key=lambda row: row.train_id)
    categories = tuple(
        (category, tuple(row.train_id for row in rows if row.category == category))
        for category in dict.fromkeys(row.category for row in LABELS)  # in the official order, void first
    )
    ids = LabelFormat(
        train_ids=tuple((row.id, row.train_id) for row in LABELS),
        expected="label ids 0-33",
        names=tuple((row.id, row.name) for row in LABELS),
    )
    names, colors = tuple(row.name for row in rows), tuple(row.color for row in rows)
    return Classes(names, colors, categories, ids, label_names=tuple(row.name for row in LABELS))


CITYSCAPES = _cityscapes()
CITYSCAPES_TRAIN_IDS = plain_labels(len(CITYSCAPES))  # of a frame that only has labelTrainIds
