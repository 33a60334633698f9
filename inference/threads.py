"""How many threads a prediction takes: all of the caller's, or fewer while something else keeps a core busy.

A parallel region ends when its last thread does. A thread that shares its core is late by a slice of the scheduler's
time, in each of some hundred regions of a picture: with one busy process on two cores, two threads take far longer than
one (docs/speed.md). Nobody can tell beforehand, so the durations decide.
"""

from __future__ import annotations

import functools
import math
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

SLOW, LATE = 1.4, 2  # after so many calls in a row that took so many times the usual, fewer threads are tried
LOST = 0.1  # share of the time that trying all threads again may cost
SETTLED = 2  # pairs of predictions of a size with all threads before fewer are tried
SIZES = 8  # that are remembered


class ThreadChoice:
    """Chooses a number of threads for one kind of work by what it took: call `choose`, work, call `record`.

    Args:
        most: the caller's number of threads; 1 leaves nothing to choose.
    """

    def __init__(self, most: int):
        self.most = most
        self.fewer = sorted({max(1, most - 1), max(1, most // 2)} - {most}, reverse=True)
        self.best = most
        self.seconds: dict[int, float] = {}  # the last duration by number of threads
        self.usual = math.inf  # with all threads while nothing else runs
        self.late = 0  # slow calls with all threads in a row
        self.since = 0.0  # seconds of work since all threads were tried
        self.coming: list[int] = []
        self._try([most] * SETTLED + self.fewer)

    def _try(self, counts: Sequence[int]) -> None:
        """Plans two calls with each of these numbers: in the first, an engine may have to prepare itself."""
        self.coming = [count for count in counts for _ in range(2)]

    def choose(self) -> int:
        """Returns the number of threads for the next call."""
        if self.coming:
            return self.coming[0]
        lost = self.seconds[self.most] - self.seconds[self.best]
        return self.most if self.since * LOST > lost else self.best

    def record(self, count: int, seconds: float) -> None:
        """Learns how long the work took with a number of threads."""
        self.seconds[count] = seconds
        self.since = 0.0 if count == self.most else self.since + seconds
        if self.coming:
            self.coming = self.coming[1:]
            if not self.coming:
                self.best = self._fastest()
        elif count != self.best:
            self.best = self._fastest()
        elif count == self.most:
            self.late = self.late + 1 if seconds > SLOW * self.usual else 0
            if self.late == 0:
                self.usual = min(self.usual, seconds)
            elif self.late == LATE:
                self.late, self.usual = 0, seconds  # if fewer are not faster, this is what it takes now
                self._try(self.fewer)

    def _fastest(self) -> int:
        return min(self.seconds, key=self.seconds.__getitem__)


class Threads:
    """Gives predictions as many threads as they are fastest with, up to those of the caller.

    Parts of a picture that take equally long, timed one by one, decide for themselves and for all that follows.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._choice = functools.lru_cache(SIZES)(lambda most, shape: ThreadChoice(most))
        self._best: dict[int, int] = {}  # of the caller's number, the one that was fastest last
        self._local = threading.local()

    @contextmanager
    def prediction(self) -> Iterator[None]:
        """Begins a prediction, or goes on with the one that was begun; at its end the caller's threads are back."""
        if getattr(self._local, "most", None):
            yield
            return
        self._local.most = most = torch.get_num_threads()
        torch.set_num_threads(self._best.get(most, most))
        try:
            yield
        finally:
            self._local.most = None
            torch.set_num_threads(most)

    @contextmanager
    def part(self, shape: Sequence[int]) -> Iterator[None]:
        """Times a part of a prediction; parts of one shape take equally long."""
        most = getattr(self._local, "most", None) or 1
        if most == 1:
            yield
            return
        with self._lock:
            choice = self._choice(most, tuple(shape))
            count = choice.choose()
        torch.set_num_threads(count)
        start = time.perf_counter()
        yield
        seconds = time.perf_counter() - start
        with self._lock:
            choice.record(count, seconds)
            self._best[most] = choice.best
        torch.set_num_threads(choice.best)
