"""What a description says of its classes, and every file that is refused."""

from __future__ import annotations

import builtins
import json
import os
from pathlib import Path

import numpy as np
import pytest
import yaml
from conftest import assert_user_error, refused, run_script
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_sets import NAMES, describe, opened, put

from frames.classes import CITYSCAPES, IGNORE_INDEX, Classes
from frames.description import KEYS, open_data, read_classes
from frames.samples import read_pair
from utils import UserError


def classes_of(**keys: object) -> Classes:
    """The classes of a description with these keys."""
    return read_classes({"names": NAMES, **keys}, "data.yaml")


@pytest.mark.parametrize(
    "names", [NAMES, {2: "car", 0: "road", 1: "sidewalk"}, {"0": "road", "1": "sidewalk", "2": "car"}]
)
def test_names_are_a_list_or_a_mapping(names: list | dict) -> None:
    """A mapping in another order gives every class another's name."""
    classes = classes_of(names=names, nc=3)
    assert classes.names == ("road", "sidewalk", "car") and len(set(classes.colors)) == 3
    assert classes.categories == () and classes.labels.expected == "train ids 0-2 and 255"


@pytest.mark.parametrize("empty", [None, "", []])
def test_an_empty_test_split_is_none(empty: object, tmp_path: Path) -> None:
    """Training that ends for a split that it never reads."""
    put(tmp_path, "images/x.png", "masks/x.png")
    assert opened(tmp_path, test=empty).splits == ("train",)


def test_a_count_alone_makes_names() -> None:
    """Files with `nc` and no names cannot be read."""
    assert read_classes({"nc": 3}, "").names == ("class_0", "class_1", "class_2")
    assert len(read_classes({"nc": 255}, "")) == 255


@pytest.mark.parametrize("high", [1, 255])
@pytest.mark.parametrize("keys", [{"names": ["crack"]}, {"names": None, "nc": 1}])
def test_one_name_gets_a_background(high: int, keys: dict, tmp_path: Path) -> None:
    """Masks of 0 and 255 are ignored where they should be the class, or a network with one output learns nothing."""
    label = np.zeros((8, 12), np.uint8)
    label[:4] = high
    put(tmp_path, "images/x.png")
    put(tmp_path, "masks/x.png", value=label)
    data = opened(tmp_path, **keys)
    assert data.classes.names == ("background", (keys["names"] or ["class_0"])[0])
    np.testing.assert_array_equal(read_pair(data.find("train")[0])[1], label > 0)


def test_masks_with_1_and_255_are_not_guessed(tmp_path: Path) -> None:
    """A border of 255 around objects of 1, which should not count, is trained as the object."""
    label = np.zeros((8, 12), np.uint8)
    label[1], label[2] = 1, 255
    put(tmp_path, "images/x.png")
    put(tmp_path, "masks/x.png", value=label)
    with refused("[1, 255]", "label_mapping", "{255: ignore_label}"):
        read_pair(opened(tmp_path, names=["crack"]).find("train")[0])
    read = read_pair(opened(tmp_path, names=["crack"], label_mapping={255: "ignore_label"}).find("train")[0])[1]
    np.testing.assert_array_equal(read, label)


def test_mapping_of_values() -> None:
    """A value that the mapping lacks gets lost, or one that a file cannot have is refused."""
    labels = classes_of(
        label_mapping={7: 0, "8": 1, 9: "ignore_label", 10: None, 11: 255, -1: 255, 300: 2, 2: 1}
    ).labels
    assert {v: int(labels.table[v]) for v in np.flatnonzero(labels.known)} == {
        **{0: 0, 1: 1, 2: 1, 255: 255},  # not mapped: train ids and 255 keep their number
        **{7: 0, 8: 1, 9: 255, 10: 255, 11: 255},
    }
    assert labels.expected == "values 0-2, 7-11, 255"
    assert classes_of(unmapped="ignore").labels.known.all() and classes_of(unmapped="ignore").labels.table[77] == 255


targets = st.one_of(st.integers(0, 2), st.sampled_from(["ignore_label", None, 255]))


