"""Measurements beside other busy processes: idle and loaded repetitions of the same calls alternate."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence

from speed.timing import compare, interleave, spread
from utils import UserError

MOST = 64  # processes
SETTLE = 0.1  # seconds for the scheduler after the processes have begun to count, or have stopped
# The end of stdin, however it comes, ends the process.
COUNTING = """
import signal, sys, threading

def count():
    while allowed.wait():
        sum(range(1000))

signal.signal(signal.SIGINT, signal.SIG_IGN)
allowed = threading.Event()
threading.Thread(target=count, daemon=True).start()
for line in sys.stdin:
    (allowed.set if line == "count\\n" else allowed.clear)()
"""


class Load:
    """Processes that count in a Python loop, or wait for a line on a pipe and use no CPU.

    They have the priority and the cores of this process.

    Args:
        processes: that run COUNTING.
    """

    def __init__(self, processes: Sequence[subprocess.Popen[str]]):
        self.processes = processes
        self.counting = False

    def switch(self, counting: bool) -> None:
        """Lets the processes count or wait.

        Raises:
            UserError: one of them has ended.
        """
        if counting == self.counting:
            return
        self.counting = counting
        for process in self.processes:
            try:
                process.stdin.write("count\n" if counting else "wait\n")
                process.stdin.flush()
            except OSError:
                raise UserError(f"--load: process {process.pid} was killed; start the benchmark again") from None
        time.sleep(SETTLE)


@contextlib.contextmanager
def open_load(count: int) -> Iterator[Load | None]:
    """Runs a block beside `count` processes, which end with the block; None for 0 processes.

    Raises:
        UserError: the system starts no more processes.
    """
    processes: list[subprocess.Popen[str]] = []
    try:
        for _ in range(count):
            # Isolated: no module of the user's is imported instead of the standard library's.
            command = [sys.executable, "-I", "-S", "-c", COUNTING]
            processes.append(subprocess.Popen(command, stdin=subprocess.PIPE, text=True))
        yield Load(processes) if processes else None
    except OSError as error:
        if len(processes) == count:  # not from here
            raise
        raise UserError(
            f"--load is {count}, but process {len(processes) + 1} cannot be started ({error.strerror})"
        ) from None
    finally:
        for process in processes:
            process.kill()
        for process in processes:
            process.communicate()


def measure(timers: Sequence[Callable[[], float]], repeats: int, load: Load | None) -> list[dict[str, float]]:
    """Calls functions that return their own seconds in turn; with a load, each once idle, then each once beside it.

    Returns:
        The figures of each next to the figures of the first, the baseline.
    """
    if load is None:
        results = interleave(timers, repeats)
        return [compare(seconds, results[0]) for seconds in results]
    idle: list[list[float]] = [[] for _ in timers]
    busy: list[list[float]] = [[] for _ in timers]
    for repetition in range(repeats + 1):
        for counting, results in ((False, idle), (True, busy)):
            load.switch(counting)
            for timer, seconds in zip(timers, results, strict=True):
                taken = timer()
                if repetition:  # the first is a warm-up
                    seconds.append(taken)
    load.switch(False)
    figures = []
    for alone, beside in zip(idle, busy, strict=True):
        row = compare(alone, idle[0]) | spread("loaded_", beside)
        row["slowdown"] = row["loaded_median_ms"] / row["median_ms"]
        figures.append({**row, "load": len(load.processes)})
    return figures
