"""Export to ONNX, OpenVINO and safetensors files, and their agreement with PyTorch."""

from __future__ import annotations

import contextlib
import json
import logging
import sys
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from xml.etree import ElementTree

import cv2
import numpy as np
import torch

from inference.checkpoints import load_model
from inference.engine import FORMATS, Engine, check_precision, require
from inference.folded import FoldedNetwork
from inference.onnx_engine import onnx_engine
from inference.openvino_engine import openvino_engine
from inference.torch_engine import torch_engine
from inference.weight_files import METADATA, write_safetensors
from model import MIN_SIZE, FastSCNN
from utils import write_file

# The least share of pixels that must have the label that PyTorch gives in single precision.
AGREEMENT = {"fp32": 0.9999, "fp16": 0.999, "bf16": 0.995, "int8": 0.99}
# The convolutions that int8 leaves in floating point: all of learning to downsample, whose errors reach all later
# layers, and the class scores. Measured on street frames of 1024x2048: 99.50 % of the labels are equal to single
# precision; with only the first two and the last left, 99.07 %, and no faster.
_FIRST_KEPT, _LAST_KEPT = 5, 1


def _kept(convolutions: Sequence[str]) -> list[str]:
    """Returns the convolutions that int8 leaves in floating point, of all in their order."""
    return [*convolutions[:_FIRST_KEPT], *convolutions[-_LAST_KEPT:]]


@contextlib.contextmanager
def exported_aside(
    model: FastSCNN, metadata: dict, path: Path, format: str, images: Sequence[np.ndarray]
) -> Iterator[Engine]:
    """Writes one file, or OpenVINO's pair, to a temporary folder; it becomes `path` when the block is left.

    An exception in the block removes what was written and leaves an earlier file at `path` as it was. What the block
    adds to the metadata, such as how well the file agrees, is written into it.

    Args:
        model: it is copied.
        metadata: from engine.export_metadata; `size` and `precision` decide what is written.
        path: ends as FORMATS says.
        format: one of FORMATS.
        images: (H, W, 3) uint8 RGB of any sizes, for the calibration of int8.

    Yields:
        The network of the written file, opened to be checked.

    Raises:
        UserError: a package is missing, or the format has no such precision.
    """
    check_precision(format, metadata["precision"])
    for name in _packages(format, metadata["precision"]):  # now, not after minutes of work
        require(name, format)
    if images:  # a graph of a fixed size takes no other, and ONNX Runtime compares the outputs of one size only
        height, width = metadata["size"] or images[0].shape[:2]
        images = [cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA) for image in images]
    # Not beside `path`: the packages take no name that is not UTF-8.
    with tempfile.TemporaryDirectory() as folder:
        written = Path(folder, "network").with_suffix(FORMATS[format])
        with contextlib.redirect_stdout(sys.stderr):  # the packages print their progress
            write_onnx(model, metadata, written.with_suffix(".onnx"))
            if format == "openvino":
                _write_openvino(metadata, written, images)
            elif metadata["precision"] == "int8":
                _quantise_onnx(written, images)
        yield (openvino_engine if format == "openvino" else onnx_engine)(written)[0]
        _replace_metadata(written, metadata)
        # OpenVINO's weights first: the .xml is what a reader opens.
        for file, content in reversed([*zip(exported_files(path), exported_files(written), strict=True)]):
            write_file(file, content.read_bytes())


@contextlib.contextmanager
def safetensors_aside(model: FastSCNN, metadata: dict, path: Path) -> Iterator[Engine]:
    """Writes weights to a temporary folder and, when the block is left, to `path`; see exported_aside.

    Args:
        model: whose weights they are.
        metadata: what load_state shall find, in plain values; what the block adds is written too.
        path: the file.

    Yields:
        The network of the written file on PyTorch, loaded as any checkpoint is.

    Raises:
        UserError: the package is missing.
    """
    with tempfile.TemporaryDirectory() as folder:
        written = Path(folder, "network.safetensors")
        write_safetensors(written, model.state_dict(), metadata)
        yield torch_engine(load_model(written)[0], torch.device("cpu"))
    write_safetensors(path, model.state_dict(), metadata)


def exported_files(path: Path) -> list[Path]:
    """Returns the files of an export: OpenVINO writes the weights to a second one."""
    return [path, path.with_suffix(".bin")] if path.suffix.lower() == FORMATS["openvino"] else [path]


