"""Predictions on the CPU: every engine, each in a process of its own, compared with what public repositories run."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from inference.backends import PRECISIONS, export_metadata
from inference.checkpoints import load_model
from inference.export import FORMATS, exported_aside, write_onnx
from inference.label_head import labels_from_logits, mixed_share
from inference.predictor import Predictor, load_network
from model import FastSCNN
from speed.plain import PlainNetwork
from speed.timing import FRAME, clock, compare, fresh_process, interleave, make_row, peak_memory
from utils import UserError, cpu_has_bf16, keep_freed_memory

BASELINE = ("eager NCHW, interpolate + argmax", "fp32")


class EngineProcess:
    """An engine, or the baseline, in a process of its own, with memory and threads as where it is used.

    In one process, the baseline's 160 MB of interpolated logits would change what the allocator keeps for the others.
    """

    def __init__(self, path: Path, backend: str, precision: str):
        self.backend = backend
        self.precision = precision
        self.name = f"{backend} {precision}"
        self.process = fresh_process()
        self.opening = self.process.submit(_open, path, backend, precision)

    def call(self, function: Callable, *arguments: object) -> Any:
        """Returns what a function returns in the process: show, seconds_of or peak_memory.

        Raises:
            UserError: the engine cannot be opened, or its process was killed.
        """
        try:
            self.opening.result()
            return self.process.submit(function, *arguments).result()
        except BrokenProcessPool:
            raise UserError(f"the process of {self.name} was killed, perhaps for memory; --quick needs less") from None


# In the process of an engine: what computes each of STAGES, and the image.
_stages: dict[str, Callable[[np.ndarray], object]] = {}
_image: list[np.ndarray] = []


def _open(path: Path, backend: str, precision: str) -> None:
    if (backend, precision) == BASELINE:
        keep_freed_memory()  # as load_network does
        network = PlainNetwork(load_model(path)[0])
        logits = network.logits
    else:
        network, _ = load_network(path, "cpu", backend, precision)
        logits = network.run
    _stages["picture-to-labels"] = Predictor(network)
    _stages["network"] = lambda image: logits(torch.from_numpy(image)[None])


def show(image: np.ndarray) -> None:
    """Sets the (H, W, 3) uint8 image of this process."""
    _image[:] = [image]


@torch.inference_mode()
def seconds_of(stage: str) -> float:
    """Returns the seconds that one of STAGES takes for the image of this process."""
    return clock(functools.partial(_stages[stage], *_image))


def chosen_engines(quick: bool) -> list[tuple[str, str]]:
    """Returns the backends and precisions to measure; with `quick` without those that take long to prepare."""
    engines = []
    for backend, precisions in PRECISIONS.items():
        for precision in precisions:
            # CUDA graphs are for GPUs, see gpu.py; a CPU computes fp16 in PyTorch far slower than float32.
            useless = backend == "torch-graph" or (backend.startswith("torch") and precision == "fp16")
            slow = backend == "torch-compile" or precision in ("fp16", "int8")
            if not useless and not (quick and slow):
                engines.append((backend, precision))
    return engines


def engine_file(
    backend: str, precision: str, weights: Path, folder: Path, images: Sequence[np.ndarray], quick: bool
) -> Path:
    """Returns the file that an engine opens: the weights, or an export to `folder`, for FRAME only if `quick`.

    int8 is calibrated with the (H, W, 3) uint8 images.

    Raises:
        UserError: a package of the engine is missing, or the processor cannot run it.
    """
    if precision == "bf16" and not cpu_has_bf16():
        raise UserError("this processor has no instructions for it")
    if backend not in FORMATS:
        return weights
    model, _ = load_model(weights)
    if precision == "int8":
        path = folder / f"int8{FORMATS[backend]}"
        with exported_aside(model, export_metadata(model, "", "int8", None), path, backend, images):
            return path
    shared = folder / "network.onnx"  # ONNX Runtime and OpenVINO read the same file in every precision but int8
    if not shared.exists():
        write_onnx(model, export_metadata(model, "", "fp32", FRAME if quick else None), shared)
    return shared


@contextlib.contextmanager
def open_engines(
    weights: Path, folder: Path, images: Sequence[np.ndarray], quick: bool
) -> Iterator[tuple[list[EngineProcess], list[str]]]:
    """Opens the baseline and the engines of this machine, and ends their processes after the block; see engine_file.

    Yields:
        The baseline and the engines, in this order; and a line for each engine that cannot be measured.
    """
    missing = []
    started = [EngineProcess(weights, *BASELINE)]
    try:
        for engine in chosen_engines(quick):
            try:
                started.append(EngineProcess(engine_file(*engine, weights, folder, images, quick), *engine))
            except UserError as error:
                missing.append(f"{' '.join(engine)}: not run ({error})")
        started[0].call(peak_memory)  # any call waits until the engine is open
        opened = started[:1]
        for engine in started[1:]:
            try:
                engine.call(peak_memory)
                opened.append(engine)
            except UserError as error:
                missing.append(f"{engine.name}: not run ({error})")
        yield opened, missing
    finally:
        for engine in started:
            engine.process.shutdown(wait=False)  # shut all down, then wait
        for engine in started:
            engine.process.shutdown()


def image_rows(engines: Sequence[EngineProcess], image: np.ndarray, stage: str, repeats: int) -> list[dict]:
    """Times one of STAGES of a (H, W, 3) uint8 image on engines in turn; the first of them is the baseline."""
    for engine in engines:
        engine.call(show, image)
    baseline, *times = interleave([functools.partial(engine.call, seconds_of, stage) for engine in engines], repeats)
    size = image.shape[:2]
    rows = []
    for engine, seconds in zip(engines[1:], times, strict=True):
        name = f"{engine.name}, {size[0]}x{size[1]}"
        row = make_row(name, stage, engine.backend, engine.precision, size, batch=1, device="cpu")
        rows.append(row | compare(seconds, baseline))
    return rows


def add_memory(rows: Sequence[dict], engines: Sequence[EngineProcess]) -> None:
    """Adds the highest memory use of each process so far to the rows that image_rows made of the engines."""
    baseline, *peaks = (engine.call(peak_memory) for engine in engines)
    for row, peak in zip(rows, peaks, strict=True):
        row["peak_mib"] = peak
        row["baseline_peak_mib"] = baseline


@torch.inference_mode()
def label_head_row(model: FastSCNN, image: np.ndarray, repeats: int) -> dict:
    """Times the label head on the logits of a (H, W, 3) uint8 image, compared with interpolation and argmax."""
    size = image.shape[:2]
    logits = PlainNetwork(model).logits(torch.from_numpy(image)[None])

    def exact() -> torch.Tensor:
        return labels_from_logits(logits, size, model.align_corners)

    def naive() -> torch.Tensor:
        return F.interpolate(logits, size, mode="bilinear", align_corners=model.align_corners).argmax(1)

    figures = compare(*interleave([functools.partial(clock, exact), functools.partial(clock, naive)], repeats))
    name = f"label head, scene, {size[0]}x{size[1]}"
    row = make_row(name, "label-head", "torch", "fp32", size, batch=1, device="cpu", **figures)
    return {**row, "mixed_share": mixed_share(logits), "same": bool((exact() == naive()).all())}
