"""The layout of the repository: who may import whom, and a README that says what the code does."""

from __future__ import annotations

import argparse
import ast
import importlib
import re

import pytest
from conftest import ROOT

GROUND = {"model", "label_head", "folding", "dataset", "utils", "scenery", "timing"}
LAYERS = [
    GROUND,
    {"cache"},
    {
        "synthetic",
        "backends",
        "augment",
        "losses",
        "optim",
        "plots",
        "drawing",
        "pipeline",
        "video",
        "processes",
        "gpu_network",
    },
    {"export", "gpu_speed"},
    {"deploy"},
    {"evaluate", "recipes", "sources", "learner"},
    {"inference_speed", "training_speed", "resume"},
    {"train", "viewer", "benchmark"},
]
FILES = sorted(path.stem for path in ROOT.glob("*.py"))
SCRIPTS = ["train", "evaluate", "deploy", "viewer", "synthetic", "benchmark", "gpu_speed"]


def imported(name: str) -> set[str]:
    """The files of ours that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse((ROOT / f"{name}.py").read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add((node.module or "").split(".")[0])
    return found & set(FILES)


def test_every_file_has_its_room() -> None:
    """A new file that nobody placed."""
    assert set(FILES) == set().union(*LAYERS)


@pytest.mark.parametrize("name", FILES)
def test_imports_run_one_way(name: str) -> None:
    """A cycle, or the network that needs the data set."""
    level = next(index for index, layer in enumerate(LAYERS) if name in layer)
    below = set().union(*LAYERS[:level])
    assert imported(name) <= below


@pytest.mark.parametrize("name", FILES)
def test_no_file_outgrows_its_room(name: str) -> None:
    """A file that nobody can read from top to bottom."""
    lines = (ROOT / f"{name}.py").read_text().splitlines()
    assert len(lines) <= 380
    if name == "utils":
        assert len(lines) <= 200


@pytest.mark.parametrize("name", SCRIPTS)
def test_readme_lists_every_flag_with_its_default(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A flag that the README does not name, or names with another default."""
    for variable in ("CITYSCAPES_DATASET", "CITYSCAPES_RESULTS"):
        monkeypatch.delenv(variable, raising=False)
    readme = (ROOT / "README.md").read_text()
    (section,) = re.findall(rf"### `{name}\.py`\n(.*?)(?=\n##)", readme, re.DOTALL)
    rows = dict(re.findall(r"^\| `(--\w+)` \| (.*?) \|", section, re.MULTILINE))
    flags: dict[str, str] = {}
    record = argparse._ActionsContainer._add_action

    def note(self, action):
        if action.option_strings and action.dest != "help" and record(self, action):
            flags[action.option_strings[0]] = action.dest
        return action if action.dest != "help" else record(self, action)

    monkeypatch.setattr(argparse._ActionsContainer, "_add_action", note)
    monkeypatch.setattr("sys.argv", [f"{name}.py"])
    defaults = vars(importlib.import_module(name).parse_args())
    assert list(rows) == list(flags)
    for flag, dest in flags.items():
        if flag == "--workers":  # depends on the machine
            continue
        default = defaults[dest]
        switch = {True: "on", False: "off"}
        shown = "-" if default is None else switch[default] if isinstance(default, bool) else f"`{default}`"
        assert rows[flag] == shown, flag


def test_no_machine_in_the_repository() -> None:
    """A path or host of one machine that is wrong on every other."""
    pattern = re.compile(r"/work/|/root/|/tmp/|https?://(?!arxiv\.org|github\.com|www\.cityscapes-dataset\.com)")
    for path in [*ROOT.glob("*.py"), *ROOT.glob("*.md"), *ROOT.glob("*.txt"), ROOT / "Makefile", ROOT / ".ci" / "run"]:
        assert not pattern.search(path.read_text()), path.name
