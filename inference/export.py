"""Writes the network as ONNX or OpenVINO files, and checks what it wrote against PyTorch."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np
import torch

from inference.backends import (
    METADATA,
    Network,
    Uint8Network,
    check_precision,
    onnx_network,
    openvino_network,
    require,
    torch_network,
)
from model import MIN_SIZE, FastSCNN
from utils import UserError, write_file

FORMATS = {"onnx": ".onnx", "openvino": ".xml"}
# Least share of the pixels whose label is that of PyTorch in single precision.
AGREEMENT = {"fp32": 0.9999, "fp16": 0.999, "bf16": 0.995, "int8": 0.99}
# The convolutions that int8 leaves as they are: all of learning to downsample, whose errors reach everything after it,
# and the class scores. Measured on street frames of 1024x2048: 99.50 % of the labels are those of single precision.
# With the first two and the last alone it is 99.07 %, and no faster.
_FIRST_KEPT, _LAST_KEPT = 5, 1


def _kept(convolutions: Sequence[str]) -> list[str]:
    """Returns which of all convolutions, in their order, int8 leaves as they are."""
    return [*convolutions[:_FIRST_KEPT], *convolutions[-_LAST_KEPT:]]


def export(
    model: FastSCNN,
    metadata: dict,
    path: Path,
    format: str,
    pictures: Sequence[np.ndarray],
    check: Callable[[Network], None],
) -> None:
    """Writes one file, or OpenVINO's pair: aside, and renamed once it was checked.

    Args:
        model: the network.
        metadata: of backends.export_metadata; `size` and `precision` decide what is written.
        path: ends as FORMATS says.
        format: one of FORMATS.
        pictures: (H, W, 3) uint8 of any sizes, for the calibration of int8.
        check: gets what was written, opened again; an exception of it leaves everything as it was.

    Raises:
        UserError: a package is missing, or the format has no such precision.
    """
    check_precision(format, metadata["precision"])
    if pictures:  # a graph of a fixed size takes no other, and ONNX Runtime compares the outputs of one size only
        height, width = metadata["size"] or pictures[0].shape[:2]
        pictures = [cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA) for picture in pictures]
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".export-") as folder:
        written = Path(folder) / path.name
        with contextlib.redirect_stdout(sys.stderr):  # progress of the packages
            write_onnx(model, metadata, written.with_suffix(".onnx"))
            if format == "openvino":
                _write_openvino(metadata, written, pictures)
            elif metadata["precision"] == "int8":
                _quantise_onnx(written, pictures)
        check(open_exported(written)[0])
        for suffix in (".bin", path.suffix) if format == "openvino" else (path.suffix,):
            os.replace(written.with_suffix(suffix), path.with_suffix(suffix))


def write_onnx(model: FastSCNN, metadata: dict, path: Path) -> None:
    """Writes the ONNX file of the network in single precision, weights included."""
    require("onnxscript", "onnx")
    onnx = require("onnx", "onnx")
    size = metadata["size"]
    height, width = size or (256, 512)
    example = torch.zeros(1, height, width, 3, dtype=torch.uint8)
    # The tracer wants more than one cell at 1/32, or it fails and starts again; the file takes one cell all the same.
    dynamic = {1: torch.export.Dim("height", min=MIN_SIZE + 1), 2: torch.export.Dim("width", min=MIN_SIZE + 1)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            Uint8Network(model),
            (example,),
            input_names=["pictures"],
            output_names=["logits"],
            dynamic_shapes=None if size else (dynamic,),
            dynamo=True,
            external_data=False,
            optimize=True,
            verbose=False,
        )
    proto = program.model_proto
    proto.metadata_props.append(onnx.StringStringEntryProto(key=METADATA, value=json.dumps(metadata)))
    write_file(path, proto.SerializeToString())


def _write_openvino(metadata: dict, path: Path, pictures: Sequence[np.ndarray]) -> None:
    """Converts the ONNX file beside `path` to OpenVINO's pair."""
    openvino = require("openvino", "openvino")
    graph = openvino.Core().read_model(str(path.with_suffix(".onnx")))
    if metadata["precision"] == "int8":
        nncf = require("nncf", "openvino")
        nncf.set_log_level(logging.ERROR)
        convolutions = [
            node.get_friendly_name() for node in graph.get_ordered_ops() if "Convolution" in node.get_type_name()
        ]
        graph = nncf.quantize(
            graph,
            nncf.Dataset([picture[None] for picture in pictures]),
            subset_size=len(pictures),
            ignored_scope=nncf.IgnoredScope(names=_kept(convolutions)),
            # Weights of 7 bits: without VNNI a processor adds up pairs of products in 16 bits, which overflow with 8.
            # Measured without: 96.87 % of the labels are those of single precision; with: 99.49 %, as with VNNI.
            advanced_parameters=nncf.AdvancedQuantizationParameters(overflow_fix=nncf.OverflowFix.ENABLE),
        )
    graph.set_rt_info(json.dumps(metadata), METADATA)
    openvino.save_model(graph, str(path), compress_to_fp16=metadata["precision"] == "fp16")


