"""Data sets by description: a YAML file in the convention of Ultralytics' semantic task, with some keys of ours.

docs/datasets.md explains the keys. described_files.py finds the files that a description names.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import os
import sys
from pathlib import Path

from frames.cityscapes import cityscapes_folder, default_data_path
from frames.classes import (
    IGNORE_INDEX,
    MOST_CLASSES,
    RGB,
    Classes,
    LabelFormat,
    colors_for,
    plain_labels,
    ranges_in_words,
)
from frames.described_files import LabelFinder, Layout, absolute, find_frames
from frames.samples import SPLITS, DataSet, Scales
from frames.unions import read_unions
from utils import UserError, quoted

KEYS = {  # of Ultralytics, and ours
    *("path", "train", "val", "test", "masks_dir", "names", "nc", "label_mapping", "download"),
    *("unmapped", "label_suffix", "colors", "categories", "label_colors", "unions", "scales"),
}
IGNORED = ("ignore_label", None, IGNORE_INDEX)  # what stands for the train id of ignored pixels


def open_data(path: str, root: str | None = None) -> DataSet:
    """Opens a data set by its description, a .yaml or .yml file, or a folder in Cityscapes layout.

    Args:
        path: what --data_path names.
        root: what --data_root names: a folder in place of the description's `path`.

    Raises:
        UserError: the description is not as expected, `root` is no folder, `path` no description, or PyYAML is
            missing.
    """
    if path.lower().endswith((".yaml", ".yml")):
        return _described(path, root)
    if root is not None:
        raise UserError(
            f"--data_root replaces the `path` of a description (.yaml), and {path} is none; name the folder of the "
            "data with --data_path alone"
        )
    return cityscapes_folder(path)


def add_data_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags that name a data set."""
    default = default_data_path()
    parser.add_argument(
        "--data_path", default=default, help="folder in Cityscapes layout, or a .yaml file that describes a data set"
    )
    parser.add_argument(
        "--data_root", metavar="DIR", help="with a .yaml file: the folder that its paths are relative to"
    )


def _described(path: str, root: str | None) -> DataSet:
    try:
        from frames.yaml_file import load_yaml
    except ImportError as error:
        raise UserError(f"reading {path} needs PyYAML ({error}); pip install pyyaml") from None
    content = load_yaml(path)
    try:
        if not isinstance(content, dict):
            raise UserError(f"it holds {quoted(content)}, expected a mapping with the keys train, val and names")
        if content.get("val") is None and "validation" in content:
            content["val"] = content.pop("validation")
        if content.get("test") in ("", []):  # an empty test split is allowed
            content["test"] = None
        splits = {split: _entries(content, split) for split in SPLITS if content.get(split) is not None}
        if "train" not in splits:
            raise UserError("it lacks `train`; name the folder of the pictures to train on")
        classes = read_classes(content, os.path.basename(path))
        masks = content.get("masks_dir")
        layout = Layout(
            file=path,
            root=_root(path, content) if root is None else _given_root(root),
            splits=splits,
            masks=_texts(content, "masks_dir")
            if isinstance(masks, dict)
            else (("images", _text("masks_dir", masks or "masks")),),
            below_root=isinstance(masks, dict),
            suffixes=_texts(content, "label_suffix"),
            labels=classes.labels,
            scales=_scales(content.get("scales")),
        )
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    if unknown := [key for key in content if key not in KEYS]:
        print(f"warning: {path}: unknown keys are not used: {quoted(unknown)}", file=sys.stderr)
    find = functools.partial(find_frames, layout)
    return DataSet(path, classes, find, tuple(splits), layout.root, LabelFinder(layout).sample, described=True)


def _root(file: str, content: dict) -> Path:
    """Returns the folder that the other paths are relative to."""
    folder = absolute(file).parent
    if content.get("path") is None:
        return folder
    text = _text("path", content["path"])
    places = dict.fromkeys((absolute(folder / text), absolute(text)))
    for place in places:
        if os.path.isdir(place):
            return place
    own = "; `download` is never run: get the data yourself" if content.get("download") else ""
    where = f"in {folder}" if folder == absolute(".") else f"beside it, in {folder}, nor in {absolute('.')}"
    raise UserError(f"`path` names {quoted(text)}, which is no folder {where}; correct it or give --data_root{own}")


def _given_root(root: str) -> Path:
    if not os.path.isdir(root):
        raise UserError(f"--data_root {root} is no folder; name the one that holds the data")
    return absolute(root)


def _text(key: str, value: object) -> str:
    """Returns part of a path; refuses what no path can have."""
    if not isinstance(value, str) or not value or any(c < " " or "\ud800" <= c <= "\udfff" for c in value):
        raise UserError(f"`{key}` has {quoted(value)}, expected the name of a file or folder; quote it if it is one")
    return value


def _entries(content: dict, split: str) -> tuple[str, ...]:
    """Returns what a split consists of."""
    value = content[split]
    if value == []:
        raise UserError(f"`{split}` is an empty list, expected folders of pictures")
    return tuple(_text(split, entry) for entry in (value if isinstance(value, list) else [value]))


