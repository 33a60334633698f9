"""Predictions on the CPU: every engine, each in a process of its own, next to what public repositories compute."""

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

from inference.checkpoints import load_model
from inference.engine import FORMATS, PRECISIONS, export_metadata
from inference.export import exported_aside, write_onnx
from inference.label_head import labels_from_logits, mixed_share
from inference.predictor import Predictor, load_engine
from speed.load import Load, measure
from speed.plain import PlainNetwork
from speed.timing import FRAME, clock, end_with_parent, fresh_process, make_row, peak_memory
from utils import UserError, cpu_has_bf16, keep_freed_memory

BASELINE = ("baseline", "fp32")
RETURNING = ("baseline returning freed memory", "fp32")
EXPLAINED = (
    "baseline: eager float32 in NCHW, interpolation to full size and argmax, as in public repositories, but keeping\n"
    "freed memory as every prediction here does; returning it to the system, as there, is a row of its own (full runs)"
)


class EngineProcess:
    """An engine, or the baseline, in a process of its own, with memory and threads as where it is used.

    In one process, the baseline's 160 MB of interpolated logits would change what the allocator keeps for the others.
    """

    def __init__(self, path: Path, backend: str, precision: str):
        self.path = path
        self.backend = backend
        self.precision = precision
        self.name = f"{backend} {precision}"
        self.process = fresh_process()
        self.opening = self.process.submit(_open, path, backend, precision)

    def call(self, function: Callable, *arguments: object) -> Any:
        """Returns what a function returns in the process, such as show, seconds_of or peak_memory.

        Raises:
            UserError: the engine cannot be opened, or its process was killed.
        """
        try:
            self.opening.result()
            return self.process.submit(function, *arguments).result()
        except BrokenProcessPool:
            raise UserError(f"the process of {self.name} was killed, perhaps for memory; --quick needs less") from None


# In the process of an engine: what computes each of STAGES and other stages of an image, and the image.
stages: dict[str, Callable[[np.ndarray], object]] = {}
_image: list[np.ndarray] = []


def _open(path: Path, backend: str, precision: str) -> None:
    end_with_parent()
    if (backend, precision) in (BASELINE, RETURNING):
        if (backend, precision) == BASELINE:
            keep_freed_memory()  # as load_engine does
        network = PlainNetwork(load_model(path)[0])
        logits = network.logits
    else:
        network, _ = load_engine(path, "cpu", backend, precision)
        logits = network.logits
    stages["picture-to-labels"] = Predictor(network)
    stages["network"] = lambda image: logits(torch.from_numpy(image)[None])


def show(image: np.ndarray) -> None:
    """Sets the (H, W, 3) uint8 image of this process."""
    _image[:] = [image]


@torch.inference_mode()
def seconds_of(stage: str) -> float:
    """Returns what one of `stages` takes for the image of this process."""
    return clock(functools.partial(stages[stage], *_image))


def chosen_engines(quick: bool) -> list[tuple[str, str]]:
    """Returns the backends and precisions to measure; with `quick` without those that take long to prepare."""
    engines = []
    for backend, precisions in PRECISIONS.items():
        for precision in precisions:
            # CUDA graphs are for GPUs, see gpu.py; a CPU computes fp16 in PyTorch far slower than float32.
            useless = backend == "torch-graph" or (backend.startswith("torch") and precision == "fp16")
            if not useless and not (quick and precision in ("fp16", "int8")):
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
        if not quick:
            started.append(EngineProcess(weights, *RETURNING))
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


def image_rows(
    engines: Sequence[EngineProcess], image: np.ndarray, stage: str, repeats: int, load: Load | None = None
) -> list[dict]:
    """Times one of STAGES of a (H, W, 3) uint8 image on engines in turn; the first of them is the baseline.

    With a load, the baseline has a row too: it slows down as well.
    """
    for engine in engines:
        engine.call(show, image)
    figures = measure([functools.partial(engine.call, seconds_of, stage) for engine in engines], repeats, load)
    size = image.shape[:2]
    rows = [
        make_row(
            f"{one.name}, {size[0]}x{size[1]}", stage, one.backend, one.precision, size, batch=1, device="cpu", **row
        )
        for one, row in zip(engines, figures, strict=True)
    ]
    return rows if load else rows[1:]


def add_memory(rows: Sequence[dict], engines: Sequence[EngineProcess]) -> None:
    """Adds the highest memory use of each process so far to the rows that image_rows made of the engines."""
    peaks = {(engine.backend, engine.precision): engine.call(peak_memory) for engine in engines}
    for row in rows:
        row["peak_mib"] = peaks[row["backend"], row["precision"]]
        row["baseline_peak_mib"] = peaks[engines[0].backend, engines[0].precision]


HEADS = ("interpolate + argmax(1)", "label head", "interpolate + max(1).indices")  # the first is the baseline


@torch.inference_mode()
def _open_label_head(align_corners: bool) -> tuple[float, list[int]]:
    """Adds HEADS to `stages`; returns the share of mixed cells, and how many labels differ from the first's."""
    (image,) = _image
    size = image.shape[:2]
    logits = stages["network"](image)

    def enlarged() -> torch.Tensor:
        return F.interpolate(logits, size, mode="bilinear", align_corners=align_corners)

    heads = (
        lambda _: enlarged().argmax(1),
        lambda _: labels_from_logits(logits, size, align_corners),
        lambda _: enlarged().max(1).indices,
    )
    stages.update(zip(HEADS, heads, strict=True))
    expected = heads[0](image)
    return mixed_share(logits), [int((head(image) != expected).sum()) for head in heads]


def label_head_rows(
    baseline: EngineProcess, align_corners: bool, image: np.ndarray, repeats: int, load: Load | None = None
) -> list[dict]:
    """Times HEADS on the logits of a (H, W, 3) uint8 image, in the process of the baseline: freed memory is kept.

    With a load, interpolation and argmax, with which the others are compared, have a row too.
    """
    baseline.call(show, image)
    mixed, different = baseline.call(_open_label_head, align_corners)
    figures = measure([functools.partial(baseline.call, seconds_of, head) for head in HEADS], repeats, load)
    size = image.shape[:2]
    rows = []
    for head, differing, row in zip(HEADS, different, figures, strict=True):
        what = {"batch": 1, "device": "cpu", "mixed_share": mixed, "differing": differing, **row}
        rows.append(make_row(f"{head}, scene, {size[0]}x{size[1]}", "label-head", "torch", "fp32", size, **what))
    return rows if load else rows[1:]
