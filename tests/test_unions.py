"""Labels that mean any of several classes: what a description says of them, their training targets, their scores."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import refused, run_script
from tiny_sets import opened, put
from torch.nn import functional as F

from evaluation.evaluate import evaluate
from evaluation.scores import Scores
from frames.classes import CITYSCAPES, IGNORE_INDEX, Classes, plain_labels
from frames.description import read_classes
from frames.samples import Sample, Scales, read_pair
from frames.unions import Unions
from inference.engine import Engine
from training.augment import TrainSet
from training.losses import summed_cross_entropy

NAMES = ["road", "car", "truck", "sign", "light", "bus"]
UNIONS = {"car": ["truck", "car", "bus"], "sign": ["sign", "light"], "road": ["road"]}
ONE = Scales((1.0,), False)


def classes_of(unions: object) -> Classes:
    """The classes of a description with these unions."""
    return read_classes({"names": NAMES, "unions": unions}, "data.yaml")


def test_a_union_names_classes() -> None:
    """A member that is lost, or a union of itself alone, which would cost an id and change nothing."""
    assert classes_of(UNIONS).labels.unions == ((1, (1, 2, 5)), (3, (3, 4)))
    assert classes_of(None).labels.unions == classes_of({}).labels.unions == ()
    plain, coarse = classes_of(None).labels, classes_of(UNIONS).labels
    assert plain != coarse and plain.digest == coarse.digest  # a cache holds the same labels


@pytest.mark.parametrize(
    ("unions", "message"),
    [
        (["car"], "unions|car"),
        ({"car": "truck"}, "unions|{'car': 'truck'}"),
        ({"car": []}, "unions|{'car': []}|car"),
        ({"car": ["car", "van"]}, "unions|van|names"),
        ({"van": ["car", "truck"]}, "unions|van|names"),
        ({"car": ["car", 2]}, "unions|2|names"),
        ({"car": ["car", ["bus"]]}, "unions|bus|names"),
        ({"car": ["truck", "bus"]}, "car"),
        ({"car": ["car", "bus"], "truck": ["truck", "bus"]}, "bus|car|truck"),
        ({"car": ["car", "truck"], "truck": ["truck"]}, "truck|car"),
    ],
)
def test_unions_that_make_no_sense_are_refused(unions: object, message: str) -> None:
    """A misspelled class, or a pixel that two unions claim, found out from scores that are too low."""
    with refused(*message.split("|")) as error:
        classes_of(unions)
    assert "\n" not in str(error.value)


def test_more_ids_than_a_byte_has_are_refused() -> None:
    """The id of a union that wraps around is that of a class."""
    formats = [dataclasses.replace(plain_labels(253), unions=((0, (0, one)),)) for one in range(1, 4)]
    assert Unions.of(formats[:2], 253).table(formats[1])[0] == 254
    with refused("253", "3", "255"):
        Unions.of(formats, 253)


def mixed_samples(root: Path) -> tuple[list[Sample], Unions]:
    """Frames of three data sets of the same classes: one without unions, two with, one union in common."""
    rng = np.random.default_rng(0)
    samples = []
    for name, unions in (("a", {}), ("b", UNIONS), ("c", {"sign": ["sign", "light"], "truck": ["truck", "bus"]})):
        put(root / name, "images/x.png", value=rng.integers(0, 256, (48, 64, 3), np.uint8))
        label = np.kron(rng.integers(0, 6, (6, 8)), np.ones((8, 8))).astype(np.uint8)
        label[:4] = IGNORE_INDEX
        put(root / name, "masks/x.png", value=label)
        samples += opened(root / name, names=NAMES, unions=unions).find("train")
    return samples, Unions.of({sample.labels for sample in samples}, len(NAMES))


def test_targets_have_ids_of_unions_and_frames_have_not(tmp_path: Path) -> None:
    """An id that means one thing in one data set and another in the next, or that scores take for a class."""
    samples, unions = mixed_samples(tmp_path)
    assert unions.members == ((1, 2, 5), (2, 5), (3, 4))
    train_set = TrainSet(samples, (48, 64), 3, ONE, unions=unions)
    for index, meant in enumerate(({}, {1: 6, 3: 8}, {2: 7, 3: 8})):
        label = read_pair(samples[index])[1]
        assert set(np.unique(label)) == {0, 1, 2, 3, 4, 5, IGNORE_INDEX}
        expected = np.vectorize(lambda value, meant=meant: meant.get(value, value))(label)
        target = train_set[1, index][1].numpy()
        flipped = not np.array_equal(target, expected)
        np.testing.assert_array_equal(target[:, ::-1] if flipped else target, expected)


def test_pasted_classes_keep_their_meaning(tmp_path: Path) -> None:
    """A car of a coarse data set that, pasted into a picture of a fine one, is certainly a car."""
    samples, unions = mixed_samples(tmp_path)
    mixed = TrainSet(samples, (48, 64), 3, ONE, class_mix=1.0, class_uniform=0.5, unions=unions)
    colors = [{tuple(color) for color in read_pair(sample)[0].reshape(-1, 3)} for sample in samples]
    tables = [{1: 6, 3: 8}, {2: 7, 3: 8}]
    seen = set()
    for epoch in range(12):
        image, target, _ = mixed[epoch, 0]
        for color, value in zip(image.numpy().reshape(-1, 3), target.numpy().ravel(), strict=True):
            origins = [index for index, known in enumerate(colors) if tuple(color) in known]
            if len(origins) == 1 and value != IGNORE_INDEX:
                seen.add((origins[0], int(value)))
    for index, table in enumerate(tables, 1):
        pasted = {value for origin, value in seen if origin == index}
        assert pasted >= set(table.values()) and not pasted & table.keys(), (index, pasted)
    assert {value for origin, value in seen if origin == 0} <= set(range(6))


def test_joined_scores_count_any_class_of_a_union() -> None:
    """A truck that is predicted where the label says car, as right as it can be known, pulls the mean down."""
    confusion = np.zeros((6, 6), np.int64)
    confusion[0] = [80, 5, 5, 0, 0, 0]  # road
    confusion[1] = [10, 30, 40, 0, 0, 10]  # car, truck or bus
    confusion[3] = [0, 0, 0, 2, 6, 0]  # sign or light
    scores = Scores(classes_of(UNIONS), confusion, 0.5)
    assert scores.class_miou_present == pytest.approx(np.mean([0.8, 30 / 95, 2 / 8]))
    joined = scores.joined
    assert joined.classes.names == ("road", "car", "sign") and joined.loss == 0.5
    np.testing.assert_array_equal(joined.confusion, [[80, 10, 0], [10, 80, 0], [0, 0, 8]])
    assert scores.joined_miou == pytest.approx(np.mean([0.8, 0.8, 1.0]))
    written = scores.as_json()
    assert written["joinedScores"] == pytest.approx({"road": 0.8, "car": 0.8, "sign": 1.0})
    assert written["averageScoreJoined"] == pytest.approx(scores.joined_miou)
    assert "joined mIoU            86.67 %" in scores.table() and "car: any of car, truck, bus" in scores.table()


def test_without_unions_nothing_is_joined() -> None:
    """A table or a column that says the same twice."""
    scores = Scores(classes_of(None), np.eye(6, dtype=np.int64))
    assert scores.joined is None and math.isnan(scores.joined_miou)
    assert "joined" not in scores.table() and not [key for key in scores.as_json() if "oined" in key]


def test_the_validation_loss_is_the_one_that_is_learnt(tmp_path: Path) -> None:
    """A validation loss that rises as the network learns that a car may be a truck."""
    put(tmp_path, "images/x.png", value=np.zeros((40, 48, 3), np.uint8))
    put(tmp_path, "masks/x.png", value=np.arange(40 * 48).reshape(40, 48).astype(np.uint8) % 6)
    data = opened(tmp_path, names=NAMES, unions=UNIONS)
    logits = torch.randn(1, 6, 40, 48, generator=torch.Generator().manual_seed(0))
    network = Engine(lambda images: logits, False, "given")
    scores = evaluate(network, data.find("train"), data.classes, loss=summed_cross_entropy)
    targets = torch.from_numpy(read_pair(data.find("train")[0])[1]).long()
    probabilities = logits.softmax(1)
    meant = F.one_hot(targets, 6).float()
    for train_id, members in data.classes.labels.unions:
        for member in members:
            meant[targets == train_id, member] = 1
    expected = -(probabilities[0].permute(1, 2, 0) * meant).sum(2).log().mean()
    assert scores.loss == pytest.approx(float(expected), rel=1e-5)
    assert (
        scores.confusion.sum(1).tolist() == np.bincount(targets.flatten()).tolist()
    )  # the ids of unions are not in it


def test_evaluate_prints_and_writes_joined_scores(tmp_path: Path, weights: Path) -> None:
    """Scores of coarse labels whose joined ones are computed and then not shown."""
    names = list(CITYSCAPES.names)
    rng = np.random.default_rng(0)
    put(tmp_path, "images/x.png", value=rng.integers(0, 256, (64, 96, 3), np.uint8))
    put(tmp_path, "masks/x.png", value=rng.integers(0, 2, (64, 96), np.uint8))
    opened(tmp_path, names=names, val="images", unions={"road": names[:1] + names[2:]})
    result = run_script(
        "evaluate.py", "--data_path", tmp_path / "data.yaml", "--model_weight", weights, "--device", "cpu",
        "--workers", 0, "--json", tmp_path / "scores.json", cwd=tmp_path,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert list(scores["joinedScores"]) == ["road", "sidewalk"] and "joined mIoU" in result.stdout