def _quantise_onnx(path: Path, pictures: Sequence[np.ndarray]) -> None:
    """Replaces an ONNX file by its int8 form, which is right on processors without VNNI too."""
    quantization = require("onnxruntime.quantization", "onnx")
    onnx = require("onnx", "onnx")

    class Reader(quantization.CalibrationDataReader):
        def __init__(self):
            self.left = iter(pictures)

        def get_next(self) -> dict | None:
            picture = next(self.left, None)
            return None if picture is None else {"pictures": picture[None]}

    proto = onnx.load(path)
    kept = [entry for entry in proto.metadata_props if entry.key == METADATA]
    convolutions = [node.name for node in proto.graph.node if node.op_type == "Conv"]
    plain = path.with_suffix(".plain.onnx")
    quantization.shape_inference.quant_pre_process(str(path), str(plain), skip_symbolic_shape=True)
    quantization.quantize_static(
        str(plain), str(path), Reader(), per_channel=True, reduce_range=True, nodes_to_exclude=_kept(convolutions),
        op_types_to_quantize=["Conv", "Add"], calibrate_method=quantization.CalibrationMethod.Percentile,
        extra_options={"ActivationSymmetric": False, "WeightSymmetric": True, "CalibPercentile": 99.99},
    )  # fmt: skip
    proto = onnx.load(path)
    del proto.metadata_props[:]
    proto.metadata_props.extend(kept)
    write_file(path, proto.SerializeToString())


def open_exported(path: str | Path, backend: str | None = None, precision: str | None = None) -> tuple[Network, dict]:
    """Opens an exported file with the engine that its ending, or `backend`, names.

    Returns:
        The network, and the metadata of the file.

    Raises:
        UserError: the two do not fit, or as onnx_network and openvino_network.
    """
    suffix = Path(path).suffix
    backend = backend or {ending: name for name, ending in FORMATS.items()}[suffix]
    if backend == "openvino":
        return openvino_network(path, precision)
    if backend != "onnx" or suffix != ".onnx":
        raise UserError(f"{path} cannot run on backend {backend}: give the checkpoint, or leave --backend out")
    network, metadata = onnx_network(path)
    if precision not in (None, metadata["precision"]):
        raise UserError(f"{path} is {metadata['precision']}, asked for {precision}: export it with that precision")
    return network, metadata


def agreement(model: FastSCNN, network: Network, pictures: Sequence[np.ndarray]) -> float:
    """Returns the share of pixels to which an engine gives the label that PyTorch gives in single precision."""
    reference = torch_network(model, torch.device("cpu"), "fp32", compiled=False)
    same = total = 0
    for picture in pictures:
        found, expected = (one.labels(torch.from_numpy(picture)[None]) for one in (network, reference))
        same, total = same + int((found == expected).sum()), total + expected.numel()
    return same / total
