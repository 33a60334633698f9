"""The synthetic data set: its layout, its labels, and how hard it is to learn."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from cityscapesscripts.helpers.annotation import Annotation
from cityscapesscripts.helpers.labels import id2label, name2label
from cityscapesscripts.preparation.json2instanceImg import createInstanceImage
from cityscapesscripts.preparation.json2labelImg import createLabelImage
from conftest import assert_user_error, refused, run_script

from street import scene
from street.scene import draw_scene
from street.things import Scene
from synthetic import CITIES, write_dataset

COUNTS = {"train": 24, "val": 24, "test": 2}
Pixels = dict[str, tuple[np.ndarray, np.ndarray]]  # split to images and train ids


def files_of(folder: Path) -> dict[str, bytes]:
    """Returns the content of every file below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def annotation_of(text: str) -> Annotation:
    """Returns the converters' form of a polygons.json."""
    annotation = Annotation()
    annotation.fromJsonText(text)
    return annotation


def draw(height: int, width: int, seed: int | tuple) -> tuple[np.ndarray, list[dict], np.ndarray]:
    """Returns a scene's picture, objects and label ids."""
    image, objects = draw_scene(seed, height, width)
    text = json.dumps({"imgHeight": height, "imgWidth": width, "objects": objects})
    return image, objects, np.array(createLabelImage(annotation_of(text), "ids"))


