"""Measurements on a GPU, as far as they can be checked without one; the last test needs one."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from conftest import ROOT, assert_user_error, refused, run_script
from runs import KEYS

from inference.checkpoints import load_model
from model import FastSCNN
from speed import gpu
from speed.gpu import Variant, gpu_rows, measure, prepare, resized
from speed.plain import WEIGHTS, measured_network
from street.scene import draw_scene
from utils import save_checkpoint

SIZE = (70, 100)
CPU = torch.device("cpu")
SCENE = draw_scene(0, 128, 256)[0]


def test_torch_and_numpy_are_enough() -> None:
    """On a lent machine nothing else is installed, and its time is short."""
    script = (
        "import sys\n"
        "for name in ('cv2', 'torchvision', 'thop', 'tqdm', 'matplotlib', 'onnx'): sys.modules[name] = None\n"
        "import speed.gpu as gpu\n"
        "gpu.measured_network(None)"
    )
    result = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_what_cannot_be_prepared_is_a_line(weights, monkeypatch, capsys) -> None:
    """One failing driver ends the only run that a lent machine has time for."""

    def broken(*arguments: object) -> None:
        raise RuntimeError("no driver\nand a long trace")

    monkeypatch.setattr(gpu, "GraphNetwork", broken)
    images = resized(SCENE, SIZE, 1, CPU)
    assert prepare("torch-graph", "fp16", "network", load_model(weights)[0], images) == []
    (line,) = capsys.readouterr().out.splitlines()
    assert all(noun in line for noun in ("fp16", "70x100", "RuntimeError", "no driver")) and "trace" not in line


def test_every_row_has_the_promised_keys(monkeypatch, capsys) -> None:
    """A file of rows that a script cannot read, a group that is missing, or labels that are not the baseline's."""
    monkeypatch.setattr(gpu, "SIZES", [SIZE, (64, 64)])
    monkeypatch.setattr(gpu, "BATCHES", (1, 2))
    monkeypatch.setattr(gpu, "PRECISIONS", ("fp32", "bf16"))
    groups = list(gpu_rows(measured_network(None), SCENE, 3, quick=False, device="cpu"))
    labels = ["picture to labels"] * 3  # both precisions at the first size, one at the second
    assert [title for title, _ in groups] == ["network, to the logits at 1/8", *labels, "throughput"]
    rows = [row for _, group in groups for row in group]
    assert all(row.keys() >= KEYS | {"batch", "device", "images_per_s"} and row["ratio"] > 0 for row in rows)
    assert {row["stage"] for row in rows} == {"picture-to-labels", "network"}
    assert {row["backend"] for row in rows} == {"baseline", "torch", "torch-graph"}
    assert {row["precision"] for row in rows} == {"fp32", "bf16"} and {row["batch"] for row in rows} == {1, 2}
    assert {row["queued"] for row in groups[-1][1]} == {gpu.BURST} and len(groups[-1][1]) == 4
    assert all((row["equal"] is None) == (row["stage"] == "network") for row in rows)
    assert all(row["equal"] is None or row["equal"] > 0.95 for row in rows)
    said = capsys.readouterr().out
    assert "123.5" in said
    assert all(str(noun) in said for noun in ("197", "12"))


def test_ratio_and_rate_of_a_row() -> None:
    """A ratio that is upside down, a rate that forgets the batch, or labels that are compared with themselves."""
    zeros, half = torch.zeros(4, dtype=torch.uint8), torch.tensor([0, 0, 1, 1], dtype=torch.uint8)
    row = {"name": "ours", "stage": "picture-to-labels", "batch": 4}
    rows = measure([Variant(row, lambda: zeros), Variant(row, lambda: half)], CPU, 3)
    assert rows[0]["ratio"] == 1 and rows[0]["equal"] == 1 and rows[1]["equal"] == 0.5
    assert rows[1]["ratio"] == pytest.approx(rows[0]["median_ms"] / rows[1]["median_ms"])
    assert rows[1]["images_per_s"] == pytest.approx(4e3 / rows[1]["median_ms"])


def test_the_measured_network(tmp_path, weights, capsys) -> None:
    """A traceback for other weights, auxiliary heads that are refused, or an enlargement that slows all rows down."""
    torch.save({"backbone.weight": torch.zeros(2)}, tmp_path / "w.pth")
    with refused("w.pth"):
        measured_network(tmp_path / "w.pth")
    with refused("none.pth"):
        measured_network(tmp_path / "none.pth")
    state = load_model(weights)[0].state_dict()
    with_heads = {**FastSCNN(aux=True).state_dict(), **state}
    save_checkpoint(tmp_path / "aux.pth", {"model": with_heads, "metadata": {"input_scale": 2.0, "input_side": 512}})
    capsys.readouterr()
    model = measured_network(tmp_path / "aux.pth")
    assert torch.equal(model.classifier.conv.bias, state["classifier.conv.bias"])
    assert (model.input_scale, model.input_side) == (1, 0)
    assert "resizes its input: measured without" in capsys.readouterr().out
    assert WEIGHTS.is_file() and not measured_network(None).training


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_is_one_line(tmp_path) -> None:
    """Figures of a processor that look like those of a GPU, or a traceback."""
    assert_user_error(run_script("speed.gpu", cwd=tmp_path))
    assert_user_error(run_script("speed.gpu", "--repeats", 1, cwd=tmp_path), "--repeats", "1")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_a_gpu(monkeypatch) -> None:
    """A group that fails only there."""
    monkeypatch.setattr(gpu, "SIZES", [SIZE])
    monkeypatch.setattr(gpu, "BATCHES", (1, 2))
    groups = list(gpu_rows(measured_network(None), SCENE, 3, quick=True))
    rows = [row for _, group in groups for row in group]
    assert {"torch", "torch-graph"} <= {row["backend"] for row in rows}
    assert all(row["equal"] is None or row["equal"] > 0.95 for row in rows)
