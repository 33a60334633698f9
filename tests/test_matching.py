"""Weights and data whose classes are the same, in another order, others, or not named."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import refused

from frames.classes import CITYSCAPES, Classes, distinct_colors, plain_labels
from inference.checkpoints import initial_model, load_model
from inference.predictor import load_engine
from model import FastSCNN
from utils import save_checkpoint

IMAGE = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (1, 64, 96, 3), np.uint8))


def classes_named(*names: str) -> Classes:
    """Classes with these names, and computed colors."""
    return Classes(names, distinct_colors(len(names)), (), plain_labels(len(names)))


@pytest.fixture
def weights(tmp_path):
    """A checkpoint of three classes with auxiliary heads."""
    torch.manual_seed(0)
    model = FastSCNN(3, aux=True)
    metadata = {"align_corners": False, "input_scale": 1.0, "classes": classes_named("road", "car", "sky").as_dict()}
    save_checkpoint(tmp_path / "w.pth", {"model": model.state_dict(), "metadata": metadata})
    return tmp_path / "w.pth"


@pytest.mark.parametrize("backend", ["torch", "onnx"])
def test_classes_in_another_order_are_mapped(weights, capsys, backend: str) -> None:
    """Scores of a car where the data has the sky: near zero, and no error."""
    plain, _ = load_engine(weights, "cpu", backend)
    assert plain.classes.names == ("road", "car", "sky")
    assert "order" not in capsys.readouterr().err
    mapped, _ = load_engine(weights, "cpu", backend, classes=classes_named("sky", "road", "car"))
    assert "in another order" in capsys.readouterr().err
    assert torch.equal(mapped.logits(IMAGE), plain.logits(IMAGE)[:, [2, 0, 1]])
    assert torch.equal(torch.tensor([1, 2, 0], dtype=torch.uint8)[plain.labels(IMAGE).long()], mapped.labels(IMAGE))


def test_fine_tuning_takes_the_heads_in_the_order_of_the_data(weights, capsys) -> None:
    """Auxiliary heads that begin with the classes exchanged, and unlearn for an epoch."""
    state = torch.load(weights)["model"]
    for reset in (False, True):  # nothing has to be reset: the names are the same
        model = initial_model(weights, classes_named("sky", "road", "car"), aux=True, reset_head=reset).state_dict()
        assert "in another order" in capsys.readouterr().err
        for head in ("classifier.conv", "aux_shallow.classes", "aux_context.classes"):
            for part in ("weight", "bias"):
                assert torch.equal(model[f"{head}.{part}"], state[f"{head}.{part}"][[2, 0, 1]]), head
        assert torch.equal(model["classifier.dsconv1.0.weight"], state["classifier.dsconv1.0.weight"])


def test_other_names_are_refused_and_reset_all_heads(weights, capsys) -> None:
    """Three classes that are taken for three others, since the shapes fit."""
    other = classes_named("road", "bus", "sky")
    with refused("1", "car", "bus", "--reset_head"):
        load_engine(weights, "cpu", classes=other)
    with refused("1", "car", "bus"):
        initial_model(weights, other, aux=True, reset_head=False)
    state = torch.load(weights)["model"]
    torch.manual_seed(1)
    model = initial_model(weights, other, aux=True, reset_head=True).state_dict()
    assert "6 tensors" in capsys.readouterr().err
    fresh = {name for name, tensor in model.items() if not torch.equal(tensor, state[name])}
    assert fresh == {
        f"{head}.{part}"
        for head in ("classifier.conv", "aux_shallow.classes", "aux_context.classes")
        for part in ("weight", "bias")
    }


def test_weights_without_names(tmp_path, capsys) -> None:
    """Bare weights that nobody can use, or whose classes are taken for granted without a word."""
    torch.save(FastSCNN(3).state_dict(), tmp_path / "three.pth")
    torch.save(FastSCNN(19).state_dict(), tmp_path / "nineteen.pth")
    assert load_model(tmp_path / "nineteen.pth")[1]["classes"] is CITYSCAPES
    assert load_model(tmp_path / "three.pth")[1]["classes"].names == ("class_0", "class_1", "class_2")
    network, _ = load_engine(tmp_path / "three.pth", "cpu", classes=classes_named("a", "b", "c"))
    assert network.classes.names == ("a", "b", "c") and "3" in capsys.readouterr().err
    with refused("3", "19"):
        load_engine(tmp_path / "three.pth", "cpu", classes=CITYSCAPES)
    with refused("0", "road", "c0"):
        load_engine(tmp_path / "nineteen.pth", "cpu", classes=classes_named(*(f"c{index}" for index in range(19))))


def test_names_that_do_not_fit_the_scores_are_refused(tmp_path) -> None:
    """Four names for three scores: labels that mean nothing, or an index error while drawing."""
    for wrong, message in (
        (classes_named("a", "b", "c", "d").as_dict(), "4|3"),
        ({"names": ["a", "b", "c"]}, ""),
        (["a", "b", "c"], ""),
    ):
        metadata = {"align_corners": False, "input_scale": 1.0, "classes": wrong}
        save_checkpoint(tmp_path / "w.pth", {"model": FastSCNN(3).state_dict(), "metadata": metadata})
        with refused(*message.split("|")):
            load_model(tmp_path / "w.pth")
