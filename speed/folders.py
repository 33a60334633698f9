"""A folder of pictures labelled by evaluate.py, as a user starts it: by two processes and by one, in turn."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from frames.images import encode_png
from speed.timing import FRAME, Groups, compare, make_row
from utils import UserError

SCRIPT = Path(__file__).resolve().parent.parent / "evaluate.py"
PROCESSES = (2, 1)
MOST_REPEATS = 5  # each starts Python twice and labels the whole folder


def folder_rows(weights: Path, folder: Path, scene: np.ndarray, repeats: int, quick: bool) -> Groups:
    """Labels copies of an (H, W, 3) uint8 RGB picture, and yields a title and a row; two processes are compared.

    Args:
        weights: a checkpoint.
        folder: for pictures and predictions.
        scene: the picture, which is resized to FRAME.
        repeats: of each side.
        quick: few pictures.
    """
    content = encode_png(cv2.resize(scene, FRAME[::-1], interpolation=cv2.INTER_LINEAR)[..., ::-1])
    pictures = folder / "pictures" / "leftImg8bit" / "test" / "city"
    pictures.mkdir(parents=True)
    for index in range(12 if quick else 60):
        (pictures / f"city_{index:06d}_000000_leftImg8bit.png").write_bytes(content)
    label = functools.partial(_seconds_per_picture, weights=weights, folder=folder)
    try:
        rounds = [[label(count) for count in PROCESSES] for _ in range(min(repeats, MOST_REPEATS))]
    except UserError as error:
        print(f"\n{error}")
        return
    two, one = zip(*rounds, strict=True)
    row = make_row(f"torch fp32, PNG, {FRAME[0]}x{FRAME[1]}", "folder", "torch", "fp32", FRAME, device="cpu")
    yield "folder of pictures, two processes compared with one", [row | compare(two, one) | _rates(two, one)]


def _rates(ours: Sequence[float], baseline: Sequence[float]) -> dict[str, float]:
    """Returns pictures per second, and their ratio, from the seconds per picture of each repetition."""
    rate, baseline_rate = (len(seconds) / sum(seconds) for seconds in (ours, baseline))
    return {"images_per_s": rate, "baseline_images_per_s": baseline_rate, "ratio": rate / baseline_rate}


def _seconds_per_picture(processes: int, weights: Path, folder: Path) -> float:
    """Labels the folder; returns the time between the first predictions and the last one, without the start.

    Raises:
        UserError: evaluate.py failed.
    """
    results = folder / f"labels{processes}"
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"] * (processes > 1)
    flags = ["--data_path", folder / "pictures", "--model_weight", weights, "--device", "cpu", "--save_dir", results]
    threads = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // processes))}  # torchrun's own default is 1
    with subprocess.Popen(
        [sys.executable, *launcher, SCRIPT, *flags, "--split", "test"],
        env={**os.environ, **threads}, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    ) as run:  # fmt: skip
        try:
            said = run.communicate()[1]
        except BaseException:
            run.terminate()  # and torchrun ends its workers, which it could not if it were killed
            raise
    if run.returncode:
        lines = [line for line in said.splitlines() if line.startswith("error: ")] or ["killed"]
        raise UserError(f"folder of pictures, {processes} process(es): not run ({lines[0]})")
    written = sorted(path.stat().st_mtime_ns for path in results.glob("*.png"))
    return (written[-1] - written[processes]) / 1e9 / (len(written) - 1 - processes)
