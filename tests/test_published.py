"""Weights that others published, the options of their networks, and safetensors files."""

from __future__ import annotations

import json
import re
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from conftest import ROOT, assert_user_error, run_script
from hypothesis import given, settings
from hypothesis import strategies as st
from makers import as_published, normalise, published_network

from frames.classes import CITYSCAPES
from inference import published
from inference.checkpoints import initial_model, load_model, load_state
from inference.cuda import GraphNetwork
from inference.engine import export_metadata
from inference.export import write_onnx
from inference.folded import FoldedNetwork
from inference.predictor import load_engine
from inference.published import MMSEGMENTATION, ORIGINAL, TRAMAC
from model import FastSCNN, Variant
from street.scene import draw_scene
from utils import UserError, load_checkpoint

REFERENCES = ROOT.parent / "shared" / "published"
SIZES = ((33, 65), (360, 480))  # Tramac's network rounds the first down where the others round it up
PUBLISHERS = {"tramac": TRAMAC, "mmseg": MMSEGMENTATION}


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, Path]:
    """A weight file of each publisher, as it lies in the places where they are found."""
    folder = tmp_path_factory.mktemp("published")
    torch.save(as_published(published_network(TRAMAC), TRAMAC), folder / "tramac.pth")
    meta = {"mmseg_version": "0.15.0", "CLASSES": CITYSCAPES.names, "best": np.float64(0.7096), "it": np.int64(160000)}
    state = as_published(published_network(MMSEGMENTATION), MMSEGMENTATION)
    torch.save({"meta": meta, "state_dict": state, "optimizer": {"state": {}}}, folder / "mmseg.pth")
    return {name: folder / f"{name}.pth" for name in PUBLISHERS}


def by_the_rule(name: str, shape: list[int]) -> torch.Tensor:
    """A tensor of the references, by the rule of their README."""
    if name.endswith("num_batches_tracked"):
        return torch.tensor(0)
    values = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape).astype(np.float32)
    if name.endswith("running_var"):
        values = 0.5 + abs(values)
    elif len(shape) == 4:
        values = values / np.sqrt(np.prod(shape[1:]))
    elif name.endswith(("running_mean", "bias")):
        values = 0.1 * values
    else:
        values = 1 + 0.1 * values
    return torch.from_numpy(values.astype(np.float32))


def reference(name: str) -> dict[str, list[int]]:
    """The names and shapes of published weights; skips the test where they are not at hand."""
    path = REFERENCES / f"{name}_state_dict.json"
    if not path.exists():
        pytest.skip(f"{path.name} is not at hand")
    return json.loads(path.read_text())