@given(st.dictionaries(st.integers(-5, 260), targets, max_size=40))
def test_written_values_are_read_as_the_same_class(mapping: dict) -> None:
    """A prediction is written with a value that means another class to whoever reads it by the same description."""
    labels = classes_of(label_mapping=mapping).labels
    for value in np.flatnonzero(labels.known):
        train_id = labels.table[value]
        assert labels.table[labels.file_values[train_id]] == train_id
        means_it = [own for own in mapping if 0 <= own <= 255 and labels.table[own] == train_id]
        assert labels.file_values[train_id] == min(means_it, default=train_id)
        expected = mapping.get(int(value), int(value))
        assert train_id == (expected if expected in (0, 1, 2) else IGNORE_INDEX)
    assert set(np.flatnonzero(labels.known)) == {0, 1, 2, 255} | {v for v in mapping if 0 <= v <= 255}


def test_unmapped_values_name_the_line_that_helps(tmp_path: Path) -> None:
    """A message without the file, the values or a remedy costs an afternoon."""
    put(tmp_path, "images/x.png")
    put(tmp_path, "masks/x.png", value=np.arange(96, dtype=np.uint8).reshape(8, 12) % 13)
    keys = {"names": [f"c{i}" for i in range(11)]}
    with refused(
        "masks/x.png",
        "[11, 12]",
        "0-10",
        "255",
        "label_mapping",
        "{..., 11: ignore_label, 12: ignore_label}",
        "data.yaml",
    ):
        read_pair(opened(tmp_path, **keys).find("train")[0])  # fmt: skip
    label = read_pair(opened(tmp_path, **keys, unmapped="ignore").find("train")[0])[1]
    assert set(label.ravel()) == {*range(11), 255}


def test_colors_and_categories() -> None:
    """A palette or a score that the file asks for is not made."""
    classes = classes_of(colors={1: [1, 2, 3]}, categories={"flat": [0, "1"], "void": []})
    assert classes.colors[1] == (1, 2, 3) and len(set(classes.colors)) == 3
    assert classes.categories == (("flat", (0, 1)), ("void", ()))
    assert classes_of(colors=[[0, 0, 0], [9, 9, 9], [7, 8, 9]]).colors == ((0, 0, 0), (9, 9, 9), (7, 8, 9))


def test_anchors_and_merges_are_read(tmp_path: Path) -> None:
    """Aliases are refused altogether, though files that fold their values use them."""
    text = "x: &m {7: 0, 8: 1}\ntrain: images\nnames: [a, b]\nlabel_mapping: {<<: *m, 8: 0, 9: 1}\nnc: 2\n"
    table = open_data(str(describe(tmp_path, text))).classes.labels.table
    assert table[[7, 8, 9]].tolist() == [0, 0, 1]


