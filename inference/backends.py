"""Inference engines: PyTorch, CUDA graphs, ONNX Runtime and OpenVINO, each opened as a `Network`.

A `Network` takes (N, H, W, 3) uint8 RGB images and returns labels, or (N, K, h, w) float32 logits at 1/8 of what it
sees. ONNX Runtime and OpenVINO are imported where they are used, so that PyTorch works without them.
"""

from __future__ import annotations

import functools
import importlib
import json
import os
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from frames.classes import CITYSCAPES, Classes
from inference.cuda import GraphNetwork
from inference.folding import DTYPES, fold, prepare_for_cpu
from inference.formats import METADATA, foreign_file
from inference.label_head import labels_from_logits
from inference.matching import match_classes
from model import MEAN, STD, FastSCNN
from utils import UserError, check_finite, cpu_has_bf16

FORMATS = {"onnx": ".onnx", "openvino": ".xml"}  # each is named as the backend that reads it


PRECISIONS = {
    "torch": ("fp32", "bf16", "fp16"),
    "torch-compile": ("fp32", "bf16", "fp16"),
    "torch-graph": ("fp32", "bf16", "fp16"),
    "onnx": ("fp32", "int8"),
    "openvino": ("fp32", "bf16", "fp16", "int8"),
}
SIZES_KEPT = 8  # networks that OpenVINO has compiled, each for one image size


class Network(NamedTuple):
    """The network on an engine."""

    run: Callable[[Tensor], Tensor]  # (N, H, W, 3) uint8 images to (N, K, h, w) float32 logits
    align_corners: bool  # how the logits have to be upsampled
    name: str  # backend and precision
    whole: Callable[[Tensor], Tensor] | None = None  # images to labels, where the engine has a label head of its own
    classes: Classes = CITYSCAPES

    def labels(self, images: Tensor) -> Tensor:
        """Returns the (N, H, W) uint8 train ids of (N, H, W, 3) uint8 images."""
        if self.whole is not None:
            return self.whole(images)
        return labels_from_logits(self.run(images), images.shape[1:3], self.align_corners)

    def for_classes(self, path: str | Path, classes: Classes) -> Network:
        """Returns the network with its scores in the order of these classes.

        Raises:
            UserError: they are not those of the file at this path.
        """
        order = match_classes(path, self.classes, classes)
        if order is None:
            return self._replace(classes=classes)
        return self._replace(run=lambda images: self.run(images)[:, order].contiguous(), whole=None, classes=classes)


def check_precision(backend: str, precision: str) -> None:
    """Refuses an unknown backend, and a precision that the backend does not have.

    Raises:
        UserError: names the choices.
    """
    if backend not in PRECISIONS:
        raise UserError(f"unknown backend {backend}; expected one of {', '.join(PRECISIONS)}")
    if precision not in PRECISIONS[backend]:
        raise UserError(
            f"backend {backend} has no precision {precision}; expected one of {', '.join(PRECISIONS[backend])}"
        )


