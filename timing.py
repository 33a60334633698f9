"""How a speed is measured and shown: everything that is compared runs alternately, medians and spread are told."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch


def alternate(functions: Sequence[Callable[[int], object]], repeats: int) -> list[list[float]]:
    """Times functions of the repetition's number in turn, after one call of each.

    Run one after the other, they would measure how the machine's speed drifts.

    Returns:
        The seconds of each call, a list for each function.
    """
    times: list[list[float]] = [[] for _ in functions]
    for repeat in range(-1, repeats):
        for function, seconds in zip(functions, times, strict=True):
            start = time.perf_counter()
            function(max(repeat, 0))
            if repeat >= 0:
                seconds.append(time.perf_counter() - start)
    return times


def compare(ours: Sequence[float], baseline: Sequence[float]) -> dict[str, float]:
    """Returns medians and spread in ms, and how many times faster ours is, as the ratio of the medians."""
    row = {}
    for prefix, seconds in (("", ours), ("baseline_", baseline)):
        row[f"{prefix}median_ms"] = 1e3 * statistics.median(seconds)
        row[f"{prefix}low_ms"], row[f"{prefix}high_ms"] = 1e3 * min(seconds), 1e3 * max(seconds)
    row["ratio"] = row["baseline_median_ms"] / row["median_ms"]
    return row


def table(header: Sequence[str], lines: Sequence[Sequence[str]], markdown: bool) -> str:
    """Lays out text in columns, the first to the left and the others to the right."""
    if markdown:
        rule = ["---", *["--:"] * (len(header) - 1)]
        return "\n".join(f"| {' | '.join(cells)} |" for cells in (header, rule, *lines))
    widths = [max(len(cells[i]) for cells in (header, *lines)) for i in range(len(header))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ).rstrip()
        for cells in (header, *lines)
    )


def machine() -> str:
    """Names the processor, its cores and the versions."""
    name = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").is_file():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), name)
    return f"{name}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, torch {torch.__version__}"
