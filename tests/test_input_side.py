"""How large the network sees pictures: input_side of a weight file, and --input_side of the scripts that predict."""

from __future__ import annotations

from pathlib import Path

import cv2
import pytest
import torch
from conftest import refused
from makers import normalise

import deploy
import evaluate
import viewer
from frames.classes import Classes
from inference.checkpoints import load_model
from inference.predictor import load_predictor
from inference.published import TRAMAC
from inference.torch_engine import torch_engine
from model import PAPER, FastSCNN
from utils import save_checkpoint

ROOT = Path(__file__).parent.parent


@pytest.fixture
def weights(tmp_path):
    """A checkpoint for pictures of any size, which the network sees 144 wide."""
    checkpoint = torch.load(ROOT / "weights" / "street.pth")
    checkpoint["metadata"]["input_side"] = 144
    save_checkpoint(tmp_path / "weights.pth", checkpoint)
    return tmp_path / "weights.pth"


@pytest.fixture
def image():
    """A street of 96x168."""
    return cv2.resize(cv2.imread(str(ROOT / "docs" / "street_input.jpg")), (168, 96), interpolation=cv2.INTER_AREA)


@pytest.mark.parametrize(
    ("backend", "side"), [("torch", None), ("torch", 252), ("onnx", 252), ("openvino", None)], ids=str
)
def test_the_side_of_the_weights_and_another_one(backend, side, weights, image):
    """A side that is ignored, or that an engine forgets, or that a call cannot change."""
    pytest.importorskip({"onnx": "onnxruntime"}.get(backend, backend))
    predict = load_predictor(weights, "cpu", backend, input_side=side)
    assert predict.engine.name.endswith(f"fp32, input_side {side or 144}")
    with torch.no_grad():
        images = normalise(torch.from_numpy(image)[None])
        expected, other = (load_model(weights, one)[0](images).argmax(1)[0].numpy() for one in (side, 200))
    labels = predict(image)
    assert (labels == expected).mean() > 0.999 > (labels == other).mean()


@pytest.mark.parametrize("size", [(), ("--dynamic",)], ids=str)
def test_an_export_keeps_its_side(size, weights, image, tmp_path, monkeypatch):
    """deploy.py writes it into the file, where nothing changes it any more."""
    pytest.importorskip("onnx")
    file = tmp_path / "small.onnx"
    flags = ["--model_weight", weights, "--output", file, "--height", 96, "--width", 168, "--input_side", 84, *size]
    monkeypatch.setattr("sys.argv", ["deploy.py", *map(str, flags)])
    assert deploy.main() == 0
    assert (load_predictor(file)(image) == load_predictor(weights, "cpu", input_side=84)(image)).all()
    with refused("--input_side", "0", "small.onnx"):
        load_predictor(file, input_side=0)


@pytest.mark.parametrize("script", [deploy, evaluate, viewer])
@pytest.mark.parametrize("side", ["-1", "8193"])
def test_sides_out_of_range_are_refused(script, side, weights, monkeypatch):
    """Before data or weights are read."""
    monkeypatch.setattr("sys.argv", ["script", "--model_weight", str(weights), "--input_side", side])
    with refused("--input_side", side, "0", "8192"):
        script.main()


@pytest.mark.parametrize("side", [64.0, True, "64"])
def test_sides_that_are_no_whole_numbers_are_refused(side, weights):
    """An error of some inner layer at the first picture."""
    with refused("--input_side", "0", "8192"):
        load_predictor(weights, "cpu", input_side=side)


def test_nought_is_the_size_of_the_picture(weights, image):
    """Weights that enlarge their input, and no way to switch that off."""
    checkpoint = torch.load(weights)
    checkpoint["metadata"] |= {"input_scale": 2.0, "input_side": 0}
    save_checkpoint(weights, checkpoint)
    batch = torch.from_numpy(image)[None]
    assert load_predictor(weights, "cpu").engine.logits(batch).shape[-2:] == (24, 42)
    assert load_predictor(weights, "cpu", input_side=0).engine.logits(batch).shape[-2:] == (12, 21)


@pytest.mark.parametrize("variant", [PAPER, TRAMAC.variant])
@pytest.mark.parametrize(("size", "seen"), [((32, 32), (64, 64)), ((32, 3000), (32, 64)), ((3000, 32), (64, 32))])
def test_any_picture_at_a_small_side(size, seen, variant):
    """A picture so thin that nothing of it is left, or too little for a network without padding."""
    model = FastSCNN(3, input_side=64, variant=variant).eval()
    network = torch_engine(model, torch.device("cpu"), "fp32", classes=Classes.unnamed(3))
    images = torch.zeros(1, *size, 3, dtype=torch.uint8)
    assert network.logits(images).shape[-2:] == tuple((length - variant.lost + 7) // 8 for length in seen)
    assert network.labels(images).shape == (1, *size)
