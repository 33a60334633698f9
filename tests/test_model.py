"""The network: shapes, parameters, pooling matrices, and weights of the original repository."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import pytest
import torch
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st
from makers import OriginalNetwork, normalise, original_network
from torch.nn import functional as F

from inference.checkpoints import load_model
from inference.published import ORIGINAL, convert, recognise
from model import MEAN, STD, FastSCNN, PyramidPooling, pooling_matrix
from training.crop import MEAN_COLOR

NAMES = ROOT.parent / "shared" / "original_state_dict.json"


def test_parameter_count() -> None:
    """A layer too many or too few, or a bias where BN follows: 1,137,795 is the count by hand, 1.14 M rounded."""
    assert sum(parameter.numel() for parameter in FastSCNN().parameters()) == 1_137_795


def test_layer_table() -> None:
    """A wrong stride or width that the logits' shape does not show."""
    model, shapes = FastSCNN().eval(), {}
    for name in ("learning_to_downsample.conv", "learning_to_downsample.dsconv1", "learning_to_downsample",
                 "global_feature_extractor.bottleneck1", "global_feature_extractor.bottleneck2",
                 "global_feature_extractor.bottleneck3", "global_feature_extractor", "feature_fusion",
                 "classifier"):  # fmt: skip
        module = model.get_submodule(name)
        module.register_forward_hook(lambda _, __, out, name=name: shapes.__setitem__(name, tuple(out.shape[1:])))
    with torch.no_grad():
        model(torch.zeros(1, 3, 128, 256))
    assert list(shapes.values()) == [
        (32, 64, 128), (48, 32, 64), (64, 16, 32), (64, 8, 16), (96, 4, 8), (128, 4, 8), (128, 4, 8), (128, 16, 32),
        (19, 16, 32),
    ]  # fmt: skip


@settings(max_examples=15, deadline=None)
@given(st.integers(32, 140), st.integers(32, 140), st.booleans())
def test_any_size(height: int, width: int, align_corners: bool) -> None:
    """A fixed scale factor crashes, or shifts the logits, at sizes that are not multiples of 32."""
    model = FastSCNN(5, align_corners=align_corners).eval()
    with torch.no_grad():
        assert model(torch.zeros(1, 3, height, width)).shape == (1, 5, height, width)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 70), st.integers(1, 70), st.sampled_from([1, 2, 3, 6]))
def test_pooling_is_adaptive_average_pooling(height: int, width: int, bins: int) -> None:
    """Bins that do not divide the map, or are more than its cells, averaged over the wrong cells."""
    x = torch.randn(2, 3, height, width)
    torch.testing.assert_close(PyramidPooling.pool(x, bins), F.adaptive_avg_pool2d(x, bins), atol=1e-6, rtol=1e-5)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 300), st.sampled_from([1, 2, 3, 6]))
def test_pooling_matrix_rows_sum_to_one(length: int, bins: int) -> None:
    """A row that misses a cell or counts one twice scales a whole context map."""
    matrix = pooling_matrix(length, bins, torch.zeros(1))
    torch.testing.assert_close(matrix.sum(1), torch.ones(bins))


def test_pooling_stays_precise_under_autocast() -> None:
    """In bf16 the matrices' rows do not sum to one: means up to 0.2 % off."""
    x = torch.randn(1, 4, 22, 30)
    with torch.autocast("cpu", torch.bfloat16):
        pooled = PyramidPooling.pool(x, 6)
    torch.testing.assert_close(pooled, F.adaptive_avg_pool2d(x, 6), atol=1e-6, rtol=1e-5)


def test_normalise_is_the_usual_formula() -> None:
    """Swapped channels or a forgotten 255 train, but weights of others then see wrong colors."""
    images = torch.randint(0, 256, (2, 5, 7, 3), dtype=torch.uint8)
    expected = (images.permute(0, 3, 1, 2) / 255 - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    got = normalise(images)
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)
    assert got.is_contiguous(memory_format=torch.channels_last) and images.dtype == torch.uint8
    assert normalise(torch.tensor(MEAN_COLOR, dtype=torch.uint8).view(1, 1, 1, 3)).abs().max() < 0.02


def test_auxiliary_heads_only_in_training() -> None:
    """Auxiliary heads that run at inference cost time; heads that are missing in training give no loss."""
    model, x = FastSCNN(7, aux=True), torch.randn(2, 3, 64, 96)
    assert [tuple(y.shape) for y in model.train()(x)] == [(2, 7, 64, 96), (2, 7, 8, 12), (2, 7, 2, 3)]
    with torch.no_grad():
        assert model.eval()(x).shape == (2, 7, 64, 96)
    assert isinstance(FastSCNN(7).train()(x), torch.Tensor)


@pytest.mark.parametrize("scale", [0.5, 1.5, 2.0])
def test_input_scale_enlarges_what_the_network_sees(scale: float) -> None:
    """Logits at the enlarged size, or an enlargement that happens twice or not at all."""
    plain = FastSCNN(5).eval()
    scaled = FastSCNN(5, input_scale=scale).eval()
    scaled.load_state_dict(plain.state_dict())
    x = torch.randn(1, 3, 70, 90)
    larger = F.interpolate(x, (round(70 * scale), round(90 * scale)), mode="bilinear")
    with torch.no_grad():
        assert scaled(x).shape == (1, 5, 70, 90)
        torch.testing.assert_close(scaled.logits(scaled.resize(x))[0], plain.logits(larger)[0])


