"""Plots of a run: training curves and confusion matrix, drawn without a display.

A plot never ends a run: what cannot be drawn or written is one line on stderr, once for each file.
"""

from __future__ import annotations

import functools
import io
import math
import sys
import textwrap
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg  # explicit: needs neither a display nor global state
from matplotlib.figure import Figure

from frames.classes import Classes
from utils import printable, write_file

_failed: set[str] = set()  # files that were reported


def _never_ending_a_run(plot: Callable[..., None]) -> Callable[..., None]:
    """Makes a function of a path report that it failed, whatever the reason: the run is worth more than its plots."""

    @functools.wraps(plot)
    def wrapped(path: str | Path, *arguments: object) -> None:
        try:
            # Whatever the user's matplotlibrc says; and glyphs that the font lacks are boxes, without a word.
            with matplotlib.rc_context({"text.usetex": False}), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                plot(path, *arguments)
        except Exception as error:
            if str(path) not in _failed:
                _failed.add(str(path))
                print(f"{path} was not drawn ({printable(str(error))[:200]}); the run goes on", file=sys.stderr)

    return wrapped


def deciding_score(row: dict) -> float:
    """Returns the score of an epoch that decides which one is the best.

    A class that the ground truth lacks has nothing to say, nor which class of a union was predicted.

    Args:
        row: as in the statistics file.
    """
    return row["class_miou_present"] if math.isnan(row["joined_miou"]) else row["joined_miou"]


@_never_ending_a_run
def plot_curves(path: str | Path, history: Sequence[dict], title: str) -> None:
    """Plots losses, scores and learning rate over the epochs.

    Args:
        path: PNG to write.
        history: one row per epoch, as in the statistics file.
        title: text above the plots.
    """
    epochs = [row["epoch"] for row in history]
    figure = Figure(figsize=(13, 3.6), dpi=100, layout="constrained")
    loss, score, rate = figure.subplots(1, 3)
    for name, label in (("train_loss", "training"), ("val_loss", "validation")):
        loss.plot(epochs, [row[name] for row in history], ".-", label=label, markersize=3)
    loss.set_title("loss")
    for name, label in (
        ("pixel_accuracy", "pixel accuracy"),
        ("category_miou", "category mIoU"),
        ("class_miou", "class mIoU"),
        ("class_miou_present", "of present classes")
        if math.isnan(history[0]["joined_miou"])
        else ("joined_miou", "joined"),
    ):
        if not math.isnan(history[0][name]):  # data without categories
            score.plot(epochs, [100 * row[name] for row in history], ".-", label=label, markersize=3)
    best = max(history, key=deciding_score)
    at = best["epoch"], 100 * deciding_score(best)
    score.plot(*at, "o", color="C3", fillstyle="none")
    score.annotate(f"{at[1]:.2f}", at, xytext=(0, 7), textcoords="offset points", ha="center", fontsize=8)
    score.set_title("validation scores, %")
    rate.plot(epochs, [row["lr"] for row in history], ".-", markersize=3)
    rate.set_title("learning rate at the end of the epoch")
    rate.set_ylim(bottom=0)
    for axes in (loss, score, rate):
        axes.set_xlabel("epoch")
        axes.grid(alpha=0.3)
    loss.legend()
    low, high = score.get_ylim()
    score.set_ylim(low, high + (high - low) / 8)  # room for the legend above the curves
    score.legend(loc="upper center", ncols=2, fontsize=8)
    figure.suptitle(_plain(title, 180), fontsize=9, parse_math=False)
    _save(figure, path)


@_never_ending_a_run
def plot_confusion(path: str | Path, confusion: np.ndarray, classes: Classes, title: str) -> None:
    """Plots a confusion matrix as shares of each ground-truth row, in percent.

    Args:
        path: PNG to write.
        confusion: (K, K) pixel counts, rows ground truth, columns predictions.
        classes: give the names.
        title: text above the plot.
    """
    totals = confusion.sum(1, keepdims=True)
    shares = 100 * confusion / np.maximum(totals, 1)
    names = classes.names
    figure = Figure(figsize=(9.5, 8.6), dpi=100, layout="constrained")
    axes = figure.subplots()
    axes.imshow(np.where(totals > 0, shares, np.nan), cmap="Blues", vmin=0, vmax=100)
    for row, column in np.argwhere((shares >= 0.5) & (totals > 0)):
        color = "white" if shares[row, column] > 60 else "black"
        axes.text(column, row, f"{shares[row, column]:.0f}", ha="center", va="center", fontsize=7, color=color)
    absent = [i for i in range(len(names)) if not totals[i, 0]]
    axes.set_xticks(range(len(names)), names, rotation=90)
    axes.set_yticks(range(len(names)), [f"{name} (absent)" if i in absent else name for i, name in enumerate(names)])
    axes.set_xlabel("prediction")
    axes.set_ylabel("ground truth")
    axes.set_title(f"{_plain(title, 120)}\nshare of each ground-truth class, %", fontsize=9, parse_math=False)
    _save(figure, path)


def _plain(text: str, width: int) -> str:
    """Returns a text in at most four lines."""
    short = printable(text[: 10 * width])
    return "\n".join(textwrap.wrap(short, width, max_lines=4, placeholder=" ...", break_on_hyphens=False))


def _save(figure: Figure, path: str | Path) -> None:
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer)
    write_file(path, buffer.getvalue())
