"""What every inference engine has in common: labels and logits of pictures, and what an exported file says of itself.

Each engine has a file of its own: torch_engine.py, cuda.py, onnx_engine.py and openvino_engine.py.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from frames.classes import CITYSCAPES, Classes
from inference.checkpoints import match_classes
from inference.label_head import labels_from_logits
from model import MEAN, STD, FastSCNN
from utils import UserError

PRECISIONS = {
    "torch": ("fp32", "bf16", "fp16"),
    "torch-graph": ("fp32", "bf16", "fp16"),
    "onnx": ("fp32", "int8"),
    "openvino": ("fp32", "bf16", "fp16", "int8"),
}
FORMATS = {"onnx": ".onnx", "openvino": ".xml"}  # exported files, named as the backend that reads them


class Engine(NamedTuple):
    """The network, ready to run.

    Attributes:
        logits: (N, H, W, 3) uint8 RGB pictures to (N, K, h, w) float32 logits at 1/8 of what the network sees.
        align_corners: how the logits have to be upsampled.
        name: backend and precision.
        label_head: pictures to (N, H, W) uint8 labels, where the engine has a label head of its own.
        classes: what the labels mean.
    """

    logits: Callable[[Tensor], Tensor]
    align_corners: bool
    name: str
    label_head: Callable[[Tensor], Tensor] | None = None
    classes: Classes = CITYSCAPES

    def labels(self, images: Tensor) -> Tensor:
        """Returns the (N, H, W) uint8 train ids of (N, H, W, 3) uint8 RGB pictures."""
        if self.label_head is not None:
            return self.label_head(images)
        return labels_from_logits(self.logits(images), images.shape[1:3], self.align_corners)

    def for_classes(self, path: str | Path, classes: Classes) -> Engine:
        """Returns the engine with its scores in the order of these classes.

        Raises:
            UserError: the file at this path is for other classes.
        """
        order = match_classes(path, self.classes, classes)
        if order is None:
            return self._replace(classes=classes)

        def reordered(images: Tensor) -> Tensor:
            return self.logits(images)[:, order].contiguous()

        return self._replace(logits=reordered, label_head=None, classes=classes)


def check_precision(backend: str, precision: str) -> None:
    """Refuses an unknown backend, and a precision that the backend does not have.

    Raises:
        UserError: names the choices.
    """
    if backend not in PRECISIONS:
        choices = ", ".join(PRECISIONS)
        instead = "; use openvino on a CPU, torch-graph on a GPU" if backend == "torch-compile" else ""
        raise UserError(f"--backend is {backend}, expected one of {choices}{instead}")
    if precision not in PRECISIONS[backend]:
        raise UserError(f"--precision is {precision}, expected one of {', '.join(PRECISIONS[backend])} for {backend}")


def backend_of(path: str | Path) -> str | None:
    """Returns the backend that the ending of an exported file names, or None for any other file."""
    return next((name for name, ending in FORMATS.items() if ending == Path(path).suffix.lower()), None)


def require(name: str, backend: str) -> Any:
    """Imports and returns a package that a backend needs.

    Raises:
        UserError: it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError:
        package = name.split(".")[0]
        raise UserError(
            f"{backend} needs the package {package}, which is not installed: pip install -r requirements-deploy.txt"
        ) from None


def export_metadata(
    model: FastSCNN, source: str, precision: str, size: tuple[int, int] | None, classes: Classes = CITYSCAPES
) -> dict:
    """Returns the metadata of an exported file, in plain values.

    Args:
        model: the network in the file.
        source: SHA-256 of the checkpoint.
        precision: of the file.
        size: (height, width) of the pictures that the file takes, or None for any.
        classes: of the model.
    """
    described = classes.as_dict()
    options = model.options()
    del options["variant"]  # is in the graph
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
        **options,
        "precision": precision,
        "size": list(size) if size else None,
        "source_sha256": source,
    }


def read_metadata(path: str | Path, text: str | None) -> dict:
    """Returns the metadata of an exported file from their JSON text, with the classes as `classes`.

    Raises:
        UserError: there are none.
    """
    try:
        metadata = json.loads(text or "")
        metadata["classes"] = Classes.from_dict(
            {**metadata, "names": metadata["classes"], "colors": metadata["palette"]}
        )
        _ = [metadata[name] for name in ("align_corners", "precision", "size")]
    except (ValueError, KeyError, TypeError):
        raise UserError(
            f"{path} has no metadata of Fast-SCNN, expected a file that deploy.py wrote: export it"
        ) from None
    return metadata


def exported_engine(path: str | Path, metadata: dict, logits: Callable[[Tensor], Tensor], name: str) -> Engine:
    """Returns the engine of an exported file, which refuses pictures of another size than the file was exported for."""

    def of_its_size(images: Tensor) -> Tensor:
        size = list(images.shape[1:3])
        if metadata["size"] not in (None, size):
            made = "x".join(map(str, metadata["size"]))
            raise UserError(
                f"the picture is {size[0]}x{size[1]} (height x width), expected {made}, for which {path} was exported: "
                "export it with --dynamic, or for this size"
            )
        return logits(images)

    return Engine(of_its_size, metadata["align_corners"], name, classes=metadata["classes"])


def first_line(error: Exception) -> str:
    """Returns the message of an engine's error in one line, without the source locations that OpenVINO puts first."""
    lines = [line for line in str(error).strip().splitlines() if not line.startswith(("Exception from", "Check '"))]
    return (lines or [type(error).__name__])[0][:160]
