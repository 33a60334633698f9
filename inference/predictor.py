"""From a weight file to labels, on any engine."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from inference.backends import PRECISIONS, Network, check_precision, export_metadata, require, torch_network
from inference.checkpoints import load_model
from inference.export import FORMATS, open_exported, write_onnx
from model import MIN_SIZE
from utils import UserError, choose_device, keep_freed_memory


def check_size(size: Sequence[int], name: object = "the picture") -> None:
    """Refuses a picture, given as (height, width), that is smaller than the network can take.

    Raises:
        UserError: names it.
    """
    if min(size) < MIN_SIZE:
        raise UserError(
            f"{name} is {size[0]}x{size[1]} (height x width), expected at least {MIN_SIZE}x{MIN_SIZE}: enlarge it"
        )


class Predictor:
    """Turns pictures into train ids: (H, W, 3) RGB uint8 in, (H, W) uint8 out.

    Any memory layout is taken. Another number of channels, another type and a size under 32x32 are refused, not
    converted: only who made the picture knows what its values mean. sources.read_picture converts files.

    Args:
        network: on whatever engine.
    """

    def __init__(self, network: Network):
        self.network = network

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """Returns the labels of one picture.

        Raises:
            UserError: it is no picture, or smaller than the network can take.
        """
        if not isinstance(image, np.ndarray):
            raise UserError(f"the picture is a {type(image).__name__}, expected a uint8 array (cv2.imread gives None)")
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
            raise UserError(
                f"the picture is a {image.dtype} array of shape {image.shape}, expected uint8 RGB, (height, width, 3)"
            )
        check_size(image.shape[:2])
        image = np.require(image, requirements="CW")  # torch warns of memory that it could not write to
        return self.network.labels(torch.from_numpy(image)[None])[0].cpu().numpy()


def load_network(
    path: str | Path, device: str = "auto", backend: str | None = None, precision: str | None = None
) -> tuple[Network, dict]:
    """Opens a checkpoint or an exported file on an engine.

    The process keeps freed memory from then on; see utils.keep_freed_memory.

    Args:
        path: a checkpoint, or what deploy.py exported.
        device: for PyTorch; the other engines run on the CPU.
        backend: a key of PRECISIONS; None: PyTorch for a checkpoint, otherwise what the file's ending says.
        precision: None: that of the file, fp32 for a checkpoint.

    Returns:
        The network, and the metadata of the file.

    Raises:
        UserError: as load_model; the file, the backend, the precision and the device do not go together.
    """
    if backend:
        check_precision(backend, precision or "fp32")
    keep_freed_memory()
    exported = Path(path).suffix in FORMATS.values()
    if (exported or backend in FORMATS) and device not in ("auto", "cpu"):
        raise UserError(f"--device {device} was given, but {backend or Path(path).suffix} runs on the CPU: use auto")
    if exported:
        if not Path(path).is_file():
            raise UserError(f"no file at {path}; export one with deploy.py")
        return open_exported(path, backend, precision)
    model, metadata = load_model(path)
    if backend not in FORMATS:
        compiled = backend == "torch-compile"
        return torch_network(model, choose_device(device), precision or "fp32", compiled), metadata
    if precision == "int8":
        raise UserError(
            f"int8 has to be calibrated: python deploy.py --model_weight {path} --precision int8 --pictures F"
        )
    require({"onnx": "onnxruntime"}.get(backend, backend), backend)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "network.onnx"
        write_onnx(model, export_metadata(model, "", "fp32", None), file)
        return open_exported(file, backend, precision)[0], metadata


def load_predictor(
    path: str | Path, device: str = "auto", backend: str | None = None, precision: str | None = None
) -> Predictor:
    """Opens a checkpoint or an exported file; see load_network."""
    return Predictor(load_network(path, device, backend, precision)[0])


def add_backend_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags that choose an engine, for every script that predicts."""
    parser.add_argument("--backend", help=f"{', '.join(PRECISIONS)}; by the ending of the weights if not given")
    parser.add_argument("--precision", help="fp32, bf16, fp16 or int8; that of the weights if not given")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps")
