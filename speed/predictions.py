"""What a prediction costs on every engine, beside what public repositories run: eager float32 in NCHW, interpolation
to full size, argmax.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Sequence
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
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
from model import MEAN, STD, FastSCNN
from speed.timing import alternate, alternate_timed, compare, fresh_process, peak_memory
from utils import UserError, cpu_has_bf16, keep_freed_memory

BASELINE = ("eager NCHW, interpolate + argmax", "fp32")
BASELINE_KEPT = ("the baseline with its freed memory kept", "fp32")  # what of a ratio the allocator alone makes
STAGES = ("picture-to-labels", "network")


def plain_network(model: FastSCNN, picture: np.ndarray, heads: bool) -> torch.Tensor:
    """Runs the network as public repositories do: to the logits of every pixel, or with `heads` to those at 1/8."""
    x = torch.from_numpy(picture).permute(2, 0, 1)[None].contiguous().float() / 255
    x = (x - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    return model.logits(x)[0] if heads else model(x)


class Side:
    """An engine, or the baseline, in a process of its own: it finds memory and threads as it does where it is used.

    In one process, the baseline's 160 MB of interpolated logits make the allocator keep memory for all who come after.

    Args:
        path: a checkpoint, or an exported file.
        backend: as for load_network, or BASELINE's.
        precision: the same.
    """

    def __init__(self, path: str | Path, backend: str, precision: str):
        self.backend, self.precision = backend, precision
        self.process = fresh_process()
        self.opening = self.process.submit(_open, str(path), backend, precision)

    def wait(self) -> None:
        """Waits until the engine is open.

        Raises:
            UserError: it cannot be opened.
        """
        self._result(self.opening)

    def show(self, picture: np.ndarray) -> None:
        """Gives the (H, W, 3) uint8 picture that the next calls of `seconds` are about."""
        self._result(self.process.submit(_show, picture))

    def seconds(self, stage: str, repeat: int = 0) -> float:
        """Returns what the picture takes to its labels, or the network alone to its logits at 1/8; see STAGES."""
        return self._result(self.process.submit(_seconds, stage))

    def peak(self) -> float:
        """Returns the MiB that the process has taken at most."""
        return self._result(self.process.submit(peak_memory))

    def _result(self, future: Future) -> Any:
        try:
            return future.result()
        except BrokenProcessPool:
            raise UserError(
                f"the process of {self.backend} {self.precision} was killed, perhaps for memory; --quick needs less"
            ) from None


_side: dict[str, object] = {}  # in the process of a side: stage to function, and the picture


def _open(path: str, backend: str, precision: str) -> None:
    if (backend, precision) in (BASELINE, BASELINE_KEPT):
        if (backend, precision) == BASELINE_KEPT:
            keep_freed_memory()
        model = load_model(path)[0]
        calls = (
            lambda picture: plain_network(model, picture, heads=False).argmax(1),
            lambda picture: plain_network(model, picture, heads=True),
        )
    else:
        network = load_network(path, "cpu", backend, precision)[0]
        calls = Predictor(network), lambda picture: network.run(torch.from_numpy(picture)[None])
    _side.update(zip(STAGES, calls, strict=True))


def _show(picture: np.ndarray) -> None:
    _side["picture"] = picture


@torch.inference_mode()
def _seconds(stage: str) -> float:
    start = time.perf_counter()
    _side[stage](_side["picture"])
    return time.perf_counter() - start


def open_sides(
    model: FastSCNN,
    weights: str,
    folder: Path,
    pictures: Sequence[np.ndarray],
    size: tuple[int, int] | None,
    stack: ExitStack,
) -> tuple[list[Side], list[str]]:
    """Opens the network on every engine and in every precision that this machine has.

    Args:
        model: the network.
        weights: the file that it came from.
        folder: for exported files.
        pictures: to calibrate int8 with.
        size: (height, width) of all pictures to come: what takes long to prepare is left out, which is torch.compile,
            int8 and an exported file for any size. None: everything.
        stack: ends the processes.

    Returns:
        The baseline, without `size` the same with its memory kept, and the engines; and a line for each that is left
        out.
    """
    sides, missing = [Side(weights, *side) for side in (BASELINE, BASELINE_KEPT)[: 1 if size else 2]], []
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
            path = weights
            try:
                if precision == "int8":
                    path = folder / {"onnx": "int8.onnx", "openvino": "int8.xml"}[backend]
                    with exported_aside(model, export_metadata(model, "", "int8", None), path, backend, pictures):
                        pass
                elif backend in FORMATS:
                    path = shared
                    if not shared.exists():
                        write_onnx(model, export_metadata(model, "", "fp32", size), shared)
                sides.append(Side(path, backend, precision))
            except UserError as error:
                missing.append(f"{backend} {precision}: not run ({error})")
    for side in sides:
        stack.enter_context(side.process)
    stack.callback(lambda: [side.process.shutdown(wait=False) for side in sides])  # all at once, which is waited for
    opened = []
    for side in sides:
        try:
            side.wait()
            opened.append(side)
        except UserError as error:
            missing.append(f"{side.backend} {side.precision}: not run ({error})")
    return opened, missing


def picture_rows(sides: Sequence[Side], picture: np.ndarray, repeats: int) -> list[dict]:
    """Times a picture to its labels, and the network alone to its logits at 1/8.

    Args:
        sides: the baseline and the engines.
        picture: (H, W, 3), uint8.
        repeats: of each side, alternately.
    """
    for side in sides:
        side.show(picture)
    rows = []
    for stage in STAGES:
        baseline, *times = alternate_timed([functools.partial(side.seconds, stage) for side in sides], repeats)
        rows += [
            _row(
                f"{side.backend} {side.precision}",
                stage,
                side.backend,
                side.precision,
                picture.shape[:2],
                compare(seconds, baseline),
            )
            for side, seconds in zip(sides[1:], times, strict=True)
        ]
    return rows


def add_memory(rows: Sequence[dict], sides: Sequence[Side]) -> None:
    """Adds what the processes have taken at most to their rows of pictures to labels."""
    baseline, *peaks = (side.peak() for side in sides)
    named = {(side.backend, side.precision): peak for side, peak in zip(sides[1:], peaks, strict=True)}
    for row in rows:
        if row["stage"] == STAGES[0]:
            row["peak_mib"], row["baseline_peak_mib"] = named[row["backend"], row["precision"]], baseline


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
