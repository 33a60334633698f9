"""A pipeline of threads: while one frame is predicted, the next is decoded and the previous one is drawn.

OpenCV and PyTorch release Python's lock while they compute, so with enough cores the slowest stage sets the pace.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

_END = object()
_DEPTH = 2  # items that may wait before each function; bounds the memory
_POLL = 0.1  # seconds between two looks at whether the run is over
_PATIENCE = 3.0  # seconds that a source, which may be waiting for a camera, gets to end


def run_stages(
    source: Iterable,
    foreground: Callable[[Any], Any],
    background: Iterable[Callable[[Any], Any]] = (),
    stopped: Callable[[], bool] = lambda: False,
) -> list[float]:
    """Passes every item of a source through functions, in order, each function working on another item.

    Returns the seconds that the source and each function were busy. The first exception of any of them ends the run
    and is raised here.

    Args:
        source: iterated in a thread of its own.
        foreground: called with each item in the caller's thread; its result goes to the first of `background`.
        background: called in one thread each, with the result of the function before. None is not passed on.
        stopped: asked before each item; once it is true no more are taken, and those past `foreground` are finished.
    """
    items = iter(source)
    stages = _Stages([lambda _: next(items, _END), foreground, *background], stopped)
    indices = [0, *range(2, len(stages.functions))]
    producer, *workers = [threading.Thread(target=stages.work, args=(index,), daemon=True) for index in indices]
    for thread in (producer, *workers):
        thread.start()
    stages.work(1)
    for thread in workers:
        thread.join()
    producer.join(_PATIENCE)
    if stages.failures:
        raise stages.failures[0]
    return stages.seconds


class _Stages:
    """The functions, with a queue before each but the source (0), and what their threads share."""

    def __init__(self, functions: list[Callable[[Any], Any]], stopped: Callable[[], bool]):
        self.functions = functions
        self.stopped = stopped
        self.queues = [queue.Queue(_DEPTH) for _ in functions]
        self.seconds = [0.0] * len(functions)
        self.failures: list[BaseException] = []

    def over(self, index: int) -> bool:
        return bool(self.failures) or index == len(self.functions) or (index < 2 and self.stopped())

    def put(self, index: int, item: object) -> None:
        while not self.over(index):
            with contextlib.suppress(queue.Full):
                return self.queues[index].put(item, timeout=_POLL)

    def take(self, index: int) -> Any:
        while not self.over(index):
            if index == 0:
                return None
            with contextlib.suppress(queue.Empty):
                return self.queues[index].get(timeout=_POLL)
        return _END

    def work(self, index: int) -> None:
        """Runs one function until the end: an exception, a stop, or the last item."""
        try:
            while (item := self.take(index)) is not _END:
                start = time.perf_counter()
                result = self.functions[index](item)
                self.seconds[index] += time.perf_counter() - start
                if result is _END:
                    break
                if result is not None:
                    self.put(index + 1, result)
        except BaseException as error:  # run_stages raises it
            self.failures.append(error)
        self.put(index + 1, _END)
