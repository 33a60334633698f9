"""Measurements beside other busy processes: idle and loaded repetitions of the same calls alternate."""

from __future__ import annotations

import contextlib
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from speed.timing import compare, interleave, spread
from utils import UserError

MOST = 64  # processes
SETTLE = 0.1  # seconds for the scheduler after the processes have begun to count, or have stopped
COUNTING = Path(__file__).with_name("counting.py")


class Usage(NamedTuple):
    """What a call took of the process that made it, all its threads together."""

    seconds: float
    cpu_s: float = 0.0
    switches: int = 0  # how often the system took a core away from one of its threads


class LoadDied(Exception):
    """A process of the load ended by itself; the message names it."""


class Load:
    """Processes that count in a Python loop, or wait for a line on a pipe and use no CPU; they end with the block.

    They start with the priority and the cores of this process. If this one is killed, they read the end of their pipe.

    Args:
        count: of the processes, 1 to MOST.

    Raises:
        UserError: the system starts no more processes; those that were started are ended.
    """

    def __init__(self, count: int):
        self.count = count
        self.processes: list[subprocess.Popen[str]] = []
        self.start()

    def start(self) -> None:
        """Starts the processes, which wait, in the place of those that are there."""
        self.end()
        self.counting: bool | None = None  # None until all were told
        # Isolated: no module of speed/ or of the user's is imported instead of the standard library's.
        command = [sys.executable, "-I", "-S", str(COUNTING)]
        try:
            for _ in range(self.count):
                pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
                self.processes.append(subprocess.Popen(command, **pipes, text=True))
        except OSError as error:
            number = len(self.processes) + 1
            self.end()
            raise UserError(
                f"--load is {self.count}, but process {number} cannot be started ({error.strerror}); give a smaller one"
            ) from None

    def __enter__(self) -> Load:
        return self

    def __exit__(self, *error: object) -> None:
        self.end()

    def end(self) -> None:
        """Ends the processes."""
        for process in self.processes:
            process.kill()
        for process in self.processes:
            process.communicate()
        self.processes = []

    def switch(self, counting: bool) -> float:
        """Lets the processes count or wait; once all of them do, returns the CPU seconds that they have used so far.

        Raises:
            LoadDied: one of them ended; the others may hold answers that were not read: call start.
        """
        if counting != self.counting:
            self._tell(counting)
            self.counting = counting
            time.sleep(SETTLE)
        return self._tell(counting)

    def _tell(self, counting: bool) -> float:
        for index, process in enumerate(self.processes):
            try:
                process.stdin.write("count\n" if counting else "wait\n")
                process.stdin.flush()
            except OSError:
                raise LoadDied(self._death(index)) from None
        answers = [process.stdout.readline() for process in self.processes]
        if "" in answers:
            raise LoadDied(self._death(answers.index("")))
        return sum(map(float, answers))

    def _death(self, index: int) -> str:
        process = self.processes[index]
        status = process.wait()
        how = f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"
        return f"load process {index + 1} of {self.count} (pid {process.pid}) {how}"


def open_load(count: int) -> contextlib.AbstractContextManager[Load | None]:
    """Returns a block with a load, or with None for 0 processes."""
    return Load(count) if count else contextlib.nullcontext()


class Measured:
    """The repetitions of one call: idle, and beside a load if there is one.

    Attributes:
        idle: without a load.
        loaded: beside it.
        shares: of the loaded ones, how many cores the load had meanwhile.
        death: why these figures are of no use: a process of the load died meanwhile. Empty if none did.
    """

    def __init__(self, load: Load | None = None) -> None:
        self.load = load
        self.idle: list[Usage] = []
        self.loaded: list[Usage] = []
        self.shares: list[float] = []
        self.death = ""

    def add(self, usage: Usage, share: float | None = None) -> None:
        """Adds a repetition; with a share, it is a loaded one."""
        (self.idle if share is None else self.loaded).append(usage)
        if share is not None:
            self.shares.append(share)

    def figures(self, baseline: Measured) -> dict[str, float]:
        """Returns the figures of a row: the idle repetitions next to the baseline's, then the loaded ones."""
        figures = compare(*([usage.seconds for usage in one.idle] for one in (self, baseline)))
        if self.load is None:
            return figures
        figures |= spread("loaded_", [usage.seconds for usage in self.loaded])
        figures["slowdown"] = figures["loaded_median_ms"] / figures["median_ms"]
        for prefix, usages in (("", self.idle), ("loaded_", self.loaded)):
            figures[f"{prefix}cpu_ms"] = 1e3 * statistics.median(usage.cpu_s for usage in usages)
            figures[f"{prefix}switches"] = statistics.median(usage.switches for usage in usages)
        return {**figures, "load": self.load.count, "load_cores": statistics.median(self.shares)}


def measure(timers: Sequence[Callable[[], Usage]], repeats: int, load: Load | None) -> list[Measured]:
    """Calls each timer in turn, as interleave; with a load, each once while that waits, then each once while it counts.

    Both begin with a warm-up that does not count. The load waits when this returns. If a process of it dies, the row
    that was being measured has its death, and all are started anew.
    """
    results = [Measured(load) for _ in timers]
    if load is None:
        for result, usages in zip(results, interleave(timers, repeats), strict=True):
            result.idle = usages
        return results
    for repetition in range(repeats + 1):
        for counting in (False, True):
            for timer, result in zip(timers, results, strict=True):
                try:
                    before, start = load.switch(counting), time.perf_counter()
                    usage = timer()
                    share = (load.switch(counting) - before) / (time.perf_counter() - start)
                except LoadDied as death:
                    result.death = result.death or str(death)
                    load.start()
                    continue
                if repetition:
                    result.add(usage, share if counting else None)
    try:
        load.switch(False)
    except LoadDied:  # after the last row
        load.start()
    return results


def finish_rows(rows: Sequence[dict], results: Sequence[Measured], baseline: Measured) -> list[dict]:
    """Returns rows with their figures; those during which a process of the load died are left out, each by a line."""
    finished = []
    for row, result in zip(rows, results, strict=True):
        death = result.death or ("" if baseline.idle else baseline.death)
        if death:
            print(f"{row['name']}: not measured ({death})", flush=True)
        else:
            finished.append({**row, **result.figures(baseline)})
    return finished
