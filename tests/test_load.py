"""Measurements beside busy processes: when these run, when they wait, and that none outlives the benchmark."""

from __future__ import annotations

import functools
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import Started, assert_user_error, refused, run_script

from frames.classes import CITYSCAPES
from speed import predictions, threads
from speed.load import MOST, Load, Measured, Usage, finish_rows, measure, open_load
from speed.predictions import show, stages, usage_of
from speed.timing import end_with_parent, fresh_process, report
from street.scene import draw_scene
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

    def call(side: str) -> Usage:
        calls.append((side, load.counting))
        return Usage(float(len(calls)))

    with Load(1) as load:
        a, b = measure([functools.partial(call, side) for side in "ab"], 3, load)
        assert load.counting is False
    assert calls == [("a", False), ("b", False), ("a", True), ("b", True)] * 4
    assert [usage.seconds for usage in a.idle + b.loaded] == [5, 9, 13, 8, 12, 16]  # without the first round


def test_the_load_has_cores_when_loaded_only() -> None:
    """A load that sleeps when it should count, so that every ratio is 1; or one that goes on beside idle calls."""
    with Load(2) as load:
        begun = load.switch(False)
        time.sleep(0.3)
        idle = load.switch(False)
        assert idle - begun < 0.05
        wait_until(lambda: load.switch(True) > idle + 0.3)
        used = load.switch(False)
        time.sleep(0.3)
        assert load.switch(False) - used < 0.05
        (result,) = measure([lambda: time.sleep(0.2) or Usage(0.2)], 3, load)
    assert len(result.shares) == 3 and min(result.shares) > 0.02


@pytest.mark.parametrize("loaded", [False, True])
def test_a_dead_load_process_costs_its_row_only(loaded: bool, capsys) -> None:
    """A row that was measured beside less than it says; or hours of other rows that are lost with it."""
    dead = []

    def call(side: str) -> Usage:
        if side == "b" and load.counting == loaded and not dead:
            dead.append(pids(load)[1])
            os.kill(dead[0], signal.SIGKILL)
        return Usage(1.0)

    with Load(2) as load:
        results = measure([functools.partial(call, side) for side in "abc"], 3, load)
        assert len(pids(load)) == 2 and dead[0] not in pids(load) and all(map(running, pids(load)))
    rows = finish_rows([{"name": f"row {side}"} for side in "abc"], results, results[0])
    assert [row["name"] for row in rows] == ["row a", "row c"]
    assert all(len(one.idle) == len(one.loaded) == 3 for one in (results[0], results[2]))
    line = f"row b: not measured (load process 2 of 2 (pid {dead[0]}) was killed by signal 9)\n"
    assert capsys.readouterr().out == line


def test_without_a_baseline_no_row_can_be_finished(capsys) -> None:
    """A traceback where the load died in every repetition of the baseline."""
    baseline, other = Measured(), Measured()
    baseline.death, other.idle = "load process 1 of 1 (pid 7) ended with status 1", [Usage(1.0)]
    assert finish_rows([{"name": "row"}], [other], baseline) == []
    assert capsys.readouterr().out == f"row: not measured ({baseline.death})\n"


def test_tables_and_rows_under_load(tmp_path, capsys) -> None:
    """A table without the ratio, or a ratio that is upside down."""
    baseline, ours = Measured(SimpleNamespace(count=2)), Measured(SimpleNamespace(count=2))
    for one, idle, loaded in ((baseline, 0.4, 0.8), (ours, 0.1, 0.15)):
        for extra in (0, 0.001, 0.002):
            one.add(Usage(idle + extra, 0.02, 3))
            one.add(Usage(loaded + extra, 0.05, 70), 1.5)
    rows = finish_rows([{"name": "baseline"}, {"name": "ours"}], [baseline, ours], baseline)
    (row,) = report(iter([("title", rows)]), False, None)[1:]
    assert row["ratio"] == pytest.approx(401 / 101) and row["slowdown"] == pytest.approx(151 / 101)
    assert (row["switches"], row["loaded_switches"], row["load"], row["load_cores"]) == (3, 70, 2, 1.5)
    assert (row["cpu_ms"], row["loaded_cpu_ms"]) == pytest.approx((20, 50))
    lines = capsys.readouterr().out.splitlines()
    assert lines[5].split("  ")[0] == "title, idle and beside 2 counting processes"
    assert " ".join(lines[7].split()) == "ours 101.00 100.00 - 102.00 151.00 150.00 - 152.00 1.50"


