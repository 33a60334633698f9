"""Fewer threads for the rest of a picture when its threads wait for each other, as they do beside another busy process.

A parallel region ends when its last thread does. A thread that shares its core is late by a slice of the scheduler's
time, in each of some hundred regions of a picture: with one busy process on two cores, two threads take longer than one
(docs/speed.md). Other processes come and go, so every picture begins with all threads.
"""

from __future__ import annotations

import ctypes
import functools
import itertools
import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from weakref import WeakValueDictionary

import torch
from torch import Tensor, nn

# Tried on two cores, where idle parts vary by half and a slice of the scheduler takes 3 to 4 ms: docs/speed.md.
SLOW = 2.0  # times the usual duration: then the threads wait for each other
WINDOW = 0.02  # seconds of usual work that are looked at together
LEAST = 0.008  # seconds lost in it that are worth a change: one slice is no load
FORGET = 1.02  # by which usual durations grow with each picture: the processor's clock changes
SIZES_KEPT = 8  # image sizes whose usual durations are known


@functools.cache
def _set_threads() -> Callable[[int], object]:
    """Returns what sets the number of threads of the calling Python thread alone.

    torch.set_num_threads also sets it for all Python threads that use PyTorch later.
    """
    if sys.platform == "linux":
        try:
            return ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so")).omp_set_num_threads
        except (OSError, AttributeError):  # built in another way
            pass
    return torch.set_num_threads


@contextmanager
def half_of_the_threads() -> Iterator[None]:
    """Leaves cores to others, for short work of many small steps: more threads would gain little, and wait for long."""
    most = torch.get_num_threads()
    _set_threads()(max(1, most // 2))
    try:
        yield
    finally:
        _set_threads()(most)


class Threads:
    """Watches how long the parts of a picture take, and takes threads away from the picture that waits for them.

    Each part of the network is compared with the least that it took with all threads on pictures of that shape.
    """

    def __init__(self) -> None:
        self.number = next(_numbers)
        _watching[self.number] = self
        self.usual: OrderedDict[tuple[int, ...], dict[Hashable, float]] = OrderedDict()
        self._lock = threading.Lock()
        self._picture = threading.local()  # most: the caller's threads; usual; began, spent, expected: seconds

    @contextmanager
    def picture(self, shape: Sequence[int]) -> Iterator[None]:
        """Begins the network's part of a picture; afterwards the caller's threads are back.

        Args:
            shape: of the images.
        """
        now = self._picture
        with self._lock:
            known = self.usual.pop(tuple(shape), {})
            self.usual[tuple(shape)] = now.usual = {part: FORGET * seconds for part, seconds in known.items()}
            if len(self.usual) > SIZES_KEPT:
                self.usual.popitem(last=False)
        now.most, now.spent, now.expected = torch.get_num_threads(), 0.0, 0.0
        now.began = time.perf_counter()
        try:
            yield
        finally:
            _set_threads()(now.most)
            now.most = 0

    def tick(self, key: Hashable) -> None:
        """Ends a part of a picture, which began with the picture or with the end of the part before.

        Args:
            key: in pictures of one shape, parts of one key take equally long.
        """
        now = self._picture
        if getattr(now, "most", 0) < 2:  # outside of a picture too
            return
        self.took(key, time.perf_counter() - now.began)
        now.began = time.perf_counter()

    def took(self, key: Hashable, seconds: float) -> None:
        """Learns how long a part took; if the picture waits, the next has fewer threads: N - 1, then half of them."""
        now, count = self._picture, torch.get_num_threads()
        usual = now.usual.get(key, seconds)
        if count == now.most:
            now.usual[key] = usual = min(seconds, usual)
        now.spent += seconds
        now.expected += usual * now.most / count
        if count > 1 and now.spent > max(SLOW * now.expected, now.expected + LEAST):
            _set_threads()(count - 1 if count == now.most else count // 2)
            now.spent = now.expected = 0.0
        elif now.expected > WINDOW:
            now.spent = now.expected = 0.0


# By numbers that are the same in each process: compiled networks hold them, and the compiler keeps those on disk.
_numbers = itertools.count()
_watching: WeakValueDictionary[int, Threads] = WeakValueDictionary()


@torch.library.custom_op("fast_scnn::tick", mutates_args=("after",))
def _tick(after: Tensor, threads: int, part: int) -> None:
    """Ends a part in a compiled network. It changes nothing of `after`, but the compiler keeps it at its place so."""
    _watching[threads].tick(part)


class Watched(nn.Module):
    """Layers that are a part of a picture, whose duration says whether its threads wait for each other."""

    def __init__(self, layers: nn.Module, threads: Threads, part: int):
        super().__init__()
        self.layers = layers
        self.threads = threads
        self.part = part  # no other of these threads has this number

    def forward(self, *inputs: Tensor) -> Tensor:
        result = self.layers(*inputs)
        if torch.compiler.is_compiling():
            _tick(result, self.threads.number, self.part)
        else:
            self.threads.tick(self.part)
        return result
