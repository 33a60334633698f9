"""Going on with a run: the file that it left, or the one before, and whether the flags still ask for the same run."""

from __future__ import annotations

import sys
from pathlib import Path

from training import distributed
from training.recipes import RECIPES
from utils import UserError, load_checkpoint

# A resumed run must agree on these: they decide its result. --epochs does too where the learning rate depends on it.
SAME_RUN = ("seed", "train_split", "input_scale", "amp", "compile", *RECIPES["original"])
# These matter before the first step alone.
FIRST_ONLY = ("recipe", "resume", "init_weights", "reset_head")


def previous_path(path: str | Path) -> Path:
    """Where the state before the last one is kept."""
    return Path(path).with_suffix(".prev.pth")


def load_resumable(path: str) -> dict:
    """Loads the state after the last finished epoch of an earlier run, or the one before if that file is damaged.

    Raises:
        UserError: neither can be read, or it is no such state.
    """
    previous = previous_path(path)
    try:
        state = load_checkpoint(path)
    except UserError as error:
        if not previous.is_file():
            raise
        state = load_checkpoint(previous)
        if distributed.is_first():
            print(f"{error}; going on from {previous}, one epoch earlier", file=sys.stderr)
    if not {"model", "metadata", "optimizer", "history", "best", "args"} <= state.keys():
        raise UserError(f"--resume: {path} cannot be resumed; expected the ..._last.pth of a run")
    return state


def compare_settings(path: str, before: dict, now: dict) -> None:
    """Names the flags that differ from those of the run that is resumed.

    Raises:
        UserError: one of them decides the result.
    """
    before = {**RECIPES["original"], **before}  # a flag that came later does nothing in it
    differ = [name for name in now if name not in FIRST_ONLY and before.get(name) != now[name]]
    deciding = {*SAME_RUN, "train_frames"} - ({"epochs"} if not now["power"] else set())
    refused = [f"{name} {before.get(name)} (now {now[name]})" for name in differ if name in deciding]
    if refused:
        raise UserError(f"--resume: {path} comes from another run: {', '.join(refused)}; give the same values")
    for name in differ:
        print(f"resumed with another {name}: {now[name]} (was {before.get(name)})")