@pytest.mark.parametrize(("size", "seen"), [((70, 90), (100, 128)), ((200, 64), (128, 41)), ((40, 128), (40, 128))])
def test_input_side_decides_what_the_network_sees(size: tuple[int, int], seen: tuple[int, int]) -> None:
    """The shorter side taken for the longer; another shape of the picture; training crops that are resized too."""
    plain = FastSCNN(5).eval()
    sided = FastSCNN(5, input_scale=2, input_side=128).eval()
    sided.load_state_dict(plain.state_dict())
    x = torch.randn(2, 3, *size)
    with torch.no_grad():
        assert sided(x).shape == (2, 5, *size)
        torch.testing.assert_close(
            sided.logits(sided.resize(x))[0], plain.logits(F.interpolate(x, seen, mode="bilinear"))[0]
        )
        assert sided.train().resize(x).shape[-2:] == tuple(2 * length for length in size)


def test_one_feature_in_ten_is_dropped_in_training() -> None:
    """A dropout that is built and not called, or has another rate: no shape and no weight tells."""
    classifier, seen = FastSCNN().classifier.train(), {}
    classifier.dsconv2.register_forward_hook(lambda *call: seen.update(before=call[2]))
    classifier.conv.register_forward_pre_hook(lambda _, inputs: seen.update(after=inputs[0]))
    torch.manual_seed(0)
    classifier(torch.randn(2, 128, 16, 16))
    dropped = seen["after"][seen["before"] > 0] == 0
    assert dropped.float().mean() == pytest.approx(0.1, abs=0.01)


def test_every_parameter_gets_a_gradient() -> None:
    """A branch that is built but not used trains nothing and says nothing."""
    model = FastSCNN(4, aux=True).train()
    sum(y.square().mean() for y in model(torch.randn(2, 3, 64, 64))).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_model_file_stands_alone(tmp_path) -> None:
    """An import of another file of ours makes model.py useless to whoever copies it alone."""
    shutil.copy(ROOT / "model.py", tmp_path)
    code = "import model, torch; print(tuple(model.FastSCNN().eval()(torch.zeros(1, 3, 33, 47)).shape))"
    result = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert result.stdout.strip() == "(1, 19, 33, 47)", result.stderr


def test_a_traced_network_takes_other_sizes() -> None:
    """A side that is decided while the network is traced, as those do who deploy by LibTorch; in its own process."""
    code = (
        "import torch; from model import FastSCNN; sided = FastSCNN(5, input_side=128).eval().requires_grad_(False);"
        "traced = torch.jit.trace(sided, torch.randn(1, 3, 33, 50));"
        "pictures = [torch.randn(2, 3, *size) for size in ((70, 90), (200, 64), (40, 128))];"
        "[torch.testing.assert_close(traced(x), sided(x)) for x in pictures]; print('same')"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert result.stdout.strip() == "same", result.stderr


def test_original_names_are_the_published_ones() -> None:
    """A reference whose names are not the original's would prove the converter for files that nobody has."""
    if not NAMES.exists():
        pytest.skip(f"{NAMES.name} is not at hand")
    published = json.loads(NAMES.read_text())["state_dict"]
    ours = {name: list(tensor.shape) for name, tensor in OriginalNetwork().state_dict().items()}
    assert ours == published


def test_converted_weights_compute_the_same() -> None:
    """Weights of the original that load but give other logits: a swapped branch, a lost bias, align_corners."""
    original = original_network()
    state = original.state_dict()
    before = {name: tensor.clone() for name, tensor in state.items()}
    model = FastSCNN(align_corners=True).eval()
    assert recognise(state) is ORIGINAL and recognise(model.state_dict()) is None
    model.load_state_dict(convert(state, ORIGINAL))
    x = torch.randn(2, 3, 96, 160)
    with torch.no_grad():
        torch.testing.assert_close(model(x), original(x), atol=1e-4, rtol=1e-4)
        wrong = FastSCNN(align_corners=False).eval()
        wrong.load_state_dict(convert(state, ORIGINAL))
        assert (wrong(x) - original(x)).abs().max() > 1e-2  # else the comparison above could not fail
    assert all(torch.equal(before[name], tensor) for name, tensor in state.items())


def test_a_file_of_the_original_is_run_as_it_was_trained(tmp_path) -> None:
    """Weights that are converted on loading, in a network that interpolates the other way."""
    original = original_network()
    torch.save(original.state_dict(), tmp_path / "original.pth")
    model, metadata = load_model(tmp_path / "original.pth")
    x = torch.randn(1, 3, 96, 160)
    with torch.no_grad():
        torch.testing.assert_close(model(x), original(x), atol=1e-4, rtol=1e-4)
    assert metadata["align_corners"] is True


def test_only_buffers_that_are_no_weights_are_dropped(tmp_path, capsys) -> None:
    """A filter that drops keys by chance leaves weights unloaded without a word."""
    state = FastSCNN().state_dict()
    torch.save({**state, "classifier.total_ops": torch.zeros(1), "total_params": torch.zeros(1)}, tmp_path / "w.pth")
    model, _ = load_model(tmp_path / "w.pth")
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert "classifier.total_ops" in capsys.readouterr().err