def test_unknown_keys_give_one_line(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """A misspelled key has no effect and no message; `download` is not one, and is never executed."""
    opened(tmp_path, mask_dir="labels", other=1, download=f"touch {tmp_path / 'ran'}", nc=3, test=None)
    assert capsys.readouterr().err.splitlines() == [
        f"warning: {tmp_path / 'data.yaml'}: unknown keys are not used: ['mask_dir', 'other']"
    ]
    assert not (tmp_path / "ran").exists()
    with refused("download"):
        opened(tmp_path, path="gone", download="x")


BASE = "train: images\n"
BAD_FILES = {
    "empty": ("", ""),
    "no mapping": ("- train\n- val\n", ""),
    "a word": ("images", "images"),
    "no train": ("val: images\nnames: [a, b]", "lacks `train`"),
    "no names": (BASE, "lacks `names` and `nc`"),
    "two documents": (BASE + "---\nnames: [a, b]\n", "2"),
    "duplicate key": (BASE + "names: [a, b]\nnames: [b, a]\n", "3|names|2"),
    "duplicate id": (BASE + "names: {0: a, 1: b, 0x0: c}", "2|0"),
    "recursive alias": ("train: &a [*a]\nnames: [a, b]", "1"),
    "object": ("train: !!python/object/apply:os.system ['touch ran']", "1"),
    "tag": ("train: !mine x", "1|!mine"),
    "no number": ("nc: !!int x", "1|tag:yaml.org,2002:int"),
    "no date": ("nc: 2020-13-45", "1"),
    "long number": ("nc: " + "9" * 5000, "1"),
    "list as key": ("? [1, 2]\n: x\n", "1"),
    "syntax": ("train: [images\nnames: [a, b]\n", "line 2: "),
    "tab": ("train:\n\timages\n", "2"),
    "undefined alias": ("train: *" + "a" * 500, "1"),
    "deep": ("a: " + "[" * 5000 + "]" * 5000, ""),
    "control character": ("train: a\x01b", ""),
    "NUL in a path": ('train: "a\\0b"\nnames: [a, b]', "train|a\\x00b"),
    "surrogate in a path": ('train: "\\ud800"\nnames: [a, b]', "train"),
    "number as path": ("train: 2017\nnames: [a, b]", "train|2017"),
    "no entries": ("train: []\nnames: [a, b]", "train"),
    "too large": ("# " + "x" * 1_000_000, "1,000,002|1,000,000"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_FILES)
def test_bad_files_are_refused(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """YAML that explodes, executes, or is read as something else than its author sees."""
    monkeypatch.chdir(tmp_path)
    text, message = BAD_FILES[case]
    file = tmp_path / "data.yml"
    file.write_text(text, encoding="utf-8", newline="")
    with pytest.raises(UserError) as error:
        open_data(str(file))
    text = str(error.value).removeprefix(str(file))
    assert (
        all(noun in text for noun in message.split("|"))
        and "\n" not in text
        and len(text) < 260
        and os.listdir() == ["data.yml"]
    )


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"names": [False, True]}, "0"),
        ({"names": {0: 1.0}}, "0|1.0"),
        ({"names": ["a", " "]}, "1| "),
        ({"names": ["a\nb", "c"]}, "0|a\\nb"),
        ({"names": ["a", "b", "a"]}, "a"),
        ({"names": ["background"]}, "background"),
        ({"names": {0: "a", 2: "b"}}, "names|1|2"),
        ({"names": {1: "a", 2: "b"}}, "names|0"),
        ({"names": {"a": 0, "b": 1}}, "names|a|{0: road, 1: sidewalk}"),
        ({"names": []}, "names|[]"),
        ({"names": "road"}, "names|road"),
        ({"names": [f"c{i}" for i in range(256)]}, "255"),
        ({"names": None, "nc": 10**12}, "255"),
        ({"names": None, "nc": 0}, "nc|0"),
        ({"nc": True}, "nc"),
        ({"nc": 4}, "`nc` is 4, but `names` has 3"),
        ({"label_mapping": {7: 3}}, "label_mapping|3|names|0-2|ignore_label"),
        ({"label_mapping": {7: -1}}, "label_mapping|1"),
        ({"label_mapping": {7: "road"}}, "label_mapping|road"),
        ({"label_mapping": {7: 1.0}}, "label_mapping|1.0"),
        ({"label_mapping": {7: 255.0}}, "label_mapping|255.0"),
        ({"label_mapping": {7: False}}, "label_mapping"),
        ({"label_mapping": {"road": 0}}, "label_mapping|road"),
        ({"label_mapping": {"7": 0, 7: 1}}, "label_mapping|7"),
        ({"label_mapping": [7, 8]}, "label_mapping"),
        ({"names": ["crack"], "label_mapping": {7: 0}}, "label_mapping|1|crack"),
        ({"names": ["crack"], "label_colors": {0: [1, 2, 3]}}, "label_colors"),
        ({"unmapped": "drop"}, "unmapped|drop"),
        ({"unmapped": {}}, "unmapped"),
        ({"colors": {0: [1, 2, 3], 1: [1, 2, 3]}}, "colors|[1, 2, 3]"),
        ({"colors": {3: [1, 2, 3]}}, "colors|3"),
        ({"colors": {255: [1, 2, 3]}}, "colors|255|names|0-2"),
        ({"colors": {0: [1, 2, 256]}}, "colors|[1, 2, 256]"),
        ({"colors": {0: "red"}}, "`colors` has 'red', expected a color"),
        ({"colors": "red"}, "`colors` is 'red', expected a mapping"),
        ({"categories": {"flat": [3]}}, "categories|3"),
        ({"categories": {"flat": 0}}, "categories|{'flat': 0}"),
        ({"categories": ["flat"]}, "categories"),
        ({"categories": {"flat": [0], "all": [0]}}, "categories|0|flat|all"),
        ({"label_colors": {0: [[1, 2, 3]], 1: [1, 2, 3]}}, "label_colors|[1, 2, 3]"),
        ({"label_colors": {4: [[1, 2, 3]]}}, "label_colors|4"),
        ({"label_colors": {0: []}}, "label_colors|[]"),
        ({"label_colors": {0: [[1, 2, 3]]}, "label_mapping": {0: 1}}, "label_mapping|label_colors"),
        ({"masks_dir": 3}, "masks_dir|3"),
        ({"masks_dir": ["a"]}, "`masks_dir` has"),
        ({"masks_dir": {"a": None}}, "`masks_dir` has None"),
        ({"label_suffix": "_gt.png"}, "`label_suffix` is '_gt.png', expected a mapping"),
        ({"path": ["a"]}, "`path` has"),
        ({"train": {"a": "b"}}, "train|{'a': 'b'}"),
        ({"train": ["images", 3]}, "`train` has 3"),
        ({"val": ""}, "`val` has ''"),
        ({"names": ["x" * 500, 3]}, "class 1 is 3"),
        ({"unmapped": "x" * 500}, "unmapped|refuse|ignore"),
    ],
)
def test_contradictions_are_refused(keys: dict, message: str, tmp_path: Path) -> None:
    """A class that has no name, or that a value maps to though it does not exist: an index error, hours later."""
    with refused("data.yaml", *message.split("|")):
        opened(tmp_path, **keys)


