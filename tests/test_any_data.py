"""Classes of any number through training, scores, predictions, drawings, cache and resume."""

from __future__ import annotations

import csv

import cv2
import numpy as np
import pytest
import torch
from conftest import assert_user_error, run_script
from tiny_sets import describe, opened, put

from frames.cache import open_cache
from frames.samples import read_pair
from inference.checkpoints import load_model

RNG = np.random.default_rng(0)
TRAIN = ["--crop_h", "32", "--crop_w", "64", "--batch_size", "2", "--epochs", "2", "--save_step", "1", "--workers", "0"]


def blobs(count: int, shape: tuple[int, int]) -> np.ndarray:
    """A label with regions of `count` values."""
    small = RNG.integers(0, count, (shape[0] // 8 + 1, shape[1] // 8 + 1)).astype(np.uint8)
    return cv2.resize(small, shape[::-1], interpolation=cv2.INTER_NEAREST)


def lay_out(root, count: int, ending: str = ".png", scale: int = 1, split_folders: tuple = ("train", "val")) -> None:
    """Three frames a split, of three sizes, whose labels have the values 0, scale, ... of `count` classes."""
    for split in split_folders:
        for index, shape in enumerate(((40, 70), (64, 96), (33, 130))):
            label = blobs(count, shape)
            put(root, f"images/{split}/{index}{ending}", value=np.dstack([label * 3, 255 - label, label]))
            put(root, f"masks/{split}/{index}.png", value=label * scale)


@pytest.fixture
def run(tmp_path):
    """Trains in tmp_path/run, with other flags; returns the result."""

    def train(*flags: object, data: str = "data.yaml"):
        return run_script(
            "train.py", "--data_path", tmp_path / data, *TRAIN, "--output_dir", tmp_path / "run", *flags, cwd=tmp_path
        )

    return train


@pytest.mark.parametrize(
    ("count", "keys", "ending", "scale", "written"),
    [
        (2, {"names": ["lane"]}, ".jpg", 255, {0, 1}),
        (60, {"nc": 60}, ".png", 1, set(range(60))),
        (255, {"nc": 255}, ".png", 1, set(range(255))),
        (3, {"names": ["a", "b", "c"], "label_mapping": {0: 0, 50: 1, 100: 2}}, ".jpg", 50, {0, 50, 100}),
    ],
    ids=["binary", "sixty", "255", "mapped"],
)
def test_any_number_of_classes_trains_scores_and_draws(tmp_path, run, count, keys, ending, scale, written) -> None:
    """An index error, a sentinel taken for a class, or files with values that the data set does not know."""
    lay_out(tmp_path, count, ending, scale)
    describe(tmp_path, train="images/train", val="images/val", **keys)
    options = ["--class_uniform", "0.5", "--class_mix", "0.5", "--aux_weight", "0.4", "--lovasz_weight", "0.5"]
    result = run(*options)
    assert result.returncode == 0, result.stderr
    assert "official" not in result.stdout and "category" not in result.stdout
    weights = tmp_path / "run" / "32_64_model.pth"
    model, metadata = load_model(weights)
    assert len(metadata["classes"]) == count == model.classifier.conv.out_channels
    data = ("--data_path", tmp_path / "data.yaml", "--model_weight", weights)
    result = run_script("evaluate.py", *data, "--save_dir", "p", "--color_dir", "c", "--json", "s.json", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    files = sorted((tmp_path / "p").glob("*.png"))
    assert len(files) == 3
    values = {int(value) for file in files for value in np.unique(cv2.imread(str(file), cv2.IMREAD_UNCHANGED))}
    assert values <= written
    result = run_script("viewer.py", *data, "--input_pic", "images/val", "--output", "v/", cwd=tmp_path)
    assert result.returncode == 0 and "ground truth" in result.stdout, result.stderr
    drawn = {tuple(c) for c in cv2.imread(str(tmp_path / "v/0_result.png"))[:40, 70:140, ::-1].reshape(-1, 3).tolist()}
    assert drawn <= {(0, 0, 0), *metadata["classes"].colors}, "ground truth in colors of no class"


def test_stray_pixels_of_absent_classes_do_not_choose_the_epoch(tmp_path, run) -> None:
    """Thirty pixels of classes that val lacks take a perfect score from 1.000 to 0.645: the wrong epoch is kept."""
    lay_out(tmp_path, 2)
    describe(tmp_path, train="images/train", val="images/val", names=["a", "b", "absent", "absent too"])
    assert run().returncode == 0
    with open(tmp_path / "run" / "32_64_statistics.csv") as file:
        rows = list(csv.DictReader(file))
    assert all(float(row["class_miou_present"]) >= float(row["class_miou"]) for row in rows)
    best = max(rows, key=lambda row: float(row["class_miou_present"]))
    metadata = torch.load(tmp_path / "run" / "32_64_model.pth")["metadata"]
    assert metadata["epoch"] == int(best["epoch"])
    assert metadata["class_miou_present"] == float(best["class_miou_present"])


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"names": ["a", "c"]}, "classes b (now c)"),
        ({"names": ["b", "a"]}, "classes a (now b)"),
        ({"names": ["a", "b"], "label_mapping": {1: 0, 0: 1}}, "label_values"),
        ({"names": ["a", "b"], "unmapped": "ignore"}, "label_values|others|255"),
    ],
    ids=["name", "order", "mapping", "unmapped"],
)
def test_a_run_is_not_resumed_with_another_meaning(tmp_path, run, keys: dict, words: str) -> None:
    """Half of a run learnt under one mapping, half under another."""
    lay_out(tmp_path, 2)
    describe(tmp_path, train="images/train", val="images/val", names=["a", "b"])
    assert run().returncode == 0
    describe(tmp_path, train="images/train", val="images/val", **keys)
    result = run("--resume", tmp_path / "run" / "32_64_last.pth")
    assert_user_error(result, *words.split("|"))
    describe(tmp_path, train="images/train", val="images/val", names=["a", "b"], colors=[[1, 2, 3], [4, 5, 6]])
    assert run("--resume", tmp_path / "run" / "32_64_last.pth").returncode == 0  # how it is drawn decides nothing


