"""Whether the classes of weights are those of the data, under the same names."""

from __future__ import annotations

import sys
from pathlib import Path

from torch import Tensor

from frames.classes import Classes
from utils import UserError

HEADS = ("classifier.conv.", "aux_shallow.classes.", "aux_context.classes.")  # one row for each class


def match_classes(path: str | Path, found: Classes, wanted: Classes) -> list[int] | None:
    """Compares the classes of a weight file with those that are wanted; a note on stderr says if they are taken.

    Returns:
        For each wanted class its place in the file; None if all are in their places.

    Raises:
        UserError: the classes are others; the message has the first that differs.
    """
    if found.names == wanted.names:
        return None
    if not found.named and len(found) == len(wanted):
        say(f"{path} does not name its {len(found)} classes: taken for those of the data, in their order")
        return None
    if set(found.names) == set(wanted.names):
        say(f"{path} has the classes of the data in another order: they are put into that of the data")
        return [found.names.index(name) for name in wanted.names]
    advice = "take other weights or data, or train these with --init_weights and --reset_head"
    if not found.named:
        raise UserError(f"{path} is for {len(found)} classes, the data has {len(wanted)}: {advice}")
    index, ours, theirs = found.first_difference(wanted.names)
    raise UserError(
        f"{path} is for {len(found)} classes, the data has {len(wanted)}: class {index} is {ours[:40]!r} in the "
        f"weights and {theirs[:40]!r} in the data; {advice}"
    )


def reorder_heads(state: dict[str, Tensor], order: list[int]) -> dict[str, Tensor]:
    """Returns a state dict whose class scores are in another order; see match_classes."""
    return {name: tensor[order] if name.startswith(HEADS) else tensor for name, tensor in state.items()}


def say(message: str) -> None:
    """Tells the user, on stderr, what was made of a weight file."""
    print(message, file=sys.stderr)
