"""Engines that run the network up to its logits at 1/8: PyTorch, ONNX Runtime and OpenVINO.

Each function returns a `Network`: (N, H, W, 3) uint8 RGB pictures in, (N, K, h, w) float32 logits out. The packages of
the other engines are imported where they are used: PyTorch alone is enough for PyTorch.
"""

from __future__ import annotations

import functools
import importlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from dataset import CLASSES
from inference.folding import DTYPES, fold, split_into_strips
from inference.label_head import labels_from_logits
from model import MEAN, STD, FastSCNN, normalise
from utils import UserError, cpu_has_bf16

PRECISIONS = {
    "torch": ("fp32", "bf16", "fp16"),
    "torch-compile": ("fp32", "bf16", "fp16"),
    "onnx": ("fp32", "int8"),
    "openvino": ("fp32", "bf16", "fp16", "int8"),
}
METADATA = "fast_scnn"  # the key in exported files
SIZES_KEPT = 8  # compiled networks, each for one picture size


class Network(NamedTuple):
    """The network on some engine."""

    run: Callable[[Tensor], Tensor]  # (N, H, W, 3) uint8 to (N, K, h, w) float32
    align_corners: bool  # how its logits are to be enlarged
    name: str  # backend and precision

    def labels(self, images: Tensor) -> Tensor:
        """Returns the (N, H, W) uint8 train ids of (N, H, W, 3) uint8 pictures."""
        return labels_from_logits(self.run(images), images.shape[1:3], self.align_corners)


def check_precision(backend: str, precision: str) -> None:
    """Refuses what a backend cannot do.

    Raises:
        UserError: names the choices.
    """
    if backend not in PRECISIONS:
        raise UserError(f"unknown backend {backend}; expected one of {', '.join(PRECISIONS)}")
    if precision not in PRECISIONS[backend]:
        raise UserError(
            f"backend {backend} has no precision {precision}; expected one of {', '.join(PRECISIONS[backend])}"
        )


