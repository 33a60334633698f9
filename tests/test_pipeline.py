"""The pipeline of threads."""

from __future__ import annotations

import threading
import time

import pytest

from viewing import pipeline
from viewing.pipeline import run_stages


def test_every_item_passes_every_stage_in_order() -> None:
    """Frames that overtake each other, or the last of them lost in a queue."""
    seen = []
    seconds = run_stages(range(50), lambda x: 2 * x, [lambda x: x + 1, seen.append])
    assert seen == [2 * x + 1 for x in range(50)]
    assert len(seconds) == 4 and all(busy >= 0 for busy in seconds)


def test_none_goes_no_further() -> None:
    """A frame that could not be read is passed to the drawing."""
    seen = []
    run_stages(range(10), lambda x: x if x % 2 else None, [seen.append])
    assert seen == [1, 3, 5, 7, 9]


def test_stages_run_at_once() -> None:
    """A pipeline in name only: the times of the stages add up."""

    def work(x: int) -> int:
        time.sleep(0.02)
        return x

    start = time.perf_counter()
    seconds = run_stages((work(x) for x in range(15)), work, [work, work])
    assert time.perf_counter() - start < 0.7 * sum(seconds)
    assert min(seconds) >= 0.3


def test_source_does_not_run_ahead() -> None:
    """A fast decoder fills the memory while the network is slow."""
    ahead = []
    made = done = 0

    def source():
        nonlocal made
        for _ in range(30):
            made += 1
            yield made

    def slow(x: int) -> None:
        nonlocal done
        time.sleep(0.002)
        done += 1
        ahead.append(made - done)

    run_stages(source(), slow)
    assert max(ahead) <= 4


@pytest.mark.parametrize("where", ["source", "foreground", "draw", "write"])
@pytest.mark.parametrize("at", [0, 20])
def test_an_error_anywhere_ends_the_run(where: str, at: int) -> None:
    """A thread dies, and the others wait for it for ever; or its error is lost."""

    def fail(name: str, x: int) -> int:
        if name == where and x == at:
            raise ValueError(f"{name} {x}")
        return x

    caught = []

    def run() -> None:
        try:
            stages = [lambda x: fail("draw", x), lambda x: fail("write", x)]
            run_stages((fail("source", x) for x in range(1000)), lambda x: fail("foreground", x), stages)
        except ValueError as error:
            caught.append(str(error))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(20)
    assert not thread.is_alive() and caught == [f"{where} {at}"]


def test_stopped_finishes_what_was_begun() -> None:
    """After Ctrl-C, frames that were predicted are lost, or the run continues."""
    begun, written = [], []
    run_stages(
        iter(int, 1), lambda x: begun.append(x) or len(begun), [lambda x: x, written.append], lambda: len(begun) >= 5
    )
    assert written == [1, 2, 3, 4, 5]


def test_stopped_does_not_wait_for_a_source_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C does nothing while a camera gives no frame."""
    monkeypatch.setattr(pipeline, "_PATIENCE", 0.1)
    release, begun = threading.Event(), time.perf_counter()

    def camera():
        yield 0
        release.wait(60)

    run_stages(camera(), lambda x: None, stopped=lambda: time.perf_counter() - begun > 0.2)
    release.set()
    assert time.perf_counter() - begun < 10
