"""The layout of the repository: who may import whom, and documentation that says what the code does."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
from conftest import ROOT

# Each room, a folder or a file, and the rooms that it may import. Scripts may import every room, and no script.
ALLOWED = {
    "model": set(),
    "utils": set(),
    "distributed": {"utils"},
    "street": set(),
    "frames": {"utils"},
    "inference": {"model", "frames", "utils"},
    "training": {"model", "frames", "distributed", "utils"},
    "evaluation": {"inference", "frames", "distributed", "utils"},
    "viewing": {"frames", "utils"},
    "web": {"evaluation", "frames", "utils"},
    "speed": {"model", "street", "frames", "inference", "training", "evaluation", "viewing", "distributed", "utils"},
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
        assert not imported(path) & SCRIPTS
    else:
        assert imported(path) <= ALLOWED[name]


def test_the_house_has_no_circle_and_six_floors() -> None:
    """A house that no newcomer can hold: more rooms, more arrows between them, or a longer way down."""
    arrows = {name: set() for name in ROOMS}
    for path in FILES:
        arrows[room(path)] |= imported(path)

    def floors(name: str, above: tuple[str, ...] = ()) -> int:
        assert name not in above, (*above, name)
        return 1 + max((floors(below, (*above, name)) for below in arrows[name]), default=0)

    assert len(ROOMS) <= 18
    assert sum(map(len, arrows.values())) <= 60
    assert max(map(floors, ROOMS)) <= 6