def _texts(content: dict, key: str) -> tuple[tuple[str, str], ...]:
    """Returns a mapping between parts of paths."""
    value = content.get(key)
    if value is not None and not isinstance(value, dict):
        raise UserError(f"`{key}` is {quoted(value)}, expected a mapping from what pictures have to what labels have")
    return tuple((_text(key, old), _text(key, new)) for old, new in (value or {}).items())


def _scales(value: object) -> Scales | None:
    """Returns the scales of training crops, None if the description leaves them to --scales."""
    try:
        return None if value is None else Scales.parse(str(value) if type(value) in (str, int, float) else "")
    except ValueError:
        raise UserError(f"`scales` is {quoted(value)}, expected a list (0.5,1,2) or a range (0.5-2)") from None


def read_classes(content: dict, file: str) -> Classes:
    """Returns the classes of a description.

    Args:
        content: of the description.
        file: its name, for messages about labels.

    Raises:
        UserError: names, colors, categories or the meaning of label values are missing or contradict each other.
    """
    names = _names(content)
    if len(names) == 1:
        names = ("background", *names)
    if len(set(names)) < len(names):
        twice = next(name for index, name in enumerate(names) if name in names[:index])
        raise UserError(f"two classes have the name {quoted(twice)}; give each its own")
    given = {index: _color("colors", value) for index, value in _by_class(content, "colors", names)}
    _refuse_twice("colors", list(given.values()))
    if content.get("unmapped", "refuse") not in ("refuse", "ignore"):
        raise UserError(f"`unmapped` is {quoted(content['unmapped'])}, expected refuse or ignore")
    if content.get("label_mapping") and content.get("label_colors"):
        raise UserError("it has label_mapping and label_colors; keep the one that its labels need")
    meaning = _colored_labels if content.get("label_colors") else _valued_labels
    labels = dataclasses.replace(meaning(content, names, file), unions=read_unions(content.get("unions"), names))
    if not content.get("colors"):  # the first label color of each class
        given = {train_id: color for color, train_id in reversed(labels.colors) if train_id != IGNORE_INDEX}
    return Classes(names, colors_for(names, given), _categories(content, names), labels)


def _names(content: dict) -> tuple[str, ...]:
    """Returns the names of the classes by train id, one or more."""
    names, count = content.get("names"), content.get("nc")
    if names is None and count is None:
        raise UserError("it lacks `names` and `nc`; expected names: {0: road, 1: sidewalk}")
    if count is not None and (type(count) is not int or count < 1):
        raise UserError(f"`nc` is {quoted(count)}, expected the number of classes")
    if names is None:
        names = [f"class_{index}" for index in range(min(count, MOST_CLASSES + 1))]
    if isinstance(names, dict):
        by_id = {_int(key): name for key, name in names.items()}
        if None in by_id:
            key = next(key for key in names if _int(key) is None)
            raise UserError(f"`names` has the key {quoted(key)}, expected train ids: {{0: road, 1: sidewalk}}")
        gap = next((index for index in range(len(names)) if index not in by_id), None)
        if gap is not None:
            raise UserError(
                f"`names` lacks train id {gap}, but has {len(names)} names; expected ids from 0 without a gap"
            )
        names = [by_id[index] for index in range(len(names))]
    if not isinstance(names, list) or not names:
        raise UserError(f"`names` is {quoted(names)}, expected a list or a mapping from train ids to names")
    for index, name in enumerate(names):
        if not isinstance(name, str):
            raise UserError(f'the name of class {index} is {quoted(name)}, no text; quote it, such as "no" or "1"')
        if not name.strip() or not name.isprintable():
            raise UserError(f"the name of class {index} is {quoted(name)}; expected text in one line")
    if len(names) > MOST_CLASSES:
        raise UserError(f"it has more than {MOST_CLASSES} classes; labels of one byte cannot tell them apart")
    if count not in (None, len(names)):
        raise UserError(f"`nc` is {count}, but `names` has {len(names)}; correct one of them")
    return tuple(names)


def _by_class(content: dict, key: str, names: tuple[str, ...], ignored: bool = False) -> list[tuple[int, object]]:
    """Returns the entries of a list or mapping by train id; with `ignored`, IGNORE_INDEX may be a train id."""
    value = content.get(key)
    if value is None:
        return []
    if not isinstance(value, (list, dict)):
        raise UserError(f"`{key}` is {quoted(value)}, expected a mapping from train ids")
    pairs = enumerate(value) if isinstance(value, list) else value.items()
    return [(_train_id(key, train_id, names, ignored), entry) for train_id, entry in pairs]


def _train_id(key: str, value: object, names: tuple[str, ...], ignored: bool) -> int:
    """Returns the train id of a class, or IGNORE_INDEX if `ignored` allows it."""
    train_id = IGNORE_INDEX if value in IGNORED and type(value) is not float else _int(value)
    if train_id is not None and 0 <= train_id < len(names):
        return train_id
    if train_id == IGNORE_INDEX and ignored:
        return train_id
    others = ", ignore_label" if ignored else ""
    raise UserError(f"`{key}` has the train id {quoted(value)}, expected one of `names`, 0-{len(names) - 1}{others}")


