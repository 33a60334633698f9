"""Pictures that the network sees enlarged: --input_scale of the scripts that predict."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

import deploy
import evaluate
import viewer
from inference.predictor import load_predictor
from utils import UserError, save_checkpoint

ROOT = Path(__file__).parent.parent


@pytest.fixture
def weights():
    """A checkpoint that was trained at the pictures' own size."""
    return ROOT / "weights" / "street.pth"


@pytest.fixture
def image():
    """A street of 96x168."""
    return cv2.resize(cv2.imread(str(ROOT / "docs" / "street_input.jpg")), (168, 96), interpolation=cv2.INTER_AREA)


@pytest.mark.parametrize("backend", ["torch", "onnx"])
def test_a_prediction_is_that_of_a_network_with_this_scale(backend, weights, image, tmp_path):
    """A scale that is ignored, or that an engine forgets."""
    pytest.importorskip({"onnx": "onnxruntime"}.get(backend, backend))
    scaled = tmp_path / "scaled.pth"
    checkpoint = torch.load(weights)
    checkpoint["metadata"]["input_scale"] = 1.5
    save_checkpoint(scaled, checkpoint)
    expected = load_predictor(scaled, "cpu", backend)(image)
    predict = load_predictor(weights, "cpu", backend, input_scale=1.5)
    assert predict.network.name.endswith("fp32, input_scale 1.5")
    assert (predict(image) == expected).all()
    assert (load_predictor(weights, "cpu", backend)(image) != expected).any()


def test_an_export_keeps_its_scale(weights, image, tmp_path, monkeypatch):
    """deploy.py writes it into the file, where nothing changes it any more."""
    pytest.importorskip("onnx")
    file = tmp_path / "half.onnx"
    flags = ["--model_weight", weights, "--output", file, "--height", 96, "--width", 168, "--input_scale", 0.5]
    monkeypatch.setattr("sys.argv", ["deploy.py", *map(str, flags)])
    assert deploy.main() == 0
    assert (load_predictor(file)(image) == load_predictor(weights, "cpu", input_scale=0.5)(image)).all()
    with pytest.raises(UserError, match=r"--input_scale is 2, but .*half\.onnx was exported with its own"):
        load_predictor(file, input_scale=2)


@pytest.mark.parametrize("script", [deploy, evaluate, viewer])
@pytest.mark.parametrize("scale", ["0.1", "9", "nan", "-1"])
def test_scales_out_of_range_are_refused(script, scale, weights, monkeypatch):
    """Before data or weights are read."""
    monkeypatch.setattr("sys.argv", ["script", "--model_weight", str(weights), "--input_scale", scale])
    with pytest.raises(UserError, match=f"^--input_scale is {scale}, expected 0.25 to 8$"):
        script.main()


def test_the_smallest_picture_at_the_smallest_scale(weights):
    """A deep error for a picture that is taken without a scale."""
    labels = load_predictor(weights, "cpu", input_scale=0.25)(np.zeros((32, 32, 3), np.uint8))
    assert labels.shape == (32, 32)
