"""Interleaved timing with spread, rows of results and their tables, and processes that start with nothing loaded."""

from __future__ import annotations

import json
import multiprocessing
import os
import platform
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch

from utils import write_file

FRAME = (1024, 2048)
SIZES = (FRAME, (512, 1024), (360, 480))
STAGES = ("picture-to-labels", "network")  # "network" ends at the logits at 1/8
WARM_UP = 0.3  # seconds of each call on a GPU, whose clock is low after idling
CPU = torch.device("cpu")
Groups = Iterator[tuple[str, list[dict]]]  # titles, and rows with the same figures

# Header, the figure that a row must have for this column, and the text of a cell.
COLUMNS = (
    ("images/s", "images_per_s", "{images_per_s:.1f}"),
    ("baseline images/s", "baseline_images_per_s", "{baseline_images_per_s:.1f}"),
    ("ms", "median_ms", "{median_ms:.2f}"),
    ("spread", "low_ms", "{low_ms:.2f} - {high_ms:.2f}"),
    ("baseline ms", "baseline_median_ms", "{baseline_median_ms:.2f}"),
    ("spread", "baseline_low_ms", "{baseline_low_ms:.2f} - {baseline_high_ms:.2f}"),
    ("times faster", "ratio", "{ratio:.2f}"),
    ("peak MiB / baseline", "peak_mib", "{peak_mib:.0f} / {baseline_peak_mib:.0f}"),
    ("equal labels", "equal", "{equal:.3%}"),
)
LOADED_COLUMNS = (
    ("idle ms", "median_ms", "{median_ms:.2f}"),
    ("spread", "low_ms", "{low_ms:.2f} - {high_ms:.2f}"),
    ("loaded ms", "loaded_median_ms", "{loaded_median_ms:.2f}"),
    ("spread", "loaded_low_ms", "{loaded_low_ms:.2f} - {loaded_high_ms:.2f}"),
    ("loaded / idle", "slowdown", "{slowdown:.2f}"),
)


def interleave(
    timers: Sequence[Callable[[], float]], repeats: int, device: torch.device = CPU
) -> tuple[list[float], ...]:
    """Calls functions that return their own seconds in turn, so that a drift of the machine's speed meets all alike.

    Returns the results of each without a warm-up: the first call, on a GPU at least WARM_UP seconds.
    """
    for timer in timers:
        start = time.perf_counter()
        timer()
        while device.type == "cuda" and time.perf_counter() - start < WARM_UP:
            timer()
    rounds = [[timer() for timer in timers] for _ in range(repeats)]
    return tuple(list(seconds) for seconds in zip(*rounds, strict=True))


def clock(call: Callable[[], object], device: torch.device = CPU, burst: int = 1) -> float:
    """Returns the seconds of a call, by CUDA events on a GPU: the mean of `burst` calls that are queued at once."""
    if device.type != "cuda":
        start = time.perf_counter()
        for _ in range(burst):
            call()
        return (time.perf_counter() - start) / burst
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    begin.record()
    for _ in range(burst):
        call()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1e3 / burst


def compare(ours: Sequence[float], baseline: Sequence[float]) -> dict[str, float]:
    """Returns medians and spread in ms, and how many times faster ours is, as the ratio of the medians."""
    figures = spread("", ours) | spread("baseline_", baseline)
    figures["ratio"] = figures["baseline_median_ms"] / figures["median_ms"]
    return figures


def spread(prefix: str, seconds: Sequence[float]) -> dict[str, float]:
    """Returns median, smallest and largest in ms, under names that begin with `prefix`."""
    figures = {"median": statistics.median(seconds), "low": min(seconds), "high": max(seconds)}
    return {f"{prefix}{name}_ms": 1e3 * value for name, value in figures.items()}


def make_row(name: str, stage: str, backend: str, precision: str, size: Sequence[int], **figures: object) -> dict:
    """Returns a row as --json writes it."""
    what = {"name": name, "stage": stage, "backend": backend, "precision": precision}
    return {**what, "height": size[0], "width": size[1], **figures}


def report(groups: Groups, markdown: bool, path: str | None) -> list[dict]:
    """Prints groups as they come; after each, writes all rows so far to a JSON file."""
    rows: list[dict] = []
    for title, group in groups:
        if group:
            print_rows(title, group, markdown)
        rows += group
        if path:
            write_file(path, json.dumps(rows, indent=2).encode())
    return rows


def print_rows(title: str, rows: Sequence[dict], markdown: bool) -> None:
    """Prints a group as a table of the COLUMNS whose figures it has, and a second one of LOADED_COLUMNS."""
    tables = [(title, COLUMNS)]
    if rows[0].get("load"):
        count = f"{rows[0]['load']} counting process{'' if rows[0]['load'] == 1 else 'es'}"
        tables.append((f"{title}, idle and beside {count}", LOADED_COLUMNS))
    for heading, choice in tables:
        columns = [(header, form) for header, key, form in choice if rows[0].get(key) is not None]
        lines = [[row["name"], *(form.format_map(row) for _, form in columns)] for row in rows]
        print("\n" + table([heading, *(header for header, _ in columns)], lines, markdown), flush=True)


def table(header: Sequence[str], lines: Sequence[Sequence[str]], markdown: bool) -> str:
    """Lays out text in columns, the first to the left and the others to the right."""
    if markdown:
        rule = ["---", *["--:"] * (len(header) - 1)]
        return "\n".join(f"| {' | '.join(cells)} |" for cells in (header, rule, *lines))
    widths = [max(map(len, column)) for column in zip(header, *lines, strict=True)]
    padded = [[row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])] for row in (header, *lines)]
    return "\n".join("  ".join(row).rstrip() for row in padded)


def fresh_process() -> ProcessPoolExecutor:
    """Returns a pool of one process that has loaded nothing yet; its first call starts it."""
    return ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))


def end_with_parent() -> None:
    """Ends this process of a pool when the one that started it is killed: it would wait for calls for ever.

    By a thread: not for a process that is forked.
    """

    def watch() -> None:
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def peak_memory() -> float:
    """Returns the highest memory use of this process so far in MiB, libraries included."""
    if sys.platform == "linux":  # there, getrusage passes on the peak of the process that started this one
        (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 1024
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def machine() -> str:
    """Returns the name of the processor, its cores and the version of PyTorch."""
    name = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").is_file():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), name)
    return f"{name}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, torch {torch.__version__}"
