"""Scripts run by tests at sizes that take a second, and what their outputs are compared by."""

from __future__ import annotations

import csv
import json
import math
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from conftest import Started, run_script

from utils import load_checkpoint

# A row of benchmark.py --json.
KEYS = {"name", "stage", "backend", "precision", "height", "width", "median_ms", "baseline_median_ms", "ratio"}
# The flags of a training run of a second.
FLAGS = ("--crop_h", 32, "--crop_w", 64, "--batch_size", 2, "--workers", 0, "--device", "cpu", "--seed", 3)


def train(frames: Path, output: Path, *flags: object, **variables: str) -> subprocess.CompletedProcess[str]:
    """Runs train.py at a size that takes a second an epoch."""
    return run_script(
        "train.py", "--data_path", frames, "--output_dir", output, *FLAGS, *flags, cwd=frames, **variables
    )


def read_csv(path: Path) -> list[dict[str, str]]:
    """The rows of a statistics file."""
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def without_time(rows: list[dict[str, str]]) -> list[dict[str, str]]:
    """Rows without the one column that may differ between two equal runs."""
    return [{name: value for name, value in row.items() if name != "images_per_s"} for row in rows]


def assert_same_weights(first: Path, second: Path) -> None:
    """Two weight files that are equal bit for bit."""
    a, b = load_checkpoint(first)["model"], load_checkpoint(second)["model"]
    assert a.keys() == b.keys()
    different = [name for name in a if not torch.equal(a[name], b[name])]
    assert not different


EVERYTHING = ("--recipe", "strong", "--epochs", 4, "--color_strength", 1, "--aux_weight", 0.4, "--amp")


def start(count: int, function: Callable, *arguments: object, cwd: Path, **variables: str) -> list[Started]:
    """Starts a function in several processes the way torchrun does, but with their output kept apart."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), **variables}
    return [
        Started(function, *arguments, cwd=cwd, RANK=str(rank), LOCAL_RANK=str(rank), **common) for rank in range(count)
    ]


def files_below(folder: Path) -> dict[Path, bytes]:
    """Every file and its content."""
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


SCRIPT = "cityscapesscripts.evaluation.evalPixelLevelSemanticLabeling"


def official_scores(data: Path, results: Path, export: Path) -> dict:
    """Runs the official script in its own process and returns its JSON."""
    export.mkdir(exist_ok=True)
    variables = {"CITYSCAPES_DATASET": data, "CITYSCAPES_RESULTS": results, "CITYSCAPES_EXPORT_DIR": export}
    environment = {**os.environ, **{name: str(path) for name, path in variables.items()}}
    subprocess.run([sys.executable, "-m", SCRIPT], env=environment, check=True, capture_output=True)
    return json.loads((export / "resultPixelLevelSemanticLabeling.json").read_text())


def assert_equal_scores(ours: dict, official: dict) -> None:
    """Every score of the official JSON is ours to 1e-9; NaN there is null here."""
    for key in ("classScores", "categoryScores"):
        assert ours[key].keys() == official[key].keys()
        for name, value in official[key].items():
            assert same_score(ours[key][name], value), (key, name, ours[key][name], value)
    for key in ("averageScoreClasses", "averageScoreCategories"):
        assert same_score(ours[key], official[key]), (key, ours[key], official[key])


def same_score(ours: float | None, official: float) -> bool:
    """Equal to 1e-9, or None where the official script has NaN."""
    return ours is None if math.isnan(official) else ours is not None and abs(ours - official) <= 1e-9


VAL = "val/valstadt/valstadt_000000_000000_leftImg8bit.png"


def view(frames, weights, cwd, *flags, **variables):
    """Runs viewer.py on the CPU."""
    base = ["--data_path", frames, "--model_weight", weights, "--device", "cpu"]
    return run_script("viewer.py", *base, *flags, cwd=cwd, **variables)