def require(name: str, backend: str) -> object:
    """Imports the package of a backend.

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
    """The network as it is deployed: uint8 pictures in, normalisation inside, logits at 1/8 out.

    Args:
        model: the network; it is copied.
        precision: of the layers, but for the class scores; see folding.fold.
    """

    def __init__(self, model: FastSCNN, precision: str = "fp32"):
        super().__init__()
        self.dtype, self.model = DTYPES[precision], fold(model, precision)

    def forward(self, images: Tensor) -> Tensor:
        return self.model.logits(normalise(images).to(self.dtype))[0]


def torch_network(model: FastSCNN, device: torch.device, precision: str, compiled: bool) -> Network:
    """Runs on PyTorch, in channels_last.

    Args:
        model: the network.
        device: where.
        precision: fp32, bf16 or fp16.
        compiled: by torch.compile; the first picture of each size then takes up to minutes.
    """
    backend = "torch-compile" if compiled else "torch"
    check_precision(backend, precision)
    pictures = Uint8Network(model, precision).to(device, memory_format=torch.channels_last)
    if device.type == "cpu" and not compiled:  # the compiler fuses layers itself
        split_into_strips(pictures.model)
    forward = torch.compile(pictures, dynamic=False) if compiled else pictures

    @torch.inference_mode()
    def run(images: Tensor) -> Tensor:
        return forward(images.to(device, non_blocking=True)).contiguous()

    return Network(run, model.align_corners, f"{backend} {precision}")


def export_metadata(model: FastSCNN, source: str, precision: str, size: tuple[int, int] | None) -> dict:
    """Returns the metadata of an exported file, in plain values.

    Args:
        model: the network.
        source: SHA-256 of the checkpoint.
        precision: of the file.
        size: (height, width) that it is made for, or None for any.
    """
    return {
        "network": "Fast-SCNN",
        "input": "uint8 RGB, (N, height, width, 3)",
        "output": "float32 logits at 1/8; enlarge them bilinearly to the picture, take the highest",
        "classes": [label.name for label in CLASSES],
        "palette": [list(label.color) for label in CLASSES],
        "mean": list(MEAN),
        "std": list(STD),
        "align_corners": model.align_corners,
        "input_scale": model.input_scale,
        "precision": precision,
        "size": list(size) if size else None,
        "source_sha256": source,
    }


def read_metadata(path: str | Path, text: str | None) -> dict:
    """Checks the metadata of an exported file.

    Raises:
        UserError: it has none, or is for other classes.
    """
    try:
        metadata = json.loads(text or "")
        classes, *_ = (metadata[name] for name in ("classes", "align_corners", "precision", "size"))
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{path} was not exported by deploy.py: it has no metadata of Fast-SCNN; export it") from None
    if classes != [label.name for label in CLASSES]:
        count = f"{len(classes)} other" if isinstance(classes, list) else "other"
        raise UserError(f"{path} is for {count} classes, expected the {len(CLASSES)} of Cityscapes")
    return metadata


def _checked(path: str | Path, metadata: dict, run: Callable[[Tensor], Tensor], name: str) -> tuple[Network, dict]:
    """Wraps an exported network so that a picture of another size than it was made for is refused."""

    def checked(images: Tensor) -> Tensor:
        size = list(images.shape[1:3])
        if metadata["size"] not in (None, size):
            made = "x".join(map(str, metadata["size"]))
            raise UserError(
                f"{path} was exported for {made}, the picture is {size[0]}x{size[1]} (height x width): "
                "export it with --dynamic, or for this size"
            )
        return run(images)

    return Network(checked, metadata["align_corners"], name), metadata


def onnx_network(path: str | Path) -> tuple[Network, dict]:
    """Runs an exported ONNX file on ONNX Runtime, on the CPU; returns the network and the file's metadata.

    Raises:
        UserError: the package is missing, or the file is damaged or foreign.
    """
    runtime = require("onnxruntime", "onnx")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    try:
        session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its exceptions share no base class
        raise UserError(f"{path} is damaged or no ONNX file ({_first_line(error)}); export it again") from None
    metadata = read_metadata(path, session.get_modelmeta().custom_metadata_map.get(METADATA))
    name = session.get_inputs()[0].name

    def run(images: Tensor) -> Tensor:
        return torch.from_numpy(session.run(None, {name: images.numpy()})[0])

    return _checked(path, metadata, run, f"onnx {metadata['precision']}")


def openvino_network(path: str | Path, precision: str | None = None) -> tuple[Network, dict]:
    """Runs an exported OpenVINO pair, or an exported ONNX file, on OpenVINO, on the CPU.

    Every picture size is compiled for itself, which takes a second when it first comes.

    Args:
        path: of the .xml or the .onnx.
        precision: None takes the file's.

    Raises:
        UserError: the package is missing, or the file is damaged or foreign.
    """
    openvino = require("openvino", "openvino")
    core = openvino.Core()
    weights = Path(path).with_suffix(".bin")
    if Path(path).suffix == ".xml" and not weights.is_file():
        raise UserError(f"{path} has no {weights.name} beside it, which holds its weights; copy both files")
    try:
        graph = core.read_model(str(path))
    except RuntimeError as error:
        raise UserError(f"{path} is damaged or no OpenVINO file ({_first_line(error)}); export it again") from None
    if Path(path).suffix == ".onnx":
        onnx = require("onnx", "openvino")
        text = {entry.key: entry.value for entry in onnx.load(str(path)).metadata_props}.get(METADATA)
    else:
        text = graph.get_rt_info(METADATA).astype(str) if graph.has_rt_info(METADATA) else None
    metadata = read_metadata(path, text)
    precision = precision or metadata["precision"]
    check_precision("openvino", precision)
    if (precision == "int8") != (metadata["precision"] == "int8"):
        raise UserError(f"{path} is of {metadata['precision']}, asked for {precision}: export it with that precision")
    rest = "bf16" if cpu_has_bf16() else "f32"  # of the layers that int8 leaves as they are
    settings = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "INFERENCE_PRECISION_HINT": {"bf16": "bf16", "fp16": "f16", "int8": rest}.get(precision, "f32"),
    }

    @functools.lru_cache(SIZES_KEPT)
    def request(shape: tuple[int, ...]) -> object:
        sized = graph.clone()
        sized.reshape(list(shape))
        return core.compile_model(sized, "CPU", settings).create_infer_request()

    def run(images: Tensor) -> Tensor:
        # The output is the request's own memory: the next picture would overwrite it.
        result = request(tuple(images.shape)).infer([images.numpy()], share_inputs=True, share_outputs=True)
        return torch.from_numpy(result[0].copy())

    return _checked(path, metadata, run, f"openvino {precision}")


def _first_line(error: Exception) -> str:
    """Returns what an error of an engine says, without the places in its source that OpenVINO names first."""
    lines = [line for line in str(error).strip().splitlines() if not line.startswith(("Exception from", "Check '"))]
    return (lines or [type(error).__name__])[0][:160]
