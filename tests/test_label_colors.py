"""Labels that are pictures in color, and labels that are in color but should not be."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from conftest import refused
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from tiny_sets import NAMES, describe, put

from frames.classes import plain_labels
from frames.description import open_data, read_classes
from frames.images import _colors_to_train_ids, read_label
from frames.samples import check_headers, read_pair

RGB = {0: [[128, 0, 0], [64, 0, 0]], 2: [0, 0, 128], "ignore_label": [[0, 0, 0]]}


def colored(tmp_path: Path, **keys: object) -> tuple[Path, np.ndarray]:
    """A data set whose label has every color of RGB, and the train ids that they mean."""
    colors = np.array([[128, 0, 0], [64, 0, 0], [0, 0, 128], [0, 0, 0]], np.uint8)
    which = np.arange(96).reshape(8, 12) % 4
    put(tmp_path, "images/x.png")
    put(tmp_path, "masks/x.png", value=colors[which])
    describe(tmp_path, train="images", names=NAMES, **{"label_colors": RGB, **keys})
    return tmp_path / "data.yaml", np.array([0, 0, 2, 255], np.uint8)[which]


@pytest.mark.parametrize("kind", ["RGB", "RGBA", "P", "bmp"])
def test_labels_in_color(kind: str, tmp_path: Path) -> None:
    """Swapped channels, or a palette whose indices are read where its colors count."""
    file, truth = colored(tmp_path)
    with Image.open(tmp_path / "masks" / "x.png") as image:
        if kind == "bmp":
            image.save(tmp_path / "masks" / "x.bmp")
            (tmp_path / "masks" / "x.png").unlink()
        elif kind == "P":
            image.quantize(4).save(tmp_path / "masks" / "x.png")
        else:
            image.convert(kind).save(tmp_path / "masks" / "x.png")
    (sample,) = open_data(str(file)).find("train")
    np.testing.assert_array_equal(read_pair(sample)[1], truth)


def test_other_colors_are_refused_or_ignored(tmp_path: Path) -> None:
    """Black that means nothing is trained as a class, or a blurred edge is ignored without a word."""
    file, truth = colored(tmp_path, label_colors={0: RGB[0], 2: RGB[2]})
    with refused("masks/x.png", "[0, 0, 0]", "label_colors", "{..., ignore_label: [[0, 0, 0]]}", "data.yaml"):
        read_pair(open_data(str(file)).find("train")[0])  # fmt: skip
    file, _ = colored(tmp_path, label_colors={2: RGB[2], 255: [0, 0, 0]})
    with refused("[64, 0, 0]", "[128, 0, 0]"):
        read_pair(open_data(str(file)).find("train")[0])
    file, truth = colored(tmp_path, label_colors={0: RGB[0], 2: RGB[2]}, unmapped="ignore")
    np.testing.assert_array_equal(read_pair(open_data(str(file)).find("train")[0])[1], truth)


def test_colors_and_values_are_not_confused(tmp_path: Path) -> None:
    """The wrong kind of label is read as if it were the right one."""
    file, _ = colored(tmp_path)
    check_headers(open_data(str(file)).find("train"))
    put(tmp_path, "images/y.png")
    put(tmp_path, "masks/y.png", value=1)
    with refused("y.png"):
        check_headers(open_data(str(file)).find("train"))
    put(tmp_path, "masks/x.png", value=1)
    with refused("x.png", "label_mapping"):
        read_pair(open_data(str(file)).find("train")[0])
    file, _ = colored(tmp_path, label_colors=None)
    put(tmp_path, "masks/x.png", value=np.ones((8, 12, 3), np.uint8) * np.array([1, 0, 2], np.uint8))
    with refused("x.png", "3", "label_colors"):
        read_pair(open_data(str(file)).find("train")[0])


@pytest.mark.parametrize("mode", ["LA", "RGB", "RGBA", "I;16"])
def test_grey_labels_of_another_kind_are_not_called_pictures_in_color(tmp_path: Path, mode: str) -> None:
    """Advice to name the colors of a label that has none."""
    put(tmp_path, "x.png", value=1)
    values = Image.open(tmp_path / "x.png")
    label = Image.fromarray(np.asarray(values).astype(np.uint16)) if mode == "I;16" else values.convert(mode)
    label.save(tmp_path / "x.png")
    with refused("x.png", "8"):
        read_label(tmp_path / "x.png", plain_labels(3))


def test_lossy_labels_are_refused_whatever_their_name(tmp_path: Path) -> None:
    """A JPEG changes values by one or two: car becomes truck."""
    values = np.arange(96, dtype=np.uint8).reshape(8, 12) % 3
    for ending, options in ((".jpeg", {}), (".webp", {"lossless": False})):
        Image.fromarray(values).save(tmp_path / f"x{ending}", **options)
        (tmp_path / f"x{ending}").rename(tmp_path / "x.png")
        with refused("x.png"):
            read_label(tmp_path / "x.png", plain_labels(3))
    Image.fromarray(values).save(tmp_path / "x.webp", lossless=True)
    np.testing.assert_array_equal(read_label(tmp_path / "x.webp", plain_labels(3)), values)


@given(st.lists(st.tuples(*[st.integers(0, 255)] * 3), min_size=2, max_size=30, unique=True), st.data())
def test_each_color_means_its_class(colors: list, data: st.DataObject) -> None:
    """Packed into one number, colors of some value overflow into another's."""
    count = 1 + len(colors) // 2
    ids = [data.draw(st.sampled_from([*range(count), 255])) for _ in colors]
    keys: dict = {}
    for color, train_id in zip(colors, ids, strict=True):
        keys.setdefault(train_id, []).append(list(color))
    labels = read_classes({"nc": max(2, count), "label_colors": keys}, "").labels
    bgr = np.array([colors], np.uint8)[..., ::-1]
    np.testing.assert_array_equal(_colors_to_train_ids("x", np.ascontiguousarray(bgr), labels), [ids])
