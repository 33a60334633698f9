"""Exported OpenVINO and ONNX files on OpenVINO, on the CPU. The package is imported where a file is opened."""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from inference.engine import Engine, exported_engine, first_line, read_metadata, require
from inference.onnx_engine import onnx_metadata, unreadable_onnx
from inference.weight_files import METADATA, foreign_file, read_content
from utils import UserError, check_finite, cpu_has_bf16

SIZES_KEPT = 8  # networks that OpenVINO has compiled, each for one picture size


def openvino_engine(path: str | Path, precision: str | None = None) -> tuple[Engine, dict]:
    """Opens an exported OpenVINO pair, or an exported ONNX file, on OpenVINO.

    OpenVINO compiles the network for each picture size, which takes a second when that size first comes.

    Args:
        path: of the .xml or the .onnx.
        precision: None takes the file's.

    Returns:
        The engine, and the metadata of the file.

    Raises:
        UserError: the package is missing, the file is damaged or foreign, or it cannot run in this precision.
    """
    core = require("openvino", "openvino").Core()
    # The files' contents, not their names, which OpenVINO interprets by its own rules.
    if Path(path).suffix.lower() == ".xml":
        graph, metadata = _open_pair(core, Path(path))
    else:
        content = read_content(path)
        try:
            graph, metadata = core.read_model(content), onnx_metadata(path, content)
        except RuntimeError as error:
            raise unreadable_onnx(path, error) from None
    precision = precision or metadata["precision"]
    if (precision == "int8") != (metadata["precision"] == "int8"):
        raise UserError(f"{path} is {metadata['precision']}, expected --precision {precision}: export it with that")
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

    def logits(images: Tensor) -> Tensor:
        # The output is the request's own memory: the next picture would overwrite it.
        result = request(tuple(images.shape)).infer([images.numpy()], share_inputs=True, share_outputs=True)
        return torch.from_numpy(result[0].copy())

    return exported_engine(path, metadata, logits, f"openvino {precision}"), metadata


def _open_pair(core: Any, path: Path) -> tuple[Any, dict]:
    """Returns the graph and the metadata of a .xml file and the .bin file with its weights."""
    weights = next(filter(os.path.isfile, (path.with_suffix(".bin"), path.with_suffix(".BIN"))), None)
    if weights is None:
        missing = UserError(f"{path} has no {path.stem}.bin beside it, which holds its weights: copy both files")
        raise foreign_file(path, "an OpenVINO file") or missing
    try:
        graph = core.read_model(read_content(path), read_content(weights))
    except RuntimeError as error:
        damaged = UserError(f"{path} is damaged or no OpenVINO file ({first_line(error)}): export it again")
        raise foreign_file(path, "an OpenVINO file") or foreign_file(weights, "an OpenVINO file") or damaged from None
    metadata = read_metadata(path, graph.get_rt_info(METADATA).astype(str) if graph.has_rt_info(METADATA) else None)
    for node in graph.get_ordered_ops():  # an engine may compute 0 from what is not a number
        if node.get_type_name() == "Constant" and node.get_element_type().is_real():
            check_finite(path, torch.tensor(node.get_data()), node.get_friendly_name())
    return graph, metadata
