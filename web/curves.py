"""The curves of a training, from the statistics that its run left beside the weights."""

from __future__ import annotations

import csv
import math
import os
import re
from pathlib import Path

from utils import printable

# Of `<name>_model.pth` and what deploy.py makes of it.
_OF_A_RUN = re.compile(r"(.+)_(model|last)\.[a-z]+")
MOST_BYTES = 1 << 24
MOST_EPOCHS = 20_000
COLUMNS = ("train_loss", "val_loss", "pixel_accuracy", "category_miou", "class_miou", "joined_miou", "lr")


def read_curves(weights: str | Path) -> dict | None:
    """Returns the statistics of the run that wrote a weight file, None if there are none beside it.

    Returns:
        `file`, its name; `problem`, why it is not shown, or ""; `epochs`; and `columns`, each a name and its values,
        None for what is no number.
    """
    weights = Path(weights)
    found = _OF_A_RUN.fullmatch(weights.name)
    path = weights.with_name(f"{found[1]}_statistics.csv") if found else None
    if path is None or not path.is_file():
        return None
    curves = {"file": printable(path.name), "problem": "", "epochs": [], "columns": []}
    try:
        if os.path.getsize(path) > MOST_BYTES:
            raise ValueError(f"larger than {MOST_BYTES / 1e6:.0f} MB")
        with open(path, newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        epochs = [int(row["epoch"]) for row in rows]
        if not 0 < len(epochs) <= MOST_EPOCHS:
            raise ValueError(f"{len(epochs)} epochs, expected 1 to {MOST_EPOCHS}")
        columns = [[name, [_number(row.get(name)) for row in rows]] for name in COLUMNS]
    except (OSError, ValueError, KeyError, TypeError, csv.Error) as error:
        reason = getattr(error, "strerror", None) or f"{type(error).__name__}: {error}"
        return {**curves, "problem": printable(reason)[:200]}
    shown = [column for column in columns if any(value is not None for value in column[1])]
    return {**curves, "epochs": epochs, "columns": shown}


def _number(text: object) -> float | None:
    """Returns the number that a cell holds; None for one that is missing, infinite or no number."""
    try:
        value = float(text)
    except (TypeError, ValueError):
        return None
    return value if math.isfinite(value) else None
