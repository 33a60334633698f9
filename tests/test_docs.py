"""Documentation that says what the code does."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from conftest import ROOT

from inference.engine import PRECISIONS

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
TEXTS = (
    "*.py",
    "*.md",
    "*.txt",
    "*.toml",
    "Makefile",
    "docs/*.md",
    "[!.]*/*.py",
    "[!.]*/*.yaml",
    ".ci/*",
    ".github/*/*.yml",
)


def test_usage_names_every_backend() -> None:
    """A backend that nobody finds, or a precision that it does not have."""
    page = (ROOT / "docs" / "usage.md").read_text()
    _, section = page.split("### Backends\n")
    rows = re.findall(r"^\| `(.+?)` \| (.+?) \|", section.split("\n## ")[0], re.MULTILINE)
    assert {name: tuple(precisions.split(", ")) for name, precisions in rows} == PRECISIONS
    readme = (ROOT / "README.md").read_text()
    assert [name for name in PRECISIONS if f"`{name}`" not in readme] == []


def test_no_machine_in_the_repository() -> None:
    """A path or host of one machine that is wrong on every other."""
    hosts = r"arxiv\.org|github\.com|www\.cityscapes-dataset\.com|download\.openmmlab\.com|pan\.baidu\.com"
    hosts += r"|docs\.ultralytics\.com|cdn\.jsdelivr\.net|creativecommons\.org|127\.0\.0\.1"
    pattern = re.compile(rf"/(?:work|root|tmp)/|https?://(?!{hosts})")
    files = [path for text in TEXTS for path in ROOT.glob(text) if path.is_file()]
    assert {"README.md", "train.py", "run", "tests.yml", "usage.md", "test_docs.py"} <= {path.name for path in files}
    found = {str(path.relative_to(ROOT)): pattern.findall(path.read_text()) for path in files}
    assert {name: hits for name, hits in found.items() if hits} == {}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    """A link to a file that was moved, or a picture that is not in the repository."""
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text())
    relative = [link for link in links if "://" not in link]
    assert [link for link in relative if not (page.parent / link).exists()] == []


def test_readme_tree_is_the_repository() -> None:
    """A file in the tree that is gone; a script or a folder that is missing from it."""
    readme = (ROOT / "README.md").read_text()
    (tree,) = re.findall(r"## Repository\n\n```\n(.*?)```", readme, re.DOTALL)
    named = [line.split()[0] for line in tree.splitlines()]
    assert [name for name in named if not (ROOT / name).exists()] == []
    present = [path.name for path in ROOT.glob("*.py")] + [
        f"{path.parent.name}/" for path in ROOT.glob("*/__init__.py")
    ]
    assert sorted(set(present) - set(named)) == []
