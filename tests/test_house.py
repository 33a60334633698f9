"""The layout of the repository: who may import whom, and documentation that says what the code does."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
from conftest import ROOT

# Each room, a folder or a file, and the rooms that it may import. Scripts are not in it: they may import everything.
ALLOWED = {
    "model": set(),
    "classes": set(),
    "images": {"classes"},
    "dataset": {"classes", "images", "utils"},
    "description": {"classes", "dataset", "images", "layout", "streams", "strict_yaml", "unions", "utils"},
    "layout": {"classes", "dataset", "images", "streams", "utils"},
    "strict_yaml": {"images", "streams"},
    "loading": {"classes", "dataset", "images", "utils"},
    "labelling": {"dataset", "images", "inference", "loading", "training", "utils"},
    "streams": set(),
    "unions": {"classes", "images", "streams"},
    "scores": {"classes", "unions"},
    "numpy_scalars": set(),
    "utils": {"numpy_scalars", "streams"},
    "street": set(),
    "inference": {"model", "classes", "dataset", "images", "utils"},
    "training": {"model", "classes", "dataset", "images", "loading", "scores", "unions", "utils"},
    "viewing": {"classes", "dataset", "images", "utils", "inference"},
    "web": {"classes", "dataset", "images", "scores", "unions", "utils", "viewing"},
    "speed": {"model", "classes", "dataset", "images", "loading", "utils", "inference", "training", "viewing"},
}
SCRIPTS = {"train", "evaluate", "deploy", "viewer", "synthetic", "benchmark", "hubconf"}
OTHERS = re.compile(r"\.venv|tests|docs|runs|weights|.*_site")  # the last three: sites, with a server in each
FILES = sorted(path for path in ROOT.rglob("*.py") if not OTHERS.fullmatch(path.relative_to(ROOT).parts[0]))


def room(path: Path) -> str:
    """The folder, or at the top level the file, that a file belongs to."""
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


ROOMS = {room(path) for path in FILES}


def imported(path: Path) -> set[str]:
    """The other rooms that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add((node.module or "").split(".")[0])
    return found & ROOMS - {room(path)}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_rooms_import_only_what_they_may(path: Path) -> None:
    """The network that needs the data set, training that needs an engine, a script that needs another one."""
    name = room(path)
    if name in SCRIPTS:
        assert imported(path) & SCRIPTS <= ({"evaluate"} if name == "train" else set())
    else:
        assert imported(path) <= ALLOWED[name]