scalars = st.sampled_from(
    [None, True, -1, 0, 1, 2, 255, 300, 1.5, float("nan"), "", "0", "images", "images/*", "../x", "a\0"]
)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(scalars, inner, max_size=3), max_leaves=6
)
WORDS = [*sorted(KEYS), "validation", "unknown"]


@settings(max_examples=150)
@given(st.dictionaries(st.sampled_from(WORDS), values, max_size=6))
def test_no_description_ends_in_a_traceback(tmp_path_factory: pytest.TempPathFactory, keys: dict) -> None:
    """A value of a kind that nobody thought of raises in the middle of the code that reads it."""
    root = tmp_path_factory.getbasetemp() / "any"
    put(root, "images/x.png", "masks/x.png")
    try:
        data = opened(root, **keys)
        for split in data.splits:
            data.find(split)
    except UserError as error:
        assert "\n" not in str(error)


def test_what_is_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A traceback for a folder, a missing file, another encoding, or a package that is not installed."""
    with refused("gone.yaml"):
        open_data(str(tmp_path / "gone.yaml"))
    (tmp_path / "folder.yaml").mkdir()
    with refused("folder.yaml"):
        open_data(str(tmp_path / "folder.yaml"))
    os.mkfifo(tmp_path / "pipe.yaml")
    with refused("pipe.yaml"):
        open_data(str(tmp_path / "pipe.yaml"))
    (tmp_path / "latin.yaml").write_bytes("names: [straße]".encode("latin-1"))
    with refused("latin.yaml", "8", "12"):
        open_data(str(tmp_path / "latin.yaml"))
    real = builtins.__import__

    def without_yaml(name: str, *rest: object) -> object:
        if name == "frames.yaml_file":
            raise ModuleNotFoundError("No module named 'yaml'")
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without_yaml)
    with refused("DATA.YAML", "PyYAML"):
        open_data(str(tmp_path / "DATA.YAML"))


def test_folders_stay_in_cityscapes_layout(frames: Path, tmp_path: Path) -> None:
    """A folder is taken for a description, or needs PyYAML."""
    data = open_data(str(frames))
    assert data.classes is CITYSCAPES and not data.described and data.splits == ("train", "val", "test")
    with refused("--data_root", "path"):
        open_data(str(frames), str(tmp_path))
    with refused("--data_root"):
        open_data(str(describe(tmp_path, train="images", names=NAMES)), "/gone")


def test_json_is_yaml(tmp_path: Path) -> None:
    """A byte order mark, or a file that a program wrote as JSON, is refused."""
    put(tmp_path, "images/x.png", "masks/x.png")
    (tmp_path / "d.yaml").write_text(json.dumps({"train": "images", "names": {"0": "a", "1": "b"}}), "utf-8-sig")
    assert len(open_data(str(tmp_path / "d.yaml")).find("train")) == 1


def test_check_prints_one_line(tmp_path: Path) -> None:
    """A wrong description ends in a traceback instead of one line and exit status 2."""
    file = describe(tmp_path, yaml.safe_dump({"train": "images", "names": ["a", "a"]}))
    assert_user_error(run_script("train.py", "--data_path", file, "--check", cwd=tmp_path), file, "a")