def _packages(format: str, precision: str) -> list[str]:
    """Returns the packages that write and open a format."""
    names = ["onnx", "onnxscript", "onnxruntime" if format == "onnx" else "openvino"]
    if format == "openvino" and precision == "int8":
        names.append("nncf")
    return names


def write_onnx(model: FastSCNN, metadata: dict, path: Path) -> None:
    """Writes the network with its weights as an ONNX file in single precision."""
    require("onnxscript", "onnx")
    onnx = require("onnx", "onnx")
    size = metadata["size"]
    height, width = size or (256, 512)
    example = torch.zeros(1, height, width, 3, dtype=torch.uint8)
    # The tracer needs more than one cell at 1/32, or it fails and starts again; the file takes one cell nevertheless.
    least = MIN_SIZE + 1 + model.variant.lost
    dynamic = {1: torch.export.Dim("height", min=least), 2: torch.export.Dim("width", min=least)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            FoldedNetwork(model),
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


def _replace_metadata(path: Path, metadata: dict) -> None:
    """Writes other metadata into an exported file; the network in it stays as it is."""
    text = json.dumps(metadata)
    if path.suffix == FORMATS["openvino"]:
        tree = ElementTree.parse(path)
        tree.find(f"rt_info/{METADATA}").set("value", text)
        tree.write(path, "utf-8", xml_declaration=True)
        return
    proto = require("onnx", "onnx").load(path)
    (entry,) = (entry for entry in proto.metadata_props if entry.key == METADATA)
    entry.value = text
    write_file(path, proto.SerializeToString())


def _write_openvino(metadata: dict, path: Path, images: Sequence[np.ndarray]) -> None:
    """Converts the ONNX file of the same name to OpenVINO's pair."""
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
            nncf.Dataset([image[None] for image in images]),
            subset_size=len(images),
            ignored_scope=nncf.IgnoredScope(names=_kept(convolutions)),
            # Weights of 7 bits: without VNNI a processor sums pairs of products in 16 bits, which overflow with 8-bit
            # weights. Measured on one without VNNI, labels equal to single precision: 96.87 % with 8 bits,
            # 99.49 % with 7, as many as with VNNI.
            advanced_parameters=nncf.AdvancedQuantizationParameters(overflow_fix=nncf.OverflowFix.ENABLE),
        )
    graph.set_rt_info(json.dumps(metadata), METADATA)
    openvino.save_model(graph, str(path), compress_to_fp16=metadata["precision"] == "fp16")


def _quantise_onnx(path: Path, images: Sequence[np.ndarray]) -> None:
    """Replaces an ONNX file by its int8 form, which is correct on processors without VNNI too."""
    quantization = require("onnxruntime.quantization", "onnx")
    onnx = require("onnx", "onnx")

    class Reader(quantization.CalibrationDataReader):
        def __init__(self):
            self.images = iter(images)

        def get_next(self) -> dict | None:
            image = next(self.images, None)
            return None if image is None else {"pictures": image[None]}

    proto = onnx.load(path)
    kept = [entry for entry in proto.metadata_props if entry.key == METADATA]
    convolutions = [node.name for node in proto.graph.node if node.op_type == "Conv"]
    plain = path.with_suffix(".plain.onnx")
    quantization.shape_inference.quant_pre_process(str(path), str(plain), skip_symbolic_shape=True)
    quantization.quantize_static(
        str(plain),
        str(path),
        Reader(),
        per_channel=True,
        reduce_range=True,
        nodes_to_exclude=_kept(convolutions),
        op_types_to_quantize=["Conv", "Add"],
        calibrate_method=quantization.CalibrationMethod.Percentile,
        extra_options={"ActivationSymmetric": False, "WeightSymmetric": True, "CalibPercentile": 99.99},
    )
    proto = onnx.load(path)
    del proto.metadata_props[:]
    proto.metadata_props.extend(kept)
    write_file(path, proto.SerializeToString())


def agreement(model: FastSCNN, engine: Engine, images: Sequence[np.ndarray]) -> float:
    """Returns the share of pixels to which an engine gives the label that PyTorch gives in single precision."""
    reference = torch_engine(model, torch.device("cpu"))
    same = total = 0
    for image in images:
        batch = torch.from_numpy(image)[None]
        equal = engine.labels(batch) == reference.labels(batch)
        same += int(equal.sum())
        total += equal.numel()
    return same / total
