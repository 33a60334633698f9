"""Folders that are made aside and exchanged: reports and sites."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import refused

from evaluation.scores import Scores
from frames.classes import CITYSCAPES
from utils import UserError, unfinished_path
from web.folder import FolderAside
from web.report import Report
from web.report_data import About
from web.site import open_site, site_aside


def write_site(folder: Path) -> None:
    """Writes a site around an empty network."""
    with site_aside(open_site(folder), "w.pth", {}, None) as path:
        path.write_bytes(b"")


def write_report(folder: Path) -> None:
    """Writes a report of no frame."""
    with Report(folder, CITYSCAPES, []) as report:
        report.finish(Scores(CITYSCAPES, np.zeros((19, 19), np.int64)), About("w", "d", "val", "torch", "c"))


KINDS = {"report": write_report, "site": write_site}


def everything(folder: Path) -> dict[str, bytes | str | None]:
    """All below a folder, hidden ones too: what files hold, where links lead; None for folders."""
    found = {}
    for path in folder.rglob("*"):
        content = path.read_bytes() if path.is_file() else None
        found[str(path.relative_to(folder))] = os.readlink(path) if path.is_symlink() else content
    return found


def put(folder: Path, name: str) -> str:
    """Writes a file into a folder."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("mine")
    return name


def link(folder: Path) -> str:
    """Puts a link to another folder into a folder."""
    (folder / "data").symlink_to(folder.parent, target_is_directory=True)
    return "data"


FOREIGN: dict[str, Callable[[Path], str]] = {
    "file": lambda folder: put(folder, "notes.txt"),
    "hidden": lambda folder: put(folder, ".nojekyll"),
    "deep": lambda folder: put(folder, "pictures/runtime/mine.webp"),
    "link": link,
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("spoil", FOREIGN.values(), ids=FOREIGN)
def test_what_was_added_is_not_lost(kind, spoil, tmp_path) -> None:
    """Somebody's own files, gone with the report or the site that they were put into."""
    KINDS[kind](tmp_path / "f")
    name = spoil(tmp_path / "f")
    before = everything(tmp_path)
    with pytest.raises(UserError) as error:
        KINDS[kind](tmp_path / "f")
    assert name in str(error.value) and str(error.value).endswith(f"an earlier {kind}")
    assert everything(tmp_path) == before


@pytest.mark.parametrize(("first", "second", "name"), [("report", "site", "classes.js"), ("site", "report", "app.js")])
def test_a_report_and_a_site_do_not_replace_each_other(first, second, name, tmp_path) -> None:
    """A page that is gone because the other one was given its folder."""
    KINDS[first](tmp_path / "f")
    before = everything(tmp_path)
    with refused("output" if second == "site" else "report", name):
        KINDS[second](tmp_path / "f")
    assert everything(tmp_path) == before


@pytest.mark.parametrize("kind", KINDS)
def test_an_earlier_one_is_replaced_where_it_lies(kind, tmp_path) -> None:
    """A link that becomes a folder, files of an earlier one or a killed process that stay, .DS_Store."""
    (tmp_path / "empty" / "inside").mkdir(parents=True)
    (tmp_path / "link").symlink_to("empty")
    KINDS[kind](tmp_path / "link")
    once = set(everything(tmp_path / "empty"))
    assert "index.html" in once and "inside" not in once
    put(tmp_path / "empty", ".DS_Store")
    put(unfinished_path(tmp_path / "empty"), "left.txt")
    if kind == "site":
        put(tmp_path / "empty", "runtime/LICENSE")
    KINDS[kind](tmp_path / "link")
    assert set(everything(tmp_path / "empty")) == once and (tmp_path / "link").is_symlink()
    assert {path.name for path in tmp_path.iterdir()} == {"empty", "link"}


@pytest.mark.parametrize("kind", KINDS)
def test_folders_that_cannot_be_exchanged_are_refused(kind, tmp_path, monkeypatch) -> None:
    """A shell that goes on in a folder which is removed under it, an exchange that fails after an hour of work."""
    (tmp_path / "f" / "g").mkdir(parents=True)
    (tmp_path / "file").write_text("")
    monkeypatch.chdir(tmp_path / "f" / "g")
    for path, words in (
        (".", ""),
        (tmp_path / "f", ""),
        ("/proc", ""),
        (tmp_path / "file", ""),
        (tmp_path / "file" / "f", ""),
        (tmp_path / ("x" * 300), ""),
    ):
        with refused(*words.split("|")):
            KINDS[kind](path)
    monkeypatch.setattr("os.path.ismount", lambda path: path == tmp_path / "empty")
    with refused(tmp_path / "empty"):
        KINDS[kind](tmp_path / "empty")


def test_an_exchange_that_fails_brings_the_earlier_one_back(tmp_path, monkeypatch) -> None:
    """Neither the old nor the new folder in its place."""
    put(tmp_path / "f", "old.txt")
    with FolderAside(tmp_path / "f", "--flag", "report", lambda folder: None) as folder:
        folder.write("new.txt", b"new")
        rename = os.rename

        def refuse(source: Path, target: Path) -> None:
            if source == folder.aside:
                raise PermissionError(13, "Permission denied")
            rename(source, target)

        monkeypatch.setattr("os.rename", refuse)
        with refused("--flag", tmp_path / "f", "Permission denied"):
            folder.exchange()
    assert everything(tmp_path) == {"f": None, "f/old.txt": b"mine"}


def test_what_was_added_meanwhile_is_not_lost(tmp_path) -> None:
    """A file that somebody saves into an empty folder while an hour of frames is scored."""
    with FolderAside(
        tmp_path / "f", "--flag", "site", lambda folder: "a.txt" if any(folder.iterdir()) else None
    ) as new:
        new.write("index.html", b"")
        put(tmp_path / "f", "a.txt")
        with refused("--flag", "a.txt"):
            new.exchange()
    assert everything(tmp_path) == {"f": None, "f/a.txt": b"mine"}