def read(path: Path) -> np.ndarray:
    """Reads a PNG as it is, colors as RGB."""
    picture = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    return picture if picture.ndim == 2 else picture[..., 2::-1]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set of 128x256 with seed 0."""
    folder = tmp_path_factory.mktemp("synthetic")
    write_dataset(folder, 128, 256, *COUNTS.values(), seed=0)
    return folder


@pytest.fixture(scope="module")
def pixels(dataset: Path) -> Pixels:
    """The images, (N, H, W, 3), and train ids, (N, H, W), of the train and the val split."""
    return {
        split: (
            np.stack([read(path) for path in sorted((dataset / "leftImg8bit" / split).rglob("*.png"))]),
            np.stack([read(path) for path in sorted((dataset / "gtFine" / split).rglob("*_labelTrainIds.png"))]),
        )
        for split in ("train", "val")
    }


def test_same_seed_same_bytes(dataset: Path, tmp_path: Path) -> None:
    """A scene that depends on the clock, on a global generator or on the number of scenes."""
    write_dataset(tmp_path, 128, 256, 2, 1, 1, seed=0)
    whole, part = files_of(dataset), files_of(tmp_path)
    assert len(part) == 4 * 6
    assert part == {name: whole[name] for name in part}


def test_other_seeds_splits_and_numbers_differ() -> None:
    """A generator that ignores a part of its seed: training pictures in the val split."""
    pictures = [draw_scene(seed, 32, 64)[0] for seed in ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1))]
    for number, picture in enumerate(pictures):
        assert all((picture != other).any() for other in pictures[:number])


def test_layout_is_that_of_cityscapes(dataset: Path) -> None:
    """Files under other names, which the official script silently misses."""
    expected = set()
    for split, count in COUNTS.items():
        for number in range(count):
            stem = f"{split}/{CITIES[split]}/{CITIES[split]}_{number:06d}_000019"
            expected.add(f"leftImg8bit/{stem}_leftImg8bit.png")
            names = "polygons.json", "labelIds.png", "instanceIds.png", "color.png", "labelTrainIds.png"
            expected.update(f"gtFine/{stem}_gtFine_{name}" for name in names)
    assert set(files_of(dataset)) == expected
    assert len(set(CITIES.values())) == 3 and all(city.isalpha() and city.islower() for city in CITIES.values())


def test_pictures_have_the_colors_of_their_scenes(dataset: Path) -> None:
    """Red and blue swapped in the file, which only a viewer that swaps them again would show."""
    (path,) = dataset.rglob("samplestadt_000003_000019_leftImg8bit.png")
    np.testing.assert_array_equal(read(path), draw_scene((0, 1, 3), 128, 256)[0])


def test_all_classes_occur(pixels: Pixels) -> None:
    """A class that hardly any picture shows: it is not learnt, and its IoU is NaN."""
    for split, (_, labels) in pixels.items():
        for train_id in range(19):
            enough = ((labels == train_id).mean((1, 2)) > 0.001).mean()
            assert enough >= 0.2, f"{split}: train id {train_id} covers 0.1 % of only {enough:.0%} of the pictures"


def test_void_occurs_but_little(pixels: Pixels) -> None:
    """Data without void pixels: code that forgets to ignore them passes every test."""
    for _, labels in pixels.values():
        assert 0.001 < (labels == 255).mean() < 0.15
        assert set(np.unique(labels)) <= {*range(19), 255}


def test_label_pictures_are_the_converters_own(dataset: Path) -> None:
    """Labels drawn by OpenCV instead of Pillow, which differ from the official ones at every slanted edge."""
    for path in sorted(dataset.rglob("*_polygons.json"))[::5]:
        annotation = annotation_of(path.read_text())
        stem = str(path).removesuffix("polygons.json")
        assert "date" not in path.read_text()
        for name, encoding in (("labelIds", "ids"), ("labelTrainIds", "trainIds"), ("color", "color")):
            expected = np.array(createLabelImage(annotation, encoding))
            np.testing.assert_array_equal(read(f"{stem}{name}.png"), expected[..., :3] if name == "color" else expected)
        instances, ids = read(f"{stem}instanceIds.png"), read(f"{stem}labelIds.png")
        np.testing.assert_array_equal(instances, np.array(createInstanceImage(annotation, "ids")))
        assert instances.dtype == np.uint16
        np.testing.assert_array_equal(np.where(instances >= 1000, instances // 1000, instances), ids)
        train_ids = np.array([id2label[i].trainId if i >= 0 else 255 for i in range(34)])
        np.testing.assert_array_equal(read(f"{stem}labelTrainIds.png"), train_ids[ids])


def test_colors_do_not_solve_it(pixels: Pixels) -> None:
    """A data set that a table of nineteen colors solves, so that it says nothing about a network."""
    (pictures, labels), (val_pictures, val_labels) = pixels["train"], pixels["val"]
    means = np.stack([pictures[labels == train_id].mean(0) for train_id in range(19)])
    seen = val_labels < 19
    truth, colors = val_labels[seen].astype(int), val_pictures[seen].astype(np.float32)
    predicted = ((means**2).sum(1) - 2 * colors @ means.T).argmin(1)
    confusion = np.bincount(19 * truth + predicted, minlength=361).reshape(19, 19)
    hits = confusion.diagonal()
    iou = hits / (confusion.sum(0) + confusion.sum(1) - hits)
    assert iou.mean() < 0.25


def test_labels_match_the_picture() -> None:
    """Labels shifted against the picture by some pixels, which cost accuracy without an error."""
    scores = {}
    scenes = [draw(256, 512, (7, 0, number)) for number in range(6)]
    for dy, dx in ((0, 0), (0, 3), (0, -3), (3, 0), (-3, 0)):
        total = 0.0
        for image, _, labels in scenes:
            steps = cv2.morphologyEx(cv2.medianBlur(image, 3), cv2.MORPH_GRADIENT, np.ones((3, 3))).max(2)
            edges = cv2.morphologyEx(labels, cv2.MORPH_GRADIENT, np.ones((3, 3))) > 0
            total += steps[np.roll(edges, (dy, dx), (0, 1))].mean()
        scores[dy, dx] = total
    best = scores.pop((0, 0))
    assert best > 1.2 * max(scores.values())


def test_what_is_near_hides_what_is_far(monkeypatch) -> None:
    """A far bus over a near car: picture and labels agree, so that no other test sees it."""
    depths: list[float] = []
    for name in ("draw_solid", "draw_figure"):
        monkeypatch.setattr(scene, name, lambda _, x, z, *more: depths.append(float(z)))
    for seed in range(5):
        depths.clear()
        scene.draw_traffic(Scene(np.random.default_rng(seed), 64, 128), (-6, 4), (-8, 6))
        assert len(depths) > 3 and depths == sorted(depths, reverse=True)


def test_drawn_regions_are_those_of_the_converters() -> None:
    """Polygons that cross themselves or leave the picture, which programs fill differently."""
    for seed in range(4):
        _, objects, labels = draw(128, 256, seed)
        drawn = np.zeros_like(labels)
        for item in objects:
            polygon = np.array(item["polygon"], np.int32)
            assert len(polygon) >= 3 and polygon.min() >= 0 and (polygon.max(0) < (256, 128)).all()
            cv2.fillPoly(drawn, [polygon], name2label[item["label"]].id)
        assert (drawn == labels).mean() >= 0.97


@pytest.mark.parametrize(("height", "width"), [(32, 64), (100, 333), (333, 100), (1024, 2048)])
def test_any_size(height: int, width: int, tmp_path: Path) -> None:
    """An error, or a scene without objects, at a small, odd or upright size."""
    write_dataset(tmp_path, height, width, 0, 1, 0, seed=3)
    (picture,) = (tmp_path / "leftImg8bit").rglob("*.png")
    (labels,) = tmp_path.rglob("*_labelIds.png")
    assert read(picture).shape == (height, width, 3) and read(labels).shape == (height, width)
    assert len(np.unique(read(labels))) >= 5


def test_regenerates_over_itself_but_over_nothing_else(tmp_path: Path) -> None:
    """Two data sets mixed in one folder: labels of one, pictures of the other."""
    write_dataset(tmp_path, 32, 64, 2, 0, 0, seed=0)
    before = files_of(tmp_path)
    left = tmp_path / "gtFine" / "._x.png"  # by a system: not another data set
    left.write_text("x")
    write_dataset(tmp_path, 32, 64, 2, 0, 0, seed=0)
    left.unlink()
    assert files_of(tmp_path) == before
    with refused(tmp_path):
        write_dataset(tmp_path, 32, 64, 1, 0, 0, seed=0)
    assert files_of(tmp_path) == before


def test_nothing_to_write_is_an_error(tmp_path: Path) -> None:
    """A data set without a picture, which fails only much later, in training."""
    with refused("--train"):
        write_dataset(tmp_path / "set", 32, 64, 0, 0, 0, seed=0)
    assert not (tmp_path / "set").exists()


def test_command_line_writes_and_says_so(tmp_path: Path) -> None:
    """A script that does not print what it wrote and where."""
    flags = ["--height", 32, "--width", 64, "--train", 1, "--val", 1, "--test", 0]
    result = run_script("synthetic.py", "--output", tmp_path / "set", *flags, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    last = result.stdout.strip().splitlines()[-1]
    assert all(str(noun) in last for noun in ("1", "0")) and str(tmp_path / "set") in last
    assert len(files_of(tmp_path)) == 12


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("--height 16", "--height|16|32|1024"),
        ("--train -1", "--train|1|0"),
        ("--output {folder}/file/below", ""),
        ("--output {folder}", ""),
    ],
)
def test_mistakes_end_in_one_line(flags: str, expected: str, tmp_path: Path) -> None:
    """A traceback or a half-written folder after a mistyped flag."""
    (tmp_path / "file").write_text("not a folder")
    (tmp_path / "leftImg8bit").mkdir()
    (tmp_path / "leftImg8bit" / "aachen.png").write_text("a picture of another data set")
    before = files_of(tmp_path)
    flags = flags.format(folder=tmp_path).split()
    result = run_script("synthetic.py", "--output", tmp_path / "set", *flags, cwd=tmp_path)
    assert_user_error(result, *expected.split("|"))
    assert len(result.stderr.strip().splitlines()) == 1
    assert files_of(tmp_path) == before