@pytest.mark.parametrize("count", [-1, MOST + 1])
def test_wrong_counts_are_refused(count: int, tmp_path) -> None:
    """A negative count that measures nothing under load, or one that starts processes until a machine stands still."""
    assert_user_error(run_script("benchmark.py", "--load", count, cwd=tmp_path), "--load", count, "0 to 64")


def test_load_and_training_rows_are_refused(tmp_path) -> None:
    """A flag that is silently ignored."""
    assert_user_error(run_script("benchmark.py", "--load", 1, "--train", cwd=tmp_path), "--load 1", "--train")


def test_no_load_is_no_process() -> None:
    """Rows that are called idle, measured beside a process of ours."""
    with open_load(0) as load:
        assert load is None


def test_a_system_without_more_processes_is_one_line(monkeypatch) -> None:
    """A traceback, and the processes that could be started left behind."""
    started = []
    start = subprocess.Popen

    def scarce(*arguments: object, **how: object) -> subprocess.Popen:
        if len(started) == 2:
            raise BlockingIOError(11, "Resource temporarily unavailable")
        started.append(start(*arguments, **how))
        return started[-1]

    with monkeypatch.context() as patch:
        patch.setattr(subprocess, "Popen", scarce)
        with refused("--load", "3"):
            Load(3)
    assert [process.returncode for process in started] == [-signal.SIGKILL] * 2


def hold_a_load(path: str, counting: bool) -> int:
    """In a process of its own: opens a load, or one and a process as of an engine, says which these are, and waits."""

    def main() -> None:
        with Load(2) as load, fresh_process() as pool:
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
    ("number", "counting"),
    [(signal.SIGKILL, False), (signal.SIGKILL, True), (signal.SIGTERM, True), (signal.SIGINT, True)],
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


def test_no_process_outlives_an_error() -> None:
    """The same after a traceback of ours."""
    with pytest.raises(ZeroDivisionError), Load(2) as load:
        left = pids(load)
        load.switch(True)
        1 / 0  # noqa: B018
    assert not any(map(running, left))


@pytest.fixture
def street(monkeypatch) -> np.ndarray:
    """A picture, which is that of this process, whose labels are its red values."""
    image = draw_scene(0, 64, 96)[0]

    def predict(image: np.ndarray) -> np.ndarray:
        callers.append(threading.current_thread())
        return image[..., 0] % 19

    callers: list[threading.Thread] = []
    predict.callers = callers
    predict.classes = CITYSCAPES
    monkeypatch.setattr(predictions, "_image", [])
    monkeypatch.setitem(stages, "picture-to-labels", predict)
    show(image)
    return image


def test_the_second_thread_is_another_one(street, tmp_path) -> None:
    """A row that says it was measured in a second thread, and was not."""
    threads._open("second-thread", tmp_path)
    assert usage_of("second-thread").seconds > 0
    usage_of("second-thread")
    first, *others = stages.pop("second-thread") and stages["picture-to-labels"].callers
    assert first is threading.main_thread() and len(set(others)) == 1 and others[0] is not first


def test_the_viewer_row_passes_every_frame(street, tmp_path) -> None:
    """Milliseconds of a frame that are those of a shorter video, or of one that was not written."""
    threads.write_stream(tmp_path / "stream.webm", street)
    predict = stages["picture-to-labels"]
    assert threads.run_viewer(predict, tmp_path / "stream.webm") == threads.FRAMES == len(predict.callers)
    assert set(predict.callers) == {threading.main_thread()}
    assert {path.name for path in tmp_path.iterdir()} == {"stream.webm", "stream.result.webm"}
    threads.write_stream(tmp_path / "short.webm", street, 2)
    assert threads.run_viewer(predict, tmp_path / "short.webm") == 2


def test_rows_beside_other_threads(weights, tmp_path, capsys) -> None:
    """An engine that cannot be opened a second time, or a row without its loaded figures."""
    chosen = [SimpleNamespace(path=weights, backend="torch", precision=p, name=f"torch {p}") for p in ("fp32", "bf16")]
    with Load(1) as load:
        rows = threads.thread_rows(chosen, tmp_path, draw_scene(0, 64, 96)[0], 3, load)
    assert [row["name"] for row in rows] == [
        "torch fp32, main thread, 64x96",
        "torch fp32, second thread, 64x96",
        "torch fp32, viewer, a frame of a video, 64x96",
    ]
    for row in rows:
        assert row["loaded_median_ms"] > 0 and row["slowdown"] > 0 and row["load"] == 1 and row["load_cores"] > 0
        assert row["cpu_ms"] > 0 and row["loaded_cpu_ms"] > 0 and row["loaded_switches"] >= 0
        assert row["baseline_median_ms"] == rows[0]["median_ms"]