def _int(value: object) -> int | None:
    """Returns a whole number, which may be quoted; None for anything else."""
    if isinstance(value, str) and value.removeprefix("-").isdecimal() and len(value) < 10:
        return int(value)
    return value if type(value) is int else None


def _color(key: str, value: object) -> RGB:
    if not isinstance(value, list) or len(value) != 3 or not all(type(v) is int and 0 <= v <= 255 for v in value):
        raise UserError(f"`{key}` has {quoted(value)}, expected a color as [red, green, blue] of 0-255")
    return tuple(value)


def _refuse_twice(key: str, colors: list[RGB]) -> None:
    for index, color in enumerate(colors):
        if color in colors[:index]:
            raise UserError(f"`{key}` has the color {list(color)} twice; give each class its own")


def _categories(content: dict, names: tuple[str, ...]) -> tuple[tuple[str, tuple[int, ...]], ...]:
    value = content.get("categories") or {}
    if not isinstance(value, dict):
        raise UserError(f"`categories` is {quoted(value)}, expected a mapping such as {{flat: [0, 1]}}")
    found: dict[str, tuple[int, ...]] = {}
    seen: dict[int, str] = {}
    for name, members in value.items():
        if not isinstance(name, str) or not isinstance(members, list):
            raise UserError(
                f"`categories` has {quoted({name: members})}, expected a name and train ids: {{flat: [0, 1]}}"
            )
        found[name] = tuple(_train_id("categories", member, names, ignored=False) for member in members)
        for member in found[name]:
            if member in seen:
                raise UserError(
                    f"`categories` has class {member} in {quoted(seen[member])} and {quoted(name)}; expected once"
                )
            seen[member] = name
    return tuple(found.items())


def _mapping(content: dict, names: tuple[str, ...]) -> dict[int, int]:
    """Returns label_mapping without the values that no file can have."""
    value = content.get("label_mapping") or {}
    if not isinstance(value, dict):
        raise UserError(f"`label_mapping` is {quoted(value)}, expected a mapping from values in the files to train ids")
    found: dict[int, int] = {}
    for key, target in value.items():
        number, train_id = _int(key), _train_id("label_mapping", target, names, ignored=True)
        if number is None:
            raise UserError(f"`label_mapping` has the key {quoted(key)}, expected a value in the files, 0-255")
        if found.setdefault(number, train_id) != train_id:
            raise UserError(f"`label_mapping` has the value {number} twice; keep one")
    return {number: train_id for number, train_id in found.items() if 0 <= number <= 255}


def _valued_labels(content: dict, names: tuple[str, ...], file: str) -> LabelFormat:
    """Returns the format of labels whose pixels are values; those that label_mapping lacks may be train ids."""
    mapping = _mapping(content, names)
    plain = plain_labels(len(names))
    own, alternatives = tuple(mapping), ()
    if _is_binary(content):
        moved = {train_id for value, train_id in mapping.items() if value != train_id}
        if 0 in moved and 1 not in mapping.values():
            raise _one_class("label_mapping", names)
        if not mapping:
            mapping, alternatives = {IGNORE_INDEX: 1}, (1, IGNORE_INDEX)
    known = tuple(sorted({**dict(plain.train_ids), **mapping}.items()))
    return LabelFormat(
        known,
        ranges_in_words([value for value, _ in known]) if mapping else plain.expected,
        ignore_unknown=content.get("unmapped") == "ignore",
        alternatives=alternatives,
        own=own,
        advice="; for pixels that should not count write label_mapping: {..., {values}} or unmapped: ignore in " + file,
    )


def _is_binary(content: dict) -> bool:
    """Returns whether a description has one name, to which the background is added."""
    return len(_names(content)) == 1


def _one_class(key: str, names: tuple[str, ...]) -> UserError:
    return UserError(
        f"`{key}` leaves one class: beside a single name, 0 is the background and 1 is {quoted(names[1])}; give 1 too"
    )


def _colored_labels(content: dict, names: tuple[str, ...], file: str) -> LabelFormat:
    """Returns the format of labels that are pictures in color."""
    colors: list[tuple[RGB, int]] = []
    for train_id, value in _by_class(content, "label_colors", names, ignored=True):
        several = value if isinstance(value, list) and value and isinstance(value[0], list) else [value]
        colors += [(_color("label_colors", one), train_id) for one in several]
    _refuse_twice("label_colors", [color for color, _ in colors])
    if _is_binary(content) and 1 not in dict(colors).values():
        raise _one_class("label_colors", names)
    return LabelFormat(
        plain_labels(len(names)).train_ids,
        "the colors of label_colors",
        ignore_unknown=content.get("unmapped") == "ignore",
        colors=tuple(colors),
        advice="; for pixels that should not count write label_colors: {..., ignore_label: [{values}]} or "
        f"unmapped: ignore in {file}",
    )
