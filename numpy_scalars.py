"""NumPy's scalars in PyTorch files, such as scores beside somebody's weights, read without NumPy's own unpickling.

A scalar is pickled as a call of `scalar` with a dtype and bytes, a dtype as a call of `dtype` and a state. NumPy's own
two trust what they get: a size in that state that does not fit ends the process. These two make numbers, truth values
and texts of Python of them, and nothing else; all other names stay refused by weights_only.
"""

from __future__ import annotations

import pickle
import re
import struct

# The codes of NumPy's dtypes, and those of struct for the same.
_NUMBERS = {"b1": "?", "i1": "b", "i2": "h", "i4": "i", "i8": "q", "u1": "B", "u2": "H", "u4": "I", "u8": "Q"}
_NUMBERS |= {"f2": "e", "f4": "f", "f8": "d"}


class _DType:
    """What `scalar` needs of a numpy.dtype: its code, and the order of the bytes."""

    def __init__(self, code: str, align: bool = False, copy: bool = True):
        if code not in _NUMBERS and not re.fullmatch(r"[US][0-9]+", str(code)):
            # As weights_only names what it refuses.
            raise pickle.UnpicklingError(f"GLOBAL numpy.dtype[{str(code)[:20]}]")
        self.code = code
        self.order = "="

    def __setstate__(self, state: tuple) -> None:
        self.order = "<" if state[1] == "|" else state[1]


def _scalar(dtype: _DType, content: bytes) -> bool | int | float | str | bytes:
    if dtype.code in _NUMBERS:
        return struct.unpack(dtype.order + _NUMBERS[dtype.code], content)[0]
    if dtype.code[0] == "S":
        return content.rstrip(b"\0")
    return content.decode("utf-32-be" if dtype.order == ">" else "utf-32-le").rstrip("\0")


# What torch.serialization.safe_globals takes: NumPy 2's name of the function, NumPy 1's, and the dtype.
SAFE_GLOBALS = [
    (_scalar, "numpy._core.multiarray.scalar"),
    (_scalar, "numpy.core.multiarray.scalar"),
    (_DType, "numpy.dtype"),
]