@pytest.mark.parametrize("name", PUBLISHERS)
def test_logits_are_those_of_their_repository(name: str, tmp_path) -> None:
    """A wrong order of channels, a missing ReLU, or another dilation: no shape tells, the logits do."""
    state = {key: by_the_rule(key, shape) for key, shape in reference(name).items()}
    torch.save(state, tmp_path / "w.pth")
    model, _ = load_model(tmp_path / "w.pth")
    picture = np.random.RandomState(128 * 10000 + 256).randint(0, 256, (128, 256, 3)).astype(np.uint8)
    with torch.no_grad():
        logits = model.logits(model.resize(normalise(torch.from_numpy(picture)[None])))[0][0]
    expected = np.load(REFERENCES / f"{name}_logits_128x256.npz")["logits"]
    np.testing.assert_allclose(logits.numpy(), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", PUBLISHERS)
def test_names_of_these_tests_are_the_published_ones(name: str) -> None:
    """Tests of the converter with names that no published file has."""
    state = as_published(published_network(PUBLISHERS[name]), PUBLISHERS[name])
    assert {key: list(tensor.shape) for key, tensor in state.items()} == reference(name)


@pytest.mark.parametrize("name", PUBLISHERS)
def test_published_weights_are_recognised_and_compute_the_same(name: str, files, capsys) -> None:
    """A file that is refused, read as the paper's network, or read without a word."""
    publisher, x = PUBLISHERS[name], torch.randn(1, 3, 70, 90)
    model, metadata = load_model(files[name])
    said = capsys.readouterr().err
    assert all(str(noun) in said for noun in (files[name], publisher.name, "align_corners", publisher.align_corners))
    assert "fusion_dilation=1" in said and (all(str(noun) in said for noun in ("8", "aux_shallow"))) == (
        name == "tramac"
    )
    assert (model.variant, model.align_corners) == (publisher.variant, publisher.align_corners)
    assert metadata["variant"] == publisher.variant._asdict() and metadata["classes"] is CITYSCAPES
    with torch.no_grad():
        torch.testing.assert_close(model(x), published_network(publisher)(x), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("prefix", ["module.", "net.model.", "module._orig_mod."])
@pytest.mark.parametrize("name", PUBLISHERS)
def test_wrapped_published_weights_are_found(name: str, prefix: str, files, tmp_path) -> None:
    """A prefix that hides whose weights they are, or that takes mmsegmentation's `backbone.` with it."""
    state = as_published(published_network(PUBLISHERS[name]), PUBLISHERS[name])
    torch.save({"epoch": 1, "ema": {prefix + key: tensor for key, tensor in state.items()}}, tmp_path / "w.pth")
    bare, wrapped = (load_state(path)[0] for path in (files[name], tmp_path / "w.pth"))
    assert bare.keys() == wrapped.keys() and all(torch.equal(wrapped[key], bare[key]) for key in bare)


def test_the_default_is_the_paper() -> None:
    """An option of somebody else's network that becomes ours."""
    assert FastSCNN().variant == ORIGINAL.variant == Variant(1, False, 4, 1)
    assert len({publisher.variant for publisher in published.PUBLISHERS}) == 3


@pytest.mark.parametrize("name", PUBLISHERS)
def test_auxiliary_heads_serve_fine_tuning(name: str, files, capsys) -> None:
    """Heads that are there and start at random, in each other's place, or random without a word."""
    model = initial_model(files[name], CITYSCAPES, aux=True, reset_head=False)
    said = capsys.readouterr().err
    whole = published_network(PUBLISHERS[name])
    heads = ["aux_shallow", "aux_context"] if name == "mmseg" else ["aux_shallow"]
    for head in heads:
        for key, tensor in whole.get_submodule(head).state_dict().items():
            assert torch.equal(model.get_submodule(head).state_dict()[key], tensor), (head, key)
    assert (all(str(noun) in said for noun in ("8", "aux_context"))) == (name == "tramac"), said


@pytest.mark.parametrize("name", PUBLISHERS)
def test_engines_agree_at_odd_sizes(name: str, files, tmp_path, monkeypatch) -> None:
    """An engine that rounds a size in another way than the network: logits shifted, or an error of some inner layer."""
    monkeypatch.setattr("inference.folded.STRIP", 16)  # several strips in these small pictures too
    model = load_model(files[name])[0]
    write_onnx(model, export_metadata(model, "", "fp32", None), tmp_path / "n.onnx")
    engines = [load_engine(files[name], "cpu", "torch", precision)[0] for precision in ("fp32", "bf16")]
    engines += [load_engine(tmp_path / "n.onnx", "cpu", backend)[0] for backend in ("onnx", "openvino")]
    for height, width in SIZES:
        images = torch.from_numpy(draw_scene(0, height, width)[0])[None]
        with torch.no_grad():
            expected = model.logits(model.resize(normalise(images)))[0]
            labels = model(normalise(images)).argmax(1)
        assert expected.shape[2:] == ((4, 8) if (name, height) == ("tramac", 33) else (-(-height // 8), -(-width // 8)))
        for engine in engines:
            rounded = "bf16" in engine.name
            near = 0.03 * float(expected.abs().max()) if rounded else 1e-3
            torch.testing.assert_close(engine.logits(images), expected, atol=near, rtol=1e-3)
            assert (engine.labels(images) == labels).float().mean() >= (0.97 if rounded else 0.9999), engine.name


def test_cuda_graphs_take_the_variants(files) -> None:
    """The capturable copy of the network, here on a CPU, that knows the paper's sizes only."""
    model = load_model(files["tramac"])[0]
    images = torch.from_numpy(draw_scene(0, 33, 65)[0])[None]
    with torch.no_grad():
        expected = model.logits(model.resize(normalise(images)))[0]
    logits = GraphNetwork(model, torch.device("cpu"), "fp32").logits(images)
    torch.testing.assert_close(logits, expected, atol=1e-3, rtol=1e-3)


@settings(max_examples=25, deadline=None)
@given(st.integers(32, 140), st.integers(32, 140), st.integers(1, 60), st.sampled_from([1.0, 1.5]))
def test_strips_are_the_whole_without_padding(height: int, width: int, cells: int, scale: float) -> None:
    """A strip that ends one row too early for a first convolution without padding, or a row too many."""
    whole = published_network(TRAMAC, 5)
    whole.input_scale = scale
    images = torch.randint(0, 256, (1, height, width, 3), dtype=torch.uint8)
    with torch.no_grad(), pytest.MonkeyPatch.context() as patch:
        patch.setattr("inference.folded.STRIP", cells)
        torch.testing.assert_close(FoldedNetwork(whole, strips=True)(images), FoldedNetwork(whole)(images))


FLAGS = ("--crop_h", 32, "--crop_w", 64, "--batch_size", 2, "--workers", 0, "--device", "cpu")


def test_a_run_carries_the_options_and_all_scripts_honour_them(files, frames, tmp_path) -> None:
    """Fine-tuned weights that nothing can load any more, or that are run as the paper's network."""
    train = ("--data_path", frames, *FLAGS, "--aux_weight", 0.4, "--init_weights", files["tramac"], "--save_step", 9)
    result = run_script("train.py", *train, "--epochs", 1, cwd=tmp_path)
    assert result.returncode == 0 and "weights of Tramac" in result.stderr, result.stderr
    model, metadata = load_model(tmp_path / "32_64_model.pth")
    assert metadata["variant"] == TRAMAC.variant._asdict() and model.variant == TRAMAC.variant and model.align_corners
    last = tmp_path / "32_64_last.pth"
    result = run_script(
        "train.py", "--data_path", frames, *FLAGS, "--aux_weight", 0.4, "--epochs", 2, "--resume", last, cwd=tmp_path
    )
    assert result.returncode == 0 and "1" in result.stdout, result.stderr
    assert load_checkpoint(last)["metadata"]["variant"] == TRAMAC.variant._asdict()

    own, data = ("--model_weight", "32_64_model.pth"), ("--data_path", frames)
    result = run_script("deploy.py", *own, "--format", "safetensors", "--output", "n.safetensors", cwd=tmp_path)
    assert result.returncode == 0 and all(str(noun) in result.stdout for noun in ("safetensors", "fp32")), result.stderr
    scores = []
    for weights in (own[1], "n.safetensors"):
        result = run_script("evaluate.py", *data, "--model_weight", weights, "--device", "cpu", cwd=tmp_path)
        assert result.returncode == 0, result.stderr
        scores.append(re.findall(r"^(class mIoU.*|pixel accuracy.*)$", result.stdout, re.MULTILINE))
    assert len(scores[0]) == 3 and scores[0] == scores[1]
    cv2.imwrite(str(tmp_path / "p.png"), draw_scene(0, 64, 128)[0])
    result = run_script("viewer.py", "--model_weight", "n.safetensors", "--input_pic", "p.png", cwd=tmp_path)
    assert result.returncode == 0 and (tmp_path / "p_result.png").exists(), result.stderr
    result = run_script(
        "train.py", *data, *FLAGS, "--epochs", 1, "--init_weights", "n.safetensors", "--output_dir", "s", cwd=tmp_path
    )
    assert result.returncode == 0, result.stderr
    assert load_model(tmp_path / "s" / "32_64_model.pth")[0].variant == TRAMAC.variant


@pytest.mark.parametrize("name", PUBLISHERS)
def test_another_number_of_classes_is_named(name: str, frames, tmp_path) -> None:
    """A list of shapes where the number of classes differs, or no way on."""
    state = as_published(published_network(PUBLISHERS[name], 21), PUBLISHERS[name])
    torch.save(state, tmp_path / "w.pth")
    run = ("train.py", "--data_path", frames, *FLAGS, "--epochs", 1, "--init_weights", "w.pth", "--aux_weight", 0.4)
    assert_user_error(run_script(*run, cwd=tmp_path), "w.pth", "21", "19", "--reset_head")
    assert load_model(tmp_path / "w.pth")[0].classifier.conv.out_channels == 21
    model = initial_model(tmp_path / "w.pth", CITYSCAPES, aux=True, reset_head=True)
    assert model.variant == PUBLISHERS[name].variant
    shallow = model.aux_shallow.conv[0].weight
    assert torch.equal(shallow, published_network(PUBLISHERS[name], 21).aux_shallow.conv[0].weight)


@pytest.mark.parametrize(
    ("key", "shape"),
    [
        ("decode_head.convs.0.conv.weight", (128, 128, 3, 3)),
        ("backbone.feature_fusion.dwconv.conv.weight", (128, 128, 1, 1)),
        ("backbone.global_feature_extractor.out.conv.weight", (128, 256, 1, 1)),
    ],
)
def test_older_files_of_mmsegmentation_are_refused_by_name(key: str, shape: tuple[int, ...], tmp_path) -> None:
    """'6 missing, 2 unknown' for a file with the same names as one that is taken, or a network that it is not."""
    state = as_published(published_network(MMSEGMENTATION), MMSEGMENTATION)
    state.pop(key.replace(".conv.weight", ".depthwise_conv.conv.weight"), None)
    state[key] = torch.zeros(shape)
    torch.save({"state_dict": state}, tmp_path / "w.pth")
    words = rf"w\.pth is of an older Fast-SCNN of mmsegmentation \({re.escape(key)} is {re.escape(str(shape))}"
    with pytest.raises(UserError, match=words + ".*: take fast_scnn_8x4_160k"):
        load_model(tmp_path / "w.pth")
