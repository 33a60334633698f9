"""The network as CUDA graphs. On a CPU the same code runs without being recorded; the last tests need a GPU."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from conftest import ROOT
from makers import graph_engine, normalise
from torch import Tensor

from inference import cuda
from inference.checkpoints import load_model
from inference.cuda import GraphNetwork
from inference.predictor import load_engine
from inference.torch_engine import torch_engine
from model import FastSCNN
from street.scene import draw_scene

WEIGHTS = ROOT / "weights" / "street.pth"
CPU = torch.device("cpu")
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


@pytest.fixture
def model() -> FastSCNN:
    """The shipped network."""
    return load_model(WEIGHTS)[0]


def scenes(count: int, height: int, width: int, first: int = 0) -> Tensor:
    """(N, H, W, 3) drawn street scenes."""
    return torch.stack([torch.from_numpy(draw_scene(first + index, height, width)[0]) for index in range(count)])


def assert_labels_are(found: Tensor, logits: Tensor, rounding: float = 1e-3) -> None:
    """The labels are the classes with the highest logits, but where the two highest are within rounding."""
    assert found.dtype == torch.uint8 and found.shape == (len(logits), *logits.shape[2:])
    best, second = logits.topk(2, 1).values.unbind(1)
    different = found.to(logits.device) != logits.argmax(1)
    assert len(found.unique()) > 2 and not bool((different & (best - second > rounding)).any())


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("size", [(97, 131), (70, 100)])
@pytest.mark.parametrize("scale", [1, 2])
def test_labels_are_those_of_the_model(scale: int, size: tuple[int, int], align_corners: bool, model) -> None:
    """input_scale left out, a pooling matrix of another size, the normalisation or a bias missing."""
    model.input_scale, model.align_corners = scale, align_corners
    for part in (model.feature_fusion, model.global_feature_extractor.pyramid_pooling):
        part.align_corners = align_corners
    graphs = GraphNetwork(model, CPU, "fp32")
    for count in (1, 2):
        images = scenes(count, *size)
        with torch.no_grad():
            expected, coarse = model(normalise(images)), model.logits(model.resize(normalise(images)))[0]
        assert_labels_are(graphs.labels(images), expected)
        torch.testing.assert_close(graphs.logits(images), coarse, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("scale", [1, 2])
def test_labels_are_those_of_the_torch_backend(scale: int, model) -> None:
    """`--backend torch-graph` that predicts something else than `--backend torch`, or has another name."""
    model.input_scale = scale
    images = scenes(2, 97, 131)
    network, reference = graph_engine(model, CPU, "fp32"), torch_engine(model, CPU, "fp32")
    assert network.name == "torch-graph fp32"
    torch.testing.assert_close(network.logits(images), reference.logits(images), atol=1e-4, rtol=1e-4)
    full = torch.nn.functional.interpolate(reference.logits(images), (97, 131), mode="bilinear")
    assert_labels_are(network.labels(images), full, 1e-4)
    assert network.label_head is not None and torch.equal(network.labels(images), network.label_head(images))


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_lower_precision_is_near(precision: str, model) -> None:
    """Class scores, pooling or normalisation in bf16, whose labels tie."""
    images = scenes(1, 97, 131)
    with torch.no_grad():
        expected = model(normalise(images)).argmax(1)
    assert (GraphNetwork(model, CPU, precision).labels(images) == expected).float().mean() > 0.98


def test_results_are_memory_of_their_own(model) -> None:
    """The next call writes over the labels that the viewer still draws, or over the picture that it was given."""
    graphs, images = GraphNetwork(model, CPU, "fp32"), scenes(2, 64, 96).split(1)
    for function in (graphs.labels, graphs.logits):
        first = function(images[0])
        kept = first.clone()
        second = function(images[1])
        assert torch.equal(first, kept) and not torch.equal(first, second)
    assert torch.equal(torch.cat(images), scenes(2, 64, 96))


def test_kept_shapes_are_bounded(model, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder of pictures of many sizes fills the GPU's memory; or a graph that was used last is dropped first."""
    monkeypatch.setattr(cuda, "GRAPHS_KEPT", 2)
    graphs = GraphNetwork(model, CPU, "fp32")
    images = [scenes(1, 64, width) for width in (64, 96, 128)]
    expected = [GraphNetwork(model, CPU, "fp32").labels(image) for image in images]
    for index in (0, 1, 0, 2, 0, 1):
        assert torch.equal(graphs.labels(images[index]), expected[index])
        assert len(graphs.recordings) <= 2
        if index == 2:
            assert [key[3] for key in graphs.recordings] == [64, 128]


