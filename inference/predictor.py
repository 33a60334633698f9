"""From a weight file to labels on any engine: load_predictor, and load_engine underneath it."""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from frames.classes import Classes
from inference.checkpoints import load_model
from inference.cuda import GraphNetwork
from inference.engine import FORMATS, PRECISIONS, Engine, backend_of, check_precision, export_metadata, require
from inference.export import write_onnx
from inference.onnx_engine import onnx_engine
from inference.openvino_engine import openvino_engine
from inference.torch_engine import torch_engine
from model import INPUT_SIDES, MIN_SIZE, FastSCNN
from utils import UserError, choose_device, keep_freed_memory


def check_size(size: Sequence[int], name: object = "the picture") -> None:
    """Refuses a (height, width) that is smaller than the network can take.

    Raises:
        UserError: begins with `name`.
    """
    if min(size) < MIN_SIZE:
        raise UserError(
            f"{name} is {size[0]}x{size[1]} (height x width), expected at least {MIN_SIZE}x{MIN_SIZE}: enlarge it"
        )


def check_side(input_side: int | None) -> None:
    """Refuses an --input_side out of its range.

    Raises:
        UserError: names the range.
    """
    low, high = INPUT_SIDES
    if input_side is not None and not (type(input_side) is int and low <= input_side <= high):
        raise UserError(f"--input_side is {input_side!r}, expected {low} to {high}")


class Predictor:
    """Predicts train ids: (H, W, 3) uint8 RGB pictures in, (H, W) uint8 out.

    Any memory layout is taken. Another number of channels, another type and a size below 32x32 are refused, not
    converted: only the caller knows what the values mean. viewing.sources.read_picture converts files.

    Args:
        engine: from load_engine.
    """

    def __init__(self, engine: Engine):
        self.engine = engine

    @property
    def classes(self) -> Classes:
        """What the train ids mean."""
        return self.engine.classes

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """Returns the labels of one picture.

        Raises:
            UserError: the picture has another shape or type, or is too small.
        """
        if not isinstance(image, np.ndarray):
            raise UserError(f"the picture is a {type(image).__name__}, expected a uint8 array (cv2.imread gives None)")
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
            raise UserError(
                f"the picture is a {image.dtype} array of shape {image.shape}, expected uint8 RGB, (height, width, 3)"
            )
        check_size(image.shape[:2])
        image = np.require(image, requirements="CW")  # torch warns of memory that is not writable
        return self.engine.labels(torch.from_numpy(image)[None])[0].cpu().numpy()


def load_predictor(
    path: str | Path,
    device: str = "auto",
    backend: str | None = None,
    precision: str | None = None,
    input_side: int | None = None,
) -> Predictor:
    """Opens a checkpoint or an exported file; see load_engine."""
    return Predictor(load_engine(path, device, backend, precision, None, input_side)[0])


def load_engine(
    path: str | Path,
    device: str = "auto",
    backend: str | None = None,
    precision: str | None = None,
    classes: Classes | None = None,
    input_side: int | None = None,
) -> tuple[Engine, dict]:
    """Loads a weight file, then opens it on an engine.

    From then on the process keeps freed memory; see utils.keep_freed_memory.

    Args:
        path: a checkpoint, or a file that deploy.py exported.
        device: for PyTorch; the other engines run on the CPU.
        backend: a key of PRECISIONS; None: torch for a checkpoint, what the ending names for an exported file.
        precision: None: the precision of an exported file, fp32 for a checkpoint.
        classes: what the labels shall mean; None: the classes of the file.
        input_side: longer side, in pixels, at which the network sees a picture; 0: its own; None: as the file says.

    Returns:
        The engine, and the metadata of the file.

    Raises:
        UserError: as load_model; or the file, the backend, the precision, the device, the classes and the side do not
            go together.
    """
    backend, precision, place = choose_engine(path, device, backend, precision, input_side)
    keep_freed_memory()
    if backend_of(path):
        engine, metadata = _open_exported(path, backend, precision)
    else:
        model, metadata = load_model(path, input_side)
        engine = _open_model(model, metadata["classes"], backend, precision, place)
    if side := metadata.get("input_side"):  # files of earlier versions have none
        engine = engine._replace(name=f"{engine.name}, input_side {side}")
    return engine if classes is None else engine.for_classes(path, classes), metadata


def choose_engine(
    path: str | Path, device: str, backend: str | None, precision: str | None, input_side: int | None = None
) -> tuple[str, str | None, torch.device]:
    """Checks that a weight file, a device, a backend, a precision and a side go together, before anything is loaded.

    Returns:
        The backend, the precision and the device that the arguments stand for; the precision is None for an exported
        file that decides it.

    Raises:
        UserError: see load_engine.
    """
    exported = backend_of(path)
    backend = backend or exported or "torch"
    check_precision(backend, precision or "fp32")
    if exported and backend != exported and (exported, backend) != ("onnx", "openvino"):  # OpenVINO reads both formats
        raise UserError(
            f"--backend is {backend}, which {path} cannot run on: give the checkpoint, or leave --backend out"
        )
    if exported and not os.path.isfile(path):
        raise UserError(f"no file at {path}: export one with deploy.py")
    check_side(input_side)
    if exported and input_side is not None:
        raise UserError(f"--input_side is {input_side}, but {path} was exported with its own: give it to deploy.py")
    if backend in FORMATS:
        if device not in ("auto", "cpu"):
            raise UserError(f"--device is {device}, expected auto or cpu for --backend {backend}")
        if precision == "int8" and not exported:
            raise UserError(
                f"int8 has to be calibrated: python deploy.py --model_weight {path} --precision int8 --pictures F"
            )
        require({"onnx": "onnxruntime"}.get(backend, backend), backend)
        return backend, precision, torch.device("cpu")
    place = choose_device(device)
    if backend == "torch-graph" and place.type != "cuda":
        raise UserError(f"--backend torch-graph needs a CUDA device, found {place.type}: use torch")
    return backend, precision or "fp32", place


def _open_exported(path: str | Path, backend: str, precision: str | None) -> tuple[Engine, dict]:
    return (openvino_engine if backend == "openvino" else onnx_engine)(path, precision)


def _open_model(model: FastSCNN, classes: Classes, backend: str, precision: str | None, device: torch.device) -> Engine:
    """Opens a network in memory; the engines that read files get it as an ONNX file."""
    if backend in FORMATS:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "network.onnx"
            write_onnx(model, export_metadata(model, "", "fp32", None, classes), file)
            return _open_exported(file, backend, precision)[0]
    if backend == "torch-graph":
        graphs = GraphNetwork(model, device, precision)
        return Engine(graphs.logits, model.align_corners, f"torch-graph {precision}", graphs.labels, classes)
    return torch_engine(model, device, precision, classes)


def add_backend_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags that choose an engine, for every script that predicts."""
    parser.add_argument("--backend", help=f"{', '.join(PRECISIONS)}; by the ending of the weights if not given")
    parser.add_argument("--precision", help="fp32, bf16, fp16 or int8; default: as the weights have it")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps")
    add_side_flag(parser)


def add_side_flag(parser: argparse.ArgumentParser) -> None:
    """Adds the flag that says how large the network of a checkpoint sees pictures."""
    parser.add_argument(
        "--input_side",
        type=int,
        metavar="N",
        help="resize pictures to this longer side for the network; 0: never; default: as the weights say",
    )
