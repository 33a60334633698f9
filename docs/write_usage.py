"""Writes the tables of docs/usage.md from the parsers of the scripts.

python docs/write_usage.py
"""

from __future__ import annotations

import argparse
import importlib
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

HERE = Path(__file__).resolve().parent
USAGE = HERE / "usage.md"
# The scripts, and the modules whose build_parser() describes their flags.
PARSERS = {
    "train.py": "training.recipes",
    "evaluate.py": "evaluate",
    "viewer.py": "viewer",
    "deploy.py": "deploy",
    "synthetic.py": "synthetic",
    "benchmark.py": "benchmark",
    "speed.gpu": "speed.gpu",
}
MANY_CORES = 1000
SWITCH = {True: "on", False: "off"}

sys.path.insert(0, str(HERE.parent))


def build_parser(script: str) -> argparse.ArgumentParser:
    """Returns a script's parser as on a machine with many cores and no Cityscapes variables."""
    module = importlib.import_module(PARSERS[script])
    environment = {name: value for name, value in os.environ.items() if not name.startswith("CITYSCAPES_")}
    with mock.patch.dict(os.environ, environment, clear=True), mock.patch("os.cpu_count", return_value=MANY_CORES):
        return module.build_parser()


def default_text(parser: argparse.ArgumentParser, action: argparse.Action) -> str:
    """Returns the default of a flag as the table shows it."""
    default = parser.get_default(action.dest)
    if default is None:
        return "-"
    if isinstance(default, bool):
        return SWITCH[default]
    if action.dest == "workers":
        return f"cores, at most {default}"
    return f"`{default}`"


def meaning(action: argparse.Action) -> str:
    """Returns the help text of a flag, with those choices that it does not name itself."""
    text = action.help.removesuffix(" (default: %(default)s)")  # added by BooleanOptionalAction before Python 3.13
    choices = [str(choice) for choice in action.choices or ()]
    if not all(choice in text for choice in choices):
        text += f" ({', '.join(f'`{choice}`' for choice in choices)})"
    return text.replace("%%", "%").replace("|", r"\|")


def flag_tables(script: str) -> Iterator[str]:
    """Yields the lines of a script's flag tables, one table for each group of flags."""
    parser = build_parser(script)
    for group in parser._action_groups:  # argparse has no public list of them
        actions = [action for action in group._group_actions if action.dest != "help"]
        if not actions:
            continue
        if group.title != "options":
            yield from ("", f"**{group.title}**")
        yield from ("", "| flag | default | meaning |", "|---|---|---|")
        for action in actions:
            yield f"| `{action.option_strings[0]}` | {default_text(parser, action)} | {meaning(action)} |"


def recipe_table() -> Iterator[str]:
    """Yields the lines of the table of those flags whose defaults differ between the recipes."""
    from training.recipes import RECIPES

    yield from ("", f"| flag | {' | '.join(f'`{name}`' for name in RECIPES)} |", "|---|" + "---|" * len(RECIPES))
    for flag in RECIPES["original"]:
        values = [recipe[flag] for recipe in RECIPES.values()]
        if len(set(values)) > 1:
            shown = [SWITCH[value] if isinstance(value, bool) else f"`{value}`" for value in values]
            yield f"| `--{flag}` | {' | '.join(shown)} |"


def filled(text: str) -> str:
    """Returns the text of usage.md with its tables made anew, each between its own two markers."""

    def table(found: re.Match) -> str:
        lines = recipe_table() if found[2] == "recipes" else flag_tables(found[2])
        return "\n".join([found[1], *lines, "", found[3]])

    return re.sub(r"(<!-- table: (\S+) -->)\n.*?(<!-- end of table -->)", table, text, flags=re.DOTALL)


if __name__ == "__main__":
    USAGE.write_text(filled(USAGE.read_text()))
    print(USAGE)