def require(name: str, backend: str) -> Any:
    """Imports and returns a package that a backend needs.

    Raises:
        UserError: it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError:
        raise UserError(
            f"backend {backend} needs the package {name.split('.')[0]}: pip install -r requirements-deploy.txt"
        ) from None


class Uint8Network(nn.Module):
    """The network as it is deployed, with normalisation inside: uint8 images in, logits at 1/8 out.

    Args:
        model: it is copied.
        precision: of all layers but the class scores; see folding.fold.
    """

    def __init__(self, model: FastSCNN, precision: str = "fp32"):
        super().__init__()
        self.dtype = DTYPES[precision]
        self.model = fold(model, precision)

    def forward(self, images: Tensor) -> Tensor:
        return self.model.logits_as_seen(self.model.prepared(images).to(self.dtype))[0]


def torch_network(
    model: FastSCNN, device: torch.device, precision: str, compiled: bool, classes: Classes = CITYSCAPES
) -> Network:
    """Runs the network on PyTorch, in channels_last.

    Args:
        model: it is copied.
        device: any that PyTorch has.
        precision: fp32, bf16 or fp16.
        compiled: use torch.compile; the first image of each size then takes up to minutes.
        classes: of the model.
    """
    network = Uint8Network(model, precision).to(device, memory_format=torch.channels_last)
    on_cpu = device.type == "cpu"
    picture = prepare_for_cpu(network.model, not compiled).picture if on_cpu else nullcontext
    # Without the option, the number of threads would be a part of what is compiled.
    options = {"cpp.dynamic_threads": True} if on_cpu else None
    forward = torch.compile(network, dynamic=False, options=options) if compiled else network

    @torch.inference_mode()
    def run(images: Tensor) -> Tensor:
        with picture(images.shape):
            return forward(images.to(device, non_blocking=True)).contiguous()

    name = f"{'torch-compile' if compiled else 'torch'} {precision}"
    return Network(run, model.align_corners, name, classes=classes)


def graph_network(model: FastSCNN, device: torch.device, precision: str, classes: Classes = CITYSCAPES) -> Network:
    """Runs the network and its label head as CUDA graphs; see cuda.GraphNetwork."""
    graphs = GraphNetwork(model, device, precision)
    return Network(graphs.logits, model.align_corners, f"torch-graph {precision}", graphs.labels, classes)


def export_metadata(
    model: FastSCNN,
    source: str,
    precision: str,
    size: tuple[int, int] | None,
    classes: Classes = CITYSCAPES,
) -> dict:
    """Returns the metadata of an exported file, in plain values.

    Args:
        model: gives align_corners, input_scale and input_side.
        source: SHA-256 of the checkpoint.
        precision: of the file.
        size: (height, width) of the images that the file takes, or None for any.
        classes: of the model.
    """
    described = classes.as_dict()
    return {
        "network": "Fast-SCNN",
        "input": "uint8 RGB, (N, height, width, 3)",
        "output": "float32 logits of a coarser grid; resize them bilinearly to the picture, take the highest",
        "classes": described["names"],
        "palette": described["colors"],
        "categories": described["categories"],
        "named": described["named"],
        "mean": list(MEAN),
        "std": list(STD),
        "align_corners": model.align_corners,
        "input_scale": model.input_scale,
        "input_side": model.input_side,
        "precision": precision,
        "size": list(size) if size else None,
        "source_sha256": source,
    }


def read_metadata(path: str | Path, text: str | None) -> dict:
    """Returns the checked metadata of an exported file from their JSON text.

    Raises:
        UserError: there are none.
    """
    try:
        metadata = json.loads(text or "")
        exported_classes(metadata)
        _ = [metadata[name] for name in ("align_corners", "precision", "size")]
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{path} was not exported by deploy.py: it has no metadata of Fast-SCNN; export it") from None
    return metadata


def exported_classes(metadata: dict) -> Classes:
    """Returns the classes of an exported file."""
    return Classes.from_dict({**metadata, "names": metadata["classes"], "colors": metadata["palette"]})


def _with_size_check(path: str | Path, metadata: dict, run: Callable[[Tensor], Tensor], name: str) -> Network:
    """Returns an exported network that refuses images of another size than the file was exported for."""

    def run_checked(images: Tensor) -> Tensor:
        size = list(images.shape[1:3])
        if metadata["size"] not in (None, size):
            made = "x".join(map(str, metadata["size"]))
            raise UserError(
                f"{path} was exported for {made}, the picture is {size[0]}x{size[1]} (height x width): "
                "export it with --dynamic, or for this size"
            )
        return run(images)

    return Network(run_checked, metadata["align_corners"], name, classes=exported_classes(metadata))


def onnx_network(path: str | Path, precision: str | None = None) -> tuple[Network, dict]:
    """Opens an exported ONNX file on ONNX Runtime, on the CPU.

    Args:
        path: ends with .onnx.
        precision: what the file has to have; None takes any.

    Returns:
        The network, and the metadata of the file.

    Raises:
        UserError: the package is missing, the file is damaged or foreign, or it has another precision.
    """
    runtime = require("onnxruntime", "onnx")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    # Threads that wait busily keep the label head, and other processes, off their cores.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    content = _content(path)
    try:
        session = runtime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its exceptions share no base class
        raise _unreadable([path], "an ONNX file", error) from None
    metadata = _onnx_metadata(path, content)
    if precision not in (None, metadata["precision"]):
        raise UserError(f"{path} is {metadata['precision']}, asked for {precision}: export it with that precision")
    name = session.get_inputs()[0].name

    def run(images: Tensor) -> Tensor:
        return torch.from_numpy(session.run(None, {name: images.numpy()})[0])

    return _with_size_check(path, metadata, run, f"onnx {metadata['precision']}"), metadata


def openvino_network(path: str | Path, precision: str | None = None) -> tuple[Network, dict]:
    """Opens an exported OpenVINO pair, or an exported ONNX file, on OpenVINO, on the CPU.

    OpenVINO compiles the network for each image size, which takes a second when that size first comes.

    Args:
        path: of the .xml or the .onnx.
        precision: None takes the file's.

    Returns:
        The network, and the metadata of the file.

    Raises:
        UserError: the package is missing, the file is damaged or foreign, or it cannot run in this precision.
    """
    openvino = require("openvino", "openvino")
    core = openvino.Core()
    exported = Path(path).suffix.lower() == ".xml"
    parts = [Path(path), _weights_beside(Path(path))] if exported else [path]
    contents = [_content(part) for part in parts]
    try:
        graph = core.read_model(*contents)
    except RuntimeError as error:
        raise _unreadable(parts, "an OpenVINO file" if exported else "an ONNX file", error) from None
    metadata = _openvino_metadata(path, graph) if exported else _onnx_metadata(path, contents[0])
    precision = precision or metadata["precision"]
    if (precision == "int8") != (metadata["precision"] == "int8"):
        raise UserError(f"{path} is of {metadata['precision']}, asked for {precision}: export it with that precision")
    rest = "bf16" if cpu_has_bf16() else "f32"  # of the layers that int8 leaves in floating point
    settings = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "ENABLE_CPU_PINNING": False,  # a pinned thread waits for its core while another is free
        "INFERENCE_PRECISION_HINT": {"bf16": "bf16", "fp16": "f16", "int8": rest}.get(precision, "f32"),
    }

    @functools.lru_cache(SIZES_KEPT)
    def request(shape: tuple[int, ...]) -> object:
        sized = graph.clone()
        sized.reshape(list(shape))
        return core.compile_model(sized, "CPU", settings).create_infer_request()

    def run(images: Tensor) -> Tensor:
        # The output is the request's own memory: the next image would overwrite it.
        result = request(tuple(images.shape)).infer([images.numpy()], share_inputs=True, share_outputs=True)
        return torch.from_numpy(result[0].copy())

    return _with_size_check(path, metadata, run, f"openvino {precision}"), metadata


def _content(path: str | Path) -> bytes:
    """Returns the content of a file: engines get no names, which they would read as their own code sees fit."""
    try:
        return Path(path).read_bytes()
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}); check the file and its permissions") from None


def _weights_beside(path: Path) -> Path:
    """Returns the file of the weights of an OpenVINO pair, whose ending may be in capitals as well."""
    weights = [path.with_suffix(".bin"), path.with_suffix(".BIN")]
    found = [file for file in weights if os.path.isfile(file)]
    if not found:
        raise foreign_file(path, "an OpenVINO file") or UserError(
            f"{path} has no {weights[0].name} beside it, which holds its weights; copy both files"
        )
    return found[0]


def _onnx_metadata(path: str | Path, content: bytes) -> dict:
    """Returns the checked metadata of an ONNX file, whose weights are checked too."""
    onnx = require("onnx", "onnx")
    proto = onnx.load_from_string(content)
    metadata = read_metadata(path, {entry.key: entry.value for entry in proto.metadata_props}.get(METADATA))
    for constant in proto.graph.initializer:
        check_finite(path, torch.tensor(onnx.numpy_helper.to_array(constant)), constant.name)
    return metadata


def _openvino_metadata(path: str | Path, graph: Any) -> dict:
    """Returns the checked metadata of an OpenVINO file, whose weights are checked too."""
    metadata = read_metadata(path, graph.get_rt_info(METADATA).astype(str) if graph.has_rt_info(METADATA) else None)
    for node in graph.get_ordered_ops():  # an engine may compute 0 from what is not a number
        if node.get_type_name() == "Constant" and node.get_element_type().is_real():
            check_finite(path, torch.tensor(node.get_data()), node.get_friendly_name())
    return metadata


def _unreadable(paths: Sequence[str | Path], expected: str, error: Exception) -> UserError:
    """Returns the error for a file, or a pair, that an engine refused."""
    known = [foreign for path in paths if (foreign := foreign_file(path, expected))]
    name, reason = expected.split(" ", 1)[1], _first_line(error)
    return known[0] if known else UserError(f"{paths[0]} is damaged or no {name} ({reason}); export it again")


def _first_line(error: Exception) -> str:
    """Returns the message of an engine's error in one line, without the source locations that OpenVINO puts first."""
    lines = [line for line in str(error).strip().splitlines() if not line.startswith(("Exception from", "Check '"))]
    return (lines or [type(error).__name__])[0][:160]


def open_exported(path: str | Path, backend: str | None = None, precision: str | None = None) -> tuple[Network, dict]:
    """Opens an exported file on a backend that reads it; None: the one that its ending names.

    Returns:
        The network, and the metadata of the file.

    Raises:
        UserError: as onnx_network and openvino_network.
    """
    if (backend or backend_of(path)) == "openvino":
        return openvino_network(path, precision)
    return onnx_network(path, precision)


def backend_of(path: str | Path) -> str | None:
    """Returns the backend that the ending of an exported file names, or None for any other file."""
    return next((name for name, ending in FORMATS.items() if ending == Path(path).suffix.lower()), None)
