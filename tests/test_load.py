"""Measurements beside busy processes: when these run, when they wait, and that none outlives the benchmark."""

from __future__ import annotations

import functools
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Started, assert_user_error, refused, run_script

from speed.load import MOST, Load, measure, open_load
from speed.timing import end_with_parent, fresh_process
from utils import run_cli

PATIENCE = 60  # seconds for what takes a moment, on a machine that has other work


def running(pid: int) -> bool:
    """Whether a process is there, and not only its exit status for a parent that does not ask."""
    result = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True)
    return result.stdout.strip()[:1] not in ("", "Z")


def wait_until(condition: Callable[[], bool]) -> None:
    """Waits for a condition that has to come true."""
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def pids(load: Load) -> list[int]:
    """The processes of a load."""
    return [process.pid for process in load.processes]


def test_idle_and_loaded_repetitions_alternate() -> None:
    """All idle ones first, then all loaded ones: their ratio would hold how the machine's speed drifted."""
    calls: list[tuple[str, bool]] = []

    def call(side: str) -> float:
        calls.append((side, load.counting))
        return float(len(calls))

    with open_load(1) as load:
        a, b = measure([functools.partial(call, side) for side in "ab"], 3, load)
        assert load.counting is False
    assert calls == [("a", False), ("b", False), ("a", True), ("b", True)] * 4
    assert a["ratio"] == 1 and a["load"] == b["load"] == 1
    assert a["slowdown"] == pytest.approx(11 / 9) and b["slowdown"] == pytest.approx(12 / 10)


def test_the_load_has_a_core_when_loaded_only() -> None:
    """Processes that wait busily, or that do not count when they are told to."""

    def cpu_seconds() -> float:
        fields = Path(f"/proc/{pids(load)[0]}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    with open_load(1) as load:
        for counting in (True, False):
            load.switch(counting)
            before = cpu_seconds()
            time.sleep(0.5)
            assert (cpu_seconds() - before > 0.05) == counting


def test_a_dead_load_process_ends_the_measurement() -> None:
    """Figures under load that were measured beside nothing."""
    with open_load(2) as load:
        pid = pids(load)[1]
        os.kill(pid, signal.SIGKILL)
        load.processes[1].wait()
        with refused("--load", pid):
            measure([lambda: 1.0], 3, load)


@pytest.mark.parametrize("count", [-1, MOST + 1])
def test_wrong_counts_are_refused(count: int, tmp_path) -> None:
    """A thousand busy processes."""
    assert_user_error(run_script("benchmark.py", "--load", count, cwd=tmp_path), "--load", count, MOST)


def test_a_system_without_more_processes_is_one_line(monkeypatch) -> None:
    """A traceback, and the processes that could be started left behind."""
    started = []
    start = subprocess.Popen

    def scarce(*arguments: object, **how: object) -> subprocess.Popen:
        if len(started) == 2:
            raise BlockingIOError(11, "Resource temporarily unavailable")
        started.append(start(*arguments, **how))
        return started[-1]

    with monkeypatch.context() as patch, refused("--load", "3"):
        patch.setattr(subprocess, "Popen", scarce)
        with open_load(3):
            pass
    assert [process.returncode for process in started] == [-signal.SIGKILL] * 2


def hold_a_load(path: str, counting: bool) -> int:
    """In a process of its own: opens a load, or one and a process as of an engine, says which these are, and waits."""

    def main() -> None:
        with open_load(2) as load, fresh_process() as pool:
            load.switch(counting)
            started = pids(load)
            if not counting:
                pool.submit(end_with_parent).result()
                started.append(pool.submit(os.getpid).result())
            Path(path).with_suffix(".tmp").write_text(" ".join(map(str, started)))
            Path(path).with_suffix(".tmp").rename(path)
            while True:
                time.sleep(1)

    try:
        run_cli(main)
    except SystemExit as end:
        return end.code


@pytest.mark.parametrize(
    ("number", "counting"), [(signal.SIGKILL, False), (signal.SIGKILL, True), (signal.SIGINT, True)]
)
def test_no_process_outlives_the_benchmark(number: int, counting: bool, tmp_path) -> None:
    """Processes that take a core, or memory, for ever after a benchmark that was ended."""
    path = tmp_path / "pids"
    started = Started(hold_a_load, str(path), counting, cwd=tmp_path)
    wait_until(lambda: path.exists() or started.returncode is not None)
    left = [int(pid) for pid in path.read_text().split()]
    assert len(left) >= 2 and all(map(running, left))
    started.send_signal(number)
    started.wait()
    wait_until(lambda: not any(map(running, left)))
