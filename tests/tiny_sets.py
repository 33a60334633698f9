"""Tiny described data sets for tests: files by their path, and the description beside them."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import yaml

from frames.description import open_data
from frames.samples import DataSet

SHAPE = (8, 12)
NAMES = ["road", "sidewalk", "car"]


def put(root: Path, *paths: str, value: int | np.ndarray = 0) -> None:
    """Writes pictures or labels of one value, or a given array (RGB if it has colors), under their paths."""
    array = np.full(SHAPE, value, np.uint8) if isinstance(value, int) else value
    for path in paths:
        file = root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        assert cv2.imwrite(str(file), array[..., ::-1] if array.ndim == 3 else array)


def describe(root: Path, text: str = "", **keys: object) -> Path:
    """Writes a description with these keys, or this text."""
    root.mkdir(parents=True, exist_ok=True)
    file = root / "data.yaml"
    file.write_text(text or yaml.safe_dump(keys, sort_keys=False))
    return file


def opened(root: Path, **keys: object) -> DataSet:
    """Opens a data set described by these keys; `train` and `names` have defaults."""
    return open_data(str(describe(root, **{"train": "images", "names": NAMES, **keys})))


def pairs(data: DataSet, split: str = "train") -> dict[str, str | None]:
    """Returns the label of each picture of a split, relative to the description's folder."""
    root = Path(data.path).parent
    return {
        str(sample.image.relative_to(root)): str(sample.label.relative_to(root)) if sample.label else None
        for sample in data.find(split)
    }