def in_threads(graphs: GraphNetwork, images: list[Tensor], expected: list[Tensor]) -> None:
    """Two threads predict different pictures of one shape, again and again; on a GPU each on a stream of its own."""

    def predict(index: int) -> bool:
        if graphs.device.type == "cpu":
            return all(torch.equal(graphs.labels(images[index]), expected[index]) for _ in range(5))
        with torch.cuda.stream(torch.cuda.Stream()):
            return all(torch.equal(graphs.labels(images[index]), expected[index]) for _ in range(100))

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(predict, (0, 1))) == [True, True]


def test_threads_do_not_disturb_each_other(model, monkeypatch: pytest.MonkeyPatch) -> None:
    """One thread copies its picture in before the labels of another are copied out."""
    images = list(scenes(2, 64, 96).split(1))
    expected = [GraphNetwork(model, CPU, "fp32").labels(image) for image in images]
    assert not torch.equal(*expected)
    labels = cuda._Capturable.labels

    def slow(self: cuda._Capturable, images: Tensor) -> Tensor:
        time.sleep(0.02)  # long enough for the other thread, were it not kept out
        return labels(self, images)

    monkeypatch.setattr(cuda._Capturable, "labels", slow)
    in_threads(GraphNetwork(model, CPU, "fp32"), images, expected)


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("scale", [1, 2])
def test_graphs_replay_what_the_network_computes(scale: int, model) -> None:
    """A graph that replays its first picture, reads memory that was given to another, or mixes up two shapes."""
    model.input_scale = scale
    device = torch.device("cuda")
    graphs, reference = GraphNetwork(model, device, "fp32"), torch_engine(model, device, "fp32")
    for turn in range(2):  # in the second every graph is there already
        for size in ((97, 131), (256, 512), (70, 100)):
            images = scenes(2, *size, first=2 * turn)
            with torch.no_grad():
                full = torch.nn.functional.interpolate(reference.logits(images), size, mode="bilinear")
            for place in (images, images.to(device)):
                labels = graphs.labels(place)
                assert labels.is_cuda
                assert_labels_are(labels, full, 0.05)  # TF32, and other algorithms
                torch.testing.assert_close(graphs.logits(place), reference.logits(images), atol=0.05, rtol=0.05)
    assert all(recording.graph is not None for recording in graphs.recordings.values())


@pytest.mark.gpu
@needs_gpu
def test_threads_on_streams_of_their_own_and_dropped_graphs(model, monkeypatch: pytest.MonkeyPatch) -> None:
    """Copies on another stream than the replay's; a graph whose memory went with one that was dropped."""
    monkeypatch.setattr(cuda, "GRAPHS_KEPT", 2)
    device = torch.device("cuda")
    graphs = GraphNetwork(model, device, "fp16")
    images = list(scenes(2, 64, 96).split(1))
    expected = [graphs.labels(image) for image in images]
    for width in (64, 128, 160, 96):
        graphs.labels(scenes(1, 64, width))
    assert len(graphs.recordings) == 2
    again = [graphs.labels(image) for image in images]  # recorded anew, perhaps with other algorithms
    assert all((one == other).float().mean() > 0.99 for one, other in zip(expected, again, strict=True))
    expected = again
    in_threads(graphs, images, expected)
    in_threads(graphs, [image.to(device) for image in images], expected)


@pytest.mark.gpu
@needs_gpu
def test_torch_graph_is_a_backend(model) -> None:
    """A backend that only the benchmark runs."""
    network, _ = load_engine(WEIGHTS, "cuda", "torch-graph", "bf16")
    images = scenes(1, 97, 131)
    with torch.no_grad():
        expected = model(normalise(images)).argmax(1)
    assert network.name == "torch-graph bf16"
    assert (network.labels(images).cpu() == expected).float().mean() > 0.98
