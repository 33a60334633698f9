"""Data sets by description: a YAML file in the convention of Ultralytics' semantic task, with some keys of ours.

docs/datasets.md explains the keys. layout.py finds the files that a description names.
"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath

from classes import CITYSCAPES, IGNORE_INDEX, MOST_CLASSES, RGB, Classes, LabelFormat, distinct_colors
from dataset import SPLITS, DataError, DataSet, find_samples
from layout import Layout, absolute, find_frames
from utils import UserError

ENDINGS = (".yaml", ".yml")
KEYS = {
    *("path", "train", "val", "test", "masks_dir", "names", "nc", "label_mapping", "download"),  # of Ultralytics
    *("unmapped", "label_suffix", "colors", "categories", "label_colors"),
}
IGNORED = ("ignore_label", None, IGNORE_INDEX)  # what stands for the train id of ignored pixels


def open_data(path: str, root: str | None = None) -> DataSet:
    """Opens a data set by its description, a .yaml or .yml file, or a folder in Cityscapes layout.

    Args:
        path: what --data_path names.
        root: what --data_root names: a folder in place of the description's `path`.

    Raises:
        DataError: a description is not as expected.
        UserError: `root` is no folder, or `path` no description; or PyYAML is missing.
    """
    if path.lower().endswith(ENDINGS):
        return _described(path, root)
    if root is not None:
        raise UserError(
            f"--data_root is for descriptions (.yaml), whose `path` it replaces; {path} is none: name the folder of the "
            "data with --data_path alone"
        )
    splits = tuple(split for split in SPLITS if os.path.isdir(os.path.join(path, "leftImg8bit", split)))
    return DataSet(path, CITYSCAPES, functools.partial(find_samples, path), splits, described=False)


def _described(path: str, root: str | None) -> DataSet:
    try:
        from strict_yaml import load_yaml
    except ImportError as error:
        raise UserError(f"reading {path} needs PyYAML ({error}); pip install pyyaml") from None
    content = load_yaml(path)
    try:
        if not isinstance(content, dict):
            raise DataError(f"it holds {_kind(content)}, expected a mapping with the keys train, val and names")
        if content.get("val") is None and "validation" in content:
            content["val"] = content.pop("validation")
        splits = {split: _strings(content, split) for split in SPLITS if content.get(split) is not None}
        if "train" not in splits:
            raise DataError("it has no `train`; name the folder of the pictures to train on")
        classes = classes_of(content)
        masks, below_root = _masks(content)
        layout = Layout(
            file=path,
            root=_root(path, content, root),
            splits=splits,
            masks=masks,
            below_root=below_root,
            suffixes=tuple(_text_mapping(content, "label_suffix")),
            labels=classes.labels,
        )
    except DataError as error:
        raise DataError(f"{path}: {error}") from None
    unknown = [key for key in content if key not in KEYS]
    if unknown:
        print(f"warning: {path}: unknown keys are not used: {_listed(unknown)}", file=sys.stderr)
    return DataSet(path, classes, functools.partial(find_frames, layout), tuple(splits), described=True)


def add_data_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags that name a data set."""
    default = default_data_path()
    parser.add_argument(
        "--data_path", default=default, help="folder in Cityscapes layout, or a .yaml file that describes a data set"
    )
    parser.add_argument(
        "--data_root", metavar="DIR", help="with a .yaml file: the folder that its paths are relative to"
    )
