"""Predictions beside other threads of the same process: in a second thread, and in the viewer's pipeline."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np

from inference.predictor import Predictor
from speed.load import Load, finish_rows, measure
from speed.predictions import EngineProcess, show, stages, usage_of
from speed.timing import make_row
from utils import UserError
from viewing.drawing import draw_result
from viewing.pipeline import run_stages
from viewing.video import Frame, Problem, VideoFile, open_capture, read_frames
from viewing.window import SCREEN_WIDTH

ENGINES = (("torch", "fp32"), ("onnx", "fp32"), ("openvino", "fp32"), ("openvino", "int8"))
FRAMES = 6  # of the stream
FPS = 10
# The stages, with the calls that they hold and what a row says; the first is the baseline.
PLACES = (
    ("picture-to-labels", 1, "main thread"),
    ("second-thread", 1, "second thread"),
    ("viewer", FRAMES, "viewer, a frame of a video"),
)


def write_stream(path: Path, image: np.ndarray, frames: int = FRAMES) -> None:
    """Writes a video that moves across a (H, W, 3) uint8 RGB image."""
    video = VideoFile(path, FPS)
    try:
        for number in range(frames):
            video.write(cv2.cvtColor(np.roll(image, -8 * number, axis=1), cv2.COLOR_RGB2BGR))
        video.close()
    finally:
        video.discard()


def run_viewer(predict: Predictor, stream: Path) -> int:
    """Predicts, draws and writes a video as viewer.py does by default; returns the number of frames.

    Raises:
        UserError: as the viewer: a frame cannot be read or the result cannot be written.
    """
    video = VideoFile(stream.with_suffix(".result.webm"), FPS)
    legend = tuple(range(len(predict.classes)))

    def segment(item: Frame | Problem) -> tuple[Frame, np.ndarray]:
        if isinstance(item, Problem):
            raise UserError(item.text)
        return item, predict(item.image)

    def draw(item: tuple[Frame, np.ndarray]) -> np.ndarray:
        frame, labels = item
        drawn = draw_result(frame.image, None, labels, predict.classes, False, SCREEN_WIDTH, legend)
        return cv2.cvtColor(drawn, cv2.COLOR_RGB2BGR)

    try:
        run_stages(read_frames(open_capture(stream), stream), segment, [draw, video.write])
        video.close()
    finally:
        video.discard()
    return video.frames


def _open(place: str, stream: Path) -> None:
    """Adds one of PLACES to what this process computes, after a prediction in its main thread."""
    cv2.setNumThreads(1)  # as in viewer.py
    predict = stages["picture-to-labels"]
    if place == "second-thread":
        thread = ThreadPoolExecutor(1)
        stages[place] = lambda image: thread.submit(predict, image).result()
    elif place == "viewer":
        stages[place] = lambda _: run_viewer(predict, stream)
    usage_of("picture-to-labels")


def thread_rows(
    engines: Sequence[EngineProcess], folder: Path, image: np.ndarray, repeats: int, load: Load | None
) -> list[dict]:
    """Times ENGINES, as far as they are among the opened ones, in PLACES; the baseline is the engine's main thread.

    Each place has a process of its own: once two threads have used PyTorch, predictions in both are slower.

    Args:
        engines: their files are opened again.
        folder: for the video.
        image: (H, W, 3) uint8 RGB.
        repeats: of each place; the viewer's are whole videos.
        load: see load.measure.
    """
    stream = folder / "stream.webm"
    write_stream(stream, image)
    size = image.shape[:2]
    rows = []
    for engine in engines:
        if (engine.backend, engine.precision) not in ENGINES:
            continue
        with contextlib.ExitStack() as stack:
            timers, begun = [], []
            for stage, count, where in PLACES:
                opened = EngineProcess(engine.path, engine.backend, engine.precision)
                stack.enter_context(opened.process)
                opened.call(show, image)
                opened.call(_open, stage, stream)
                timers.append(functools.partial(opened.call, usage_of, stage, count))
                name = f"{engine.name}, {where}, {size[0]}x{size[1]}"
                begun.append(make_row(name, stage, engine.backend, engine.precision, size, batch=1, device="cpu"))
            results = measure(timers, repeats, load)
            rows += finish_rows(begun, results, results[0])
    return rows
