"""The Cityscapes classes: the official label table, its look-up tables and palette."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

IGNORE_INDEX = 255  # pixels of this train id count neither in the loss nor in a score


class Label(NamedTuple):
    """One row of the official label table."""

    name: str
    id: int
    train_id: int
    category: str
    color: tuple[int, int, int]


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
CLASSES = tuple(sorted((label for label in LABELS if label.train_id != IGNORE_INDEX), key=lambda label: label.train_id))
NUM_CLASSES = len(CLASSES)
CATEGORIES = tuple(dict.fromkeys(label.category for label in LABELS))  # in the official order, void first

INVALID = 254  # marks values in the look-up tables that the label table lacks


def _table(pairs: dict[int, int]) -> np.ndarray:
    table = np.full(256, INVALID, np.uint8)
    table[list(pairs)] = list(pairs.values())
    return table


ID_TO_TRAIN_ID = _table({label.id: label.train_id for label in LABELS})
TRAIN_ID_TO_TRAIN_ID = _table({label.train_id: label.train_id for label in LABELS})
TRAIN_ID_TO_ID = _table({**{label.train_id: label.id for label in CLASSES}, IGNORE_INDEX: 0})
PALETTE = np.zeros((256, 3), np.uint8)  # train id to RGB, black for ignored pixels
PALETTE[:NUM_CLASSES] = [label.color for label in CLASSES]