def test_a_cache_knows_what_label_values_mean(tmp_path) -> None:
    """Labels of the mapping before, for as long as the cache is kept."""
    lay_out(tmp_path, 2)
    keys = {"train": "images/train", "val": "images/val"}
    samples = opened(tmp_path, **keys, names=["a", "b"]).find("train")
    open_cache(tmp_path / "cache", samples)
    swapped = opened(tmp_path, **keys, names=["a", "b"], label_mapping={0: 1, 1: 0}).find("train")
    cache = open_cache(tmp_path / "cache", swapped)
    for sample in swapped:
        assert (cache.read(sample)[1] == read_pair(sample)[1]).all()


def test_pictures_of_several_roots_do_not_collide_in_a_cache(tmp_path) -> None:
    """The frame 0 of one folder in place of the frame 0 of another."""
    for root in ("one", "two"):
        lay_out(tmp_path / root, 2, split_folders=("train",))
    data = opened(tmp_path, train=["one/images/train", "two/images/train"], names=["a", "b"])
    samples = data.find("train")
    assert len(samples) == 6 and len({(sample.folder, sample.name) for sample in samples}) == 6
    cache = open_cache(tmp_path / "cache", samples)
    for sample in samples:
        image, label = cache.read(sample)
        np.testing.assert_array_equal(image, cv2.imread(str(sample.image))[..., ::-1])
        np.testing.assert_array_equal(label, cv2.imread(str(sample.label), cv2.IMREAD_UNCHANGED))


def test_ground_truth_of_other_classes_is_not_drawn(tmp_path, run) -> None:
    """A truth of two classes in the colors of three others, as if the weights were wrong everywhere."""
    lay_out(tmp_path, 2)
    describe(tmp_path, train="images/train", val="images/val", names=["a", "b"])
    assert run().returncode == 0
    describe(tmp_path, train="images/train", val="images/val", names=["x", "y"])
    weights = tmp_path / "run" / "32_64_model.pth"
    flags = ("--data_path", tmp_path / "data.yaml", "--model_weight", weights, "--input_pic", "images/val/1.png")
    result = run_script("viewer.py", *flags, "--output", "v.png", cwd=tmp_path)
    assert result.returncode == 0 and "ground truth is not drawn" in result.stderr
    assert cv2.imread(str(tmp_path / "v.png")).shape[1] == 2 * 96
    result = run_script("evaluate.py", *flags[:4], cwd=tmp_path)
    assert_user_error(result, "0", "a", "x", "--reset_head")
