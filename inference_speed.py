"""What a prediction costs on every engine, beside what public repositories run: eager float32 in NCHW, interpolation
to full size, argmax."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from backends import PRECISIONS, Network, describe
from dataset import MEAN, STD
from deploy import Predictor, load_model, load_network
from export import FORMATS, export, write_onnx
from label_head import labels_from_logits, mixed_share
from model import FastSCNN
from timing import alternate, compare, peak_in_fresh_process
from utils import UserError, cpu_has_bf16

BASELINE = ("eager NCHW, interpolate + argmax", "fp32")


def plain_network(model: FastSCNN, picture: np.ndarray, heads: bool) -> torch.Tensor:
    """Runs the network as public repositories do: to the logits of every pixel, or with `heads` to those at 1/8."""
    x = torch.from_numpy(picture).permute(2, 0, 1)[None].contiguous().float() / 255
    x = (x - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    return model.heads(x)[0] if heads else model(x)


def open_networks(
    model: FastSCNN, weights: str, folder: Path, pictures: Sequence[np.ndarray], size: tuple[int, int] | None
) -> tuple[dict[tuple[str, str], Network], list[str]]:
    """Opens the network on every engine and in every precision that this machine has.

    Args:
        model: the network.
        weights: the file that it came from.
        folder: for exported files.
        pictures: to calibrate int8 with.
        size: (height, width) of all pictures to come, or None; then what takes long to prepare is left out:
            torch.compile, int8 and an exported file for any size.

    Returns:
        The networks by backend and precision, and a line for each that is left out.
    """
    networks, missing = {}, []
    shared = folder / "network.onnx"  # ONNX Runtime and OpenVINO read the same file in every precision but int8
    for backend, precisions in PRECISIONS.items():
        for precision in precisions:
            if backend.startswith("torch") and precision == "fp16":
                continue  # a CPU computes it far slower than float32
            if precision == "bf16" and not cpu_has_bf16():
                missing.append(f"{backend} bf16: not run (this processor has no instructions for it)")
                continue
            if size and (backend == "torch-compile" or precision in ("int8", "fp16")):
                continue
            try:
                if precision == "int8":
                    path = folder / {"onnx": "int8.onnx", "openvino": "int8.xml"}[backend]
                    export(
                        model, describe(model, "", "int8", None), path, backend, pictures, check=lambda network: None
                    )
                    networks[backend, precision] = load_network(path)[0]
                elif backend in FORMATS:
                    if not shared.exists():
                        write_onnx(model, describe(model, "", "fp32", size), shared)
                    networks[backend, precision] = load_network(shared, "cpu", backend, precision)[0]
                else:
                    networks[backend, precision] = load_network(weights, "cpu", backend, precision)[0]
            except UserError as error:
                missing.append(f"{backend} {precision}: not run ({error})")
    return networks, missing


@torch.inference_mode()
def picture_rows(
    model: FastSCNN, networks: dict[tuple[str, str], Network], picture: np.ndarray, repeats: int
) -> list[dict]:
    """Times a picture to its labels, and the network alone to its logits at 1/8."""
    size = picture.shape[:2]
    batch = torch.from_numpy(picture)[None]
    whole = [functools.partial(_predict, Predictor(network), picture) for network in networks.values()]
    alone = [functools.partial(_predict, network.run, batch) for network in networks.values()]
    rows = []
    for stage, ours, baseline in (
        ("picture-to-labels", whole, lambda _: plain_network(model, picture, heads=False).argmax(1)),
        ("network", alone, lambda _: plain_network(model, picture, heads=True)),
    ):
        *times, plain = alternate([*ours, baseline], repeats)
        rows += [
            _row(f"{backend} {precision}", stage, backend, precision, size, compare(seconds, plain))
            for (backend, precision), seconds in zip(networks, times, strict=True)
        ]
    return rows


def _predict(function: Callable, picture: object, repeat: int) -> object:
    return function(picture)


@torch.inference_mode()
def label_head_rows(model: FastSCNN, picture: np.ndarray, repeats: int) -> list[dict]:
    """Times the label head alone, on the logits of a scene and on noise."""
    size = picture.shape[:2]
    logits = plain_network(model, picture, heads=True)
    noise = torch.randn(logits.shape, generator=torch.Generator().manual_seed(0))
    rows = []
    for name, values in (("scene", logits), ("noise", noise)):

        def exact(_: int, values: torch.Tensor = values) -> torch.Tensor:
            return labels_from_logits(values, size, model.align_corners)

        def naive(_: int, values: torch.Tensor = values) -> torch.Tensor:
            return F.interpolate(values, size, mode="bilinear", align_corners=model.align_corners).argmax(1)

        row = _row(
            f"label head, {name}", "label-head", "torch", "fp32", size, compare(*alternate((exact, naive), repeats))
        )
        rows.append({**row, "mixed_share": mixed_share(values), "same": bool((exact(0) == naive(0)).all())})
    return rows


def _row(name: str, stage: str, backend: str, precision: str, size: tuple[int, int], figures: dict) -> dict:
    named = {"name": f"{name}, {size[0]}x{size[1]}", "stage": stage, "backend": backend, "precision": precision}
    return {**named, "height": size[0], "width": size[1], "batch": 1, "device": "cpu", **figures}


def peak_memory(weights: str, backend: str, precision: str, picture: np.ndarray) -> float:
    """Returns the MiB that a process of its own takes at most to label a picture twice, libraries included."""
    return peak_in_fresh_process(_label_twice, weights, backend, precision, picture)


@torch.inference_mode()
def _label_twice(weights: str, backend: str, precision: str, picture: np.ndarray) -> None:
    if (backend, precision) == BASELINE:
        model = load_model(weights)[0]
        for _ in range(2):
            plain_network(model, picture, heads=False).argmax(1)
    else:
        predict = Predictor(load_network(weights, "cpu", backend, precision)[0])
        for _ in range(2):
            predict(picture)
