"""Stages of work that run at once: while one frame is predicted, the next is decoded and the last is drawn.

Every stage but one has a thread of its own. OpenCV and PyTorch let go of Python's lock while they compute, so the
slowest stage sets the pace, as far as there are cores for the others.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

_END = object()
_POLL = 0.1  # seconds between two looks at whether another stage has failed
_PATIENCE = 3.0  # seconds that a source, which may wait for a camera, gets to end


def run_stages(
    source: Iterable,
    foreground: Callable[[Any], Any],
    background: Iterable[Callable[[Any], Any]] = (),
    stopped: Callable[[], bool] = lambda: False,
    depth: int = 2,
) -> list[float]:
    """Passes every item of a source through functions, in order, each function at work on another item.

    Args:
        source: iterated in a thread.
        foreground: called in the caller's thread with each item; what it returns goes on, None goes no further.
        background: called in a thread each, in turn, with what the one before returned; None goes no further.
        stopped: asked before each item; once it is true no more are taken, and what has passed the foreground is
            finished.
        depth: items that may wait before each function; they bound the memory.

    Returns:
        The seconds that the source and each of the functions were busy.

    Raises:
        What a function or the source raised first, after every thread has ended.
    """
    background = list(background)
    queues = [queue.Queue(depth) for _ in range(1 + len(background))]
    seconds = [0.0] * (2 + len(background))
    failures: list[BaseException] = []
    finished = threading.Event()

    def put(index: int, item: object) -> None:
        while not failures and not finished.is_set():
            with contextlib.suppress(queue.Full):
                queues[index].put(item, timeout=_POLL)
                return

    def take(index: int) -> Any:
        while not failures and not (index == 0 and stopped()):
            with contextlib.suppress(queue.Empty):
                return queues[index].get(timeout=_POLL)
        return _END

    def timed(index: int, function: Callable, *arguments: object) -> Any:
        start = time.perf_counter()
        try:
            return function(*arguments)
        finally:
            seconds[index] += time.perf_counter() - start

    def produce() -> None:
        try:
            items = iter(source)
            while not failures and not stopped():
                item = timed(0, next, items, _END)
                if item is _END:
                    break
                put(0, item)
        except BaseException as error:
            failures.append(error)
        put(0, _END)

    def consume(index: int, function: Callable[[Any], Any]) -> None:
        """Takes from one queue and puts into the next, until the end comes."""
        try:
            while (item := take(index)) is not _END:
                result = timed(index + 1, function, item)
                if result is not None and index + 1 < len(queues):
                    put(index + 1, result)
        except BaseException as error:  # raised again below, in the caller's thread
            failures.append(error)
        if index + 1 < len(queues):
            put(index + 1, _END)

    producer = threading.Thread(target=produce, daemon=True)
    threads = [
        threading.Thread(target=consume, args=(index, function), daemon=True)
        for index, function in enumerate(background, 1)
    ]
    for thread in [producer, *threads]:
        thread.start()
    consume(0, foreground)
    for thread in threads:
        thread.join()
    finished.set()
    producer.join(_PATIENCE)
    if failures:
        raise failures[0]
    return seconds
