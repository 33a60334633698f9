"""The number of threads that one Python thread computes with."""

from __future__ import annotations

import ctypes
import functools
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch


@functools.cache
def _setter() -> Callable[[int], object]:
    """Returns what sets the number of threads of the calling Python thread alone.

    torch.set_num_threads also sets the number for all Python threads that use PyTorch later.
    """
    if sys.platform == "linux":
        try:
            return ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so")).omp_set_num_threads
        except (OSError, AttributeError):  # built in another way
            pass
    return torch.set_num_threads


def set_threads(count: int) -> None:
    """Sets the number of threads of the calling Python thread."""
    _setter()(count)


@contextmanager
def half_of_the_threads() -> Iterator[None]:
    """Leaves cores to others, for short work of many small steps: more threads would gain little, and wait for long."""
    most = torch.get_num_threads()
    set_threads(max(1, most // 2))
    try:
        yield
    finally:
        set_threads(most)
