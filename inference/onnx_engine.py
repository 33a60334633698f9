"""Exported ONNX files on ONNX Runtime, on the CPU. The package is imported where a file is opened."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from inference.engine import Engine, exported_engine, first_line, read_metadata, require
from inference.weight_files import METADATA, foreign_file, read_content
from utils import UserError, check_finite


def onnx_engine(path: str | Path, precision: str | None = None) -> tuple[Engine, dict]:
    """Opens an exported ONNX file on ONNX Runtime.

    Args:
        path: of the file.
        precision: what the file has to have; None takes any.

    Returns:
        The engine, and the metadata of the file.

    Raises:
        UserError: the package is missing, the file is damaged or foreign, or it has another precision.
    """
    runtime = require("onnxruntime", "onnx")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    # Threads that wait busily keep the label head, and other processes, off their cores.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    content = read_content(path)
    try:
        session = runtime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its exceptions share no base class
        raise unreadable_onnx(path, error) from None
    metadata = onnx_metadata(path, content)
    if precision not in (None, metadata["precision"]):
        raise UserError(f"{path} is {metadata['precision']}, expected --precision {precision}: export it with that")
    name = session.get_inputs()[0].name

    def logits(images: Tensor) -> Tensor:
        return torch.from_numpy(session.run(None, {name: images.numpy()})[0])

    return exported_engine(path, metadata, logits, f"onnx {metadata['precision']}"), metadata


def onnx_metadata(path: str | Path, content: bytes) -> dict:
    """Returns the metadata of an ONNX file.

    Raises:
        UserError: they are missing, or the file holds weights that are not finite.
    """
    onnx = require("onnx", "onnx")
    proto = onnx.load_from_string(content)
    metadata = read_metadata(path, {entry.key: entry.value for entry in proto.metadata_props}.get(METADATA))
    for constant in proto.graph.initializer:
        check_finite(path, torch.tensor(onnx.numpy_helper.to_array(constant)), constant.name)
    return metadata


def unreadable_onnx(path: str | Path, error: Exception) -> UserError:
    """Returns the error for a file that an engine refused as ONNX."""
    damaged = UserError(f"{path} is damaged or no ONNX file ({first_line(error)}): export it again")
    return foreign_file(path, "an ONNX file") or damaged
