"""Measurements on a GPU, as far as they can be checked without one; the last test needs one."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT, assert_user_error, run_script
from test_benchmark import KEYS

from inference.checkpoints import load_model
from inference.cuda import HEADS, Deployed, capture, plain
from model import MEAN, STD, FastSCNN, normalise
from speed.gpu import WEIGHTS, Job, alternate_on, gpu_rows, measure, prepare, read_network, resized
from street.scene import draw_scene
from utils import UserError

SIZE = (70, 100)
CPU = torch.device("cpu")


def test_torch_and_numpy_are_enough() -> None:
    """On a lent machine nothing else is installed, and its time is short."""
    script = (
        "import sys\n"
        "for name in ('cv2', 'torchvision', 'thop', 'tqdm', 'matplotlib', 'onnx'): sys.modules[name] = None\n"
        "import speed.gpu as gpu\n"
        "gpu.read_network(gpu.WEIGHTS)"
    )
    result = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_network_of_one_size_predicts_the_same(layout) -> None:
    """What is measured leaves something out: a pooling matrix of another size, the normalisation, a bias."""
    model, picture = read_network(WEIGHTS), draw_scene(0, 97, 131)[0]
    images = torch.from_numpy(picture)[None]
    with torch.no_grad():
        found = Deployed(model, (97, 131), "fp32", layout=layout)(images)
        baseline = plain(model, images, torch.tensor(MEAN), torch.tensor(STD))
        expected = model(normalise(images)).argmax(1)
    assert found.dtype == baseline.dtype == torch.uint8 and len(found.unique()) > 2
    assert (baseline == expected).float().mean() > 0.999 and (found == expected).float().mean() > 0.999


@pytest.mark.parametrize("align_corners", [False, True])
def test_label_heads_agree(align_corners: bool) -> None:
    """The faster head names another class."""
    logits = torch.randn(2, 19, 9, 13, generator=torch.Generator().manual_seed(0))
    naive, running = (head(logits, SIZE, align_corners) for head in HEADS.values())
    assert naive.shape == (2, *SIZE) and naive.dtype == running.dtype == torch.uint8
    assert torch.equal(naive, running)


def test_sides_alternate_on_any_device() -> None:
    """All of one side first, then all of the other, measures how the machine's clock drifts."""
    calls: list[str] = []
    times = alternate_on(CPU, (lambda: calls.append("a"), lambda: calls.append("b")), 2, burst=2)
    assert calls == ["a", "b"] + ["a", "a", "b", "b"] * 2 and [len(side) for side in times] == [2, 2]


def test_what_cannot_be_prepared_is_a_line(weights) -> None:
    """One failing compiler ends the only run that a lent machine has time for."""
    lines: list[str] = []
    job = Job(read_network(weights), CPU, 3, False, lines.append)

    def broken() -> None:
        raise RuntimeError("no compiler\nand a long trace")

    assert prepare(job, "compiled", "torch-compile", "fp16", broken) == []
    assert lines == ["compiled: not run (RuntimeError: no compiler)"]


def test_every_row_has_the_promised_keys(weights, capsys) -> None:
    """A file of rows that a script cannot read, or one that a machine that is taken away leaves empty."""
    kept: list[int] = []
    rows = gpu_rows(
        read_network(weights), None, 3, device="cpu", sizes=[SIZE, (64, 64)], batches=(1, 2),
        precisions=("fp32", "bf16"), compiled=False,
        keep=lambda rows: kept.append(len(rows)),
    )  # fmt: skip
    assert all(row.keys() >= KEYS | {"batch", "device", "images_per_s"} and row["ratio"] > 0 for row in rows)
    assert {row["stage"] for row in rows} == {"picture-to-labels", "network", "label-head"}
    assert {row["precision"] for row in rows} == {"fp32", "bf16"} and {row["batch"] for row in rows} == {1, 2}
    assert kept == sorted(kept) and kept[-1] == len(rows) and len(kept) > 4
    said = capsys.readouterr().out
    assert "reported, other hardware: 123.5 frames/s (paper, Titan Xp" in said
    assert "reported, other hardware: 197 frames/s (original repository, V100, batch 12)" in said


def test_ratio_and_rate_of_a_row(weights) -> None:
    """A ratio that is upside down, or a rate that forgets the batch."""
    job = Job(read_network(weights), CPU, 3, False, print)
    (way,) = prepare(job, "ours", "torch", "fp32", lambda: lambda: torch.zeros(4, dtype=torch.uint8))
    rows = measure(job, "picture-to-labels", SIZE, 4, way._replace(name="baseline"), [way])
    assert rows[0]["ratio"] == 1 and rows[1]["equal"] == 1
    assert rows[1]["images_per_s"] == pytest.approx(4e3 / rows[1]["median_ms"])


def test_weights_that_are_none(tmp_path, weights) -> None:
    """A traceback of load_state_dict."""
    torch.save(FastSCNN(num_classes=3).state_dict(), tmp_path / "w.pth")
    with pytest.raises(UserError, match=r"w\.pth belongs to another network"):
        read_network(tmp_path / "w.pth")
    with pytest.raises(UserError, match="no weight file"):
        read_network(tmp_path / "none.pth")
    bare = load_model(weights)[0].state_dict()
    torch.save({**bare, "aux_shallow.classes.bias": torch.zeros(19)}, tmp_path / "aux.pth")
    assert torch.equal(read_network(tmp_path / "aux.pth").classifier.conv.bias, bare["classifier.conv.bias"])


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_is_one_line(tmp_path) -> None:
    """Figures of a processor that look like those of a GPU, or a traceback."""
    assert_user_error(run_script("speed.gpu", cwd=tmp_path), "no CUDA device")
    assert_user_error(run_script("speed.gpu", "--repeats", 1, cwd=tmp_path), "--repeats is 1")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_a_gpu(weights) -> None:
    """A CUDA graph that replays something else than it recorded; a group that only fails there."""
    model, images = read_network(weights).cuda(), resized(None, SIZE, 2, torch.device("cuda"))
    with torch.no_grad():
        network = Deployed(model, SIZE, "fp16")
        replay = capture(network, images)
        for _ in range(2):
            assert torch.equal(replay(), network(images))
            images.copy_(images.flip(1))
    rows = gpu_rows(model.cpu(), np.zeros((64, 96, 3), np.uint8), 3, True, sizes=[SIZE], batches=(1, 2))
    assert {"torch", "torch-graph"} <= {row["backend"] for row in rows}
    assert all(row["equal"] is None or row["equal"] > 0.95 for row in rows)
