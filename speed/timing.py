"""What a network costs, and how a speed is measured and shown: what is compared runs alternately, with its spread."""

from __future__ import annotations

import functools
import multiprocessing
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch

WARM_UP = 0.3  # seconds of each function on a GPU: one that idled has a low clock


def alternate(functions: Sequence[Callable[[int], object]], repeats: int) -> list[list[float]]:
    """Times functions of the repetition's number in turn, after one call of each; see alternate_timed."""

    def timed(function: Callable[[int], object], repeat: int) -> float:
        start = time.perf_counter()
        function(repeat)
        return time.perf_counter() - start

    return alternate_timed([functools.partial(timed, function) for function in functions], repeats)


def alternate_timed(functions: Sequence[Callable[[int], float]], repeats: int) -> list[list[float]]:
    """Calls functions in turn that take the repetition's number and tell the seconds that they took.

    Run one after the other, they would measure how the machine's speed drifts. What the first call of each took is
    left out.

    Returns:
        The seconds of each call, a list for each function.
    """
    rounds = [[function(max(repeat, 0)) for function in functions] for repeat in range(-1, repeats)]
    return [list(seconds) for seconds in zip(*rounds[1:], strict=True)]


def seconds_of(call: Callable[[], object], device: torch.device, burst: int = 1) -> float:
    """Returns the seconds of a call, by CUDA events on a GPU; with `burst`, of one of that many queued at once."""
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


def alternate_on(
    device: torch.device, calls: Sequence[Callable[[], object]], repeats: int, burst: int = 1
) -> list[list[float]]:
    """Times functions in turn, after a warm-up; returns the seconds of each repetition, a list for each function."""
    for call in calls:
        start = time.perf_counter()
        while True:
            seconds_of(call, device)
            if device.type != "cuda" or time.perf_counter() - start > WARM_UP:
                break
    times: list[list[float]] = [[] for _ in calls]
    for _ in range(repeats):
        for call, seconds in zip(calls, times, strict=True):
            seconds.append(seconds_of(call, device, burst))
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


def in_fresh_process(function: Callable, *arguments: object) -> object:
    """Returns what a function returns in a process of its own, which has loaded nothing yet."""
    with fresh_process() as pool:
        return pool.submit(function, *arguments).result()


def fresh_process() -> ProcessPoolExecutor:
    """Returns one process, started by the first call that it gets, which has loaded nothing yet."""
    arguments = (multiprocessing.get_start_method(),)
    return ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), _start_processes_by, arguments)


def _start_processes_by(method: str) -> None:
    """Undoes that a spawned process spawns its own too: loader workers are to start as they do in training."""
    multiprocessing.set_start_method(method, force=True)


def peak_in_fresh_process(function: Callable, *arguments: object) -> float:
    """Returns the MiB that a process of its own takes at most for a call, libraries included."""
    return in_fresh_process(_peak_of, function, arguments)


def _peak_of(function: Callable, arguments: tuple) -> float:
    function(*arguments)
    return peak_memory()


def peak_memory() -> float:
    """Returns the MiB that this process has taken at most, libraries included."""
    if sys.platform == "linux":  # there, getrusage passes on the peak of the process that started this one
        (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 1024
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def machine() -> str:
    """Names the processor, its cores and the versions."""
    name = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").is_file():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), name)
    return f"{name}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, torch {torch.__version__}"
