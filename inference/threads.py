"""Fewer threads for the rest of a picture when its threads wait for each other, as they do beside another busy process.

A parallel region ends when its last thread does. A thread that shares its core is late by a slice of the scheduler's
time, in each of some hundred regions of a picture: with one busy process on two cores, two threads take longer than one
(docs/speed.md). Other processes come and go, so every picture begins with all threads.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Hashable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

SLOW = 2.0  # times the usual duration, from which on the threads wait for each other
WINDOW = 0.02  # seconds of usual work that are looked at together
LEAST = 0.008  # seconds lost in it that are worth a change: a single slice of the scheduler's is no load
FORGET = 1.02  # by which a usual duration grows with each part: the processor's clock changes


@contextmanager
def half_of_the_threads() -> Iterator[None]:
    """Leaves cores to others, for short work that nobody watches: then each thread finds a free one."""
    most = torch.get_num_threads()
    torch.set_num_threads(max(1, most // 2))
    try:
        yield
    finally:
        torch.set_num_threads(most)


class Threads:
    """Watches how long the parts of a picture take, and takes threads away from the picture that waits for them.

    Each part of the network is compared with the least that the same part took with all threads.
    """

    def __init__(self) -> None:
        self.usual: dict[Hashable, float] = {}
        self._picture = (
            threading.local()
        )  # most, the caller's threads, 0 outside of a picture; spent and expected seconds

    @contextmanager
    def picture(self) -> Iterator[None]:
        """Begins a picture, or goes on with the one that was begun; at its end the caller's threads are back."""
        now = self._picture
        if getattr(now, "most", 0):
            yield
            return
        now.most, now.spent, now.expected = torch.get_num_threads(), 0.0, 0.0
        try:
            yield
        finally:
            torch.set_num_threads(now.most)
            now.most = 0

    @contextmanager
    def part(self, key: Hashable) -> Iterator[None]:
        """Times a part of a picture; parts of one key take equally long."""
        now = self._picture
        if getattr(now, "most", 0) < 2:
            yield
            return
        start = time.perf_counter()
        yield
        self.took(key, time.perf_counter() - start)

    def took(self, key: Hashable, seconds: float) -> None:
        """Learns how long a part took; if the picture waits, the next has fewer threads: N - 1, then half of them."""
        now, count = self._picture, torch.get_num_threads()
        usual = self.usual.get(key, seconds)
        if count == now.most:
            self.usual[key] = usual = min(seconds, usual * FORGET)
        now.spent += seconds
        now.expected += usual * now.most / count
        if now.spent > max(SLOW * now.expected, now.expected + LEAST) and count > 1:
            torch.set_num_threads(count - 1 if count == now.most else count // 2)
            now.spent = now.expected = 0.0
        elif now.expected > WINDOW:
            now.spent = now.expected = 0.0


class Watched(nn.Module):
    """Layers whose duration says whether a picture's threads wait for each other."""

    def __init__(self, layers: nn.Module, threads: Threads):
        super().__init__()
        self.layers = layers
        self.threads = threads

    def forward(self, *inputs: Tensor) -> Tensor:
        with self.threads.part((id(self), inputs[0].shape)):
            return self.layers(*inputs)
