"""Pictures of a run."""

from __future__ import annotations

import math
import warnings

import matplotlib
import numpy as np
import pytest

from frames.classes import CITYSCAPES
from frames.images import read_image
from training.plots import deciding_score, plot_confusion, plot_curves


def history_of(epochs: int) -> list[dict]:
    """Rows of a statistics file."""
    return [
        {"epoch": i, "train_loss": 1 / i, "val_loss": 2 / i, "pixel_accuracy": 0.8, "class_miou": 0.5 - 0.1 / i,
         "class_miou_present": 0.5, "joined_miou": math.nan,
         "category_miou": 0.6, "lr": 1e-3} for i in range(1, epochs + 1)
    ]  # fmt: skip


@pytest.mark.parametrize("epochs", [1, 30])
def test_curves_are_drawn_from_the_first_epoch_on(tmp_path, epochs: int) -> None:
    """A picture that fails with one point, or is empty."""
    plot_curves(tmp_path / "curves.png", history_of(epochs), "title")
    picture = read_image(tmp_path / "curves.png")
    assert picture.shape[1] > 1000 and (picture < 128).sum() > 1000


def test_the_best_epoch_is_that_of_the_joined_scores_where_there_are_any() -> None:
    """Weights that were saved for guesses which no label can tell right from wrong."""
    row = history_of(1)[0]
    assert deciding_score(row) == 0.5 and deciding_score({**row, "joined_miou": 0.2}) == 0.2


def test_confusion_of_absent_classes_is_drawn_without_a_division_by_zero(tmp_path) -> None:
    """On data without all classes the rows of absent ones divide by zero."""
    confusion = np.zeros((19, 19), np.int64)
    confusion[0, 0], confusion[0, 1], confusion[1, 1] = 90, 10, 50
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plot_confusion(tmp_path / "confusion.png", confusion, CITYSCAPES, "title")
    assert read_image(tmp_path / "confusion.png").shape[0] > 500


TITLES = {
    "mathtext": "train.py --data_path 'p$/2024_1_2/D' --output_dir 'p$/r'",
    "not utf-8": "train.py --output_dir r\udcff \ud800",
    "no glyph": "train.py --output_dir 你好",
    "lines and controls": "train.py --output_dir 'a\nb\x00\t'",
    "long": "x" * 10_000,
}


@pytest.mark.parametrize("title", TITLES.values(), ids=TITLES)
def test_titles_are_plain_text(title: str, tmp_path, capfd, monkeypatch) -> None:
    """A path that ends a run after its first epoch as it is no formula, a warning for each glyph, flat curves."""
    monkeypatch.setitem(matplotlib.rcParams, "text.usetex", True)  # as a matplotlibrc may say
    plot_curves(tmp_path / "curves.png", history_of(2), title)
    plot_confusion(tmp_path / "confusion.png", np.eye(19, dtype=np.int64), CITYSCAPES, title)
    assert capfd.readouterr() == ("", "")
    curves = read_image(tmp_path / "curves.png")
    blue = np.flatnonzero((np.abs(curves.astype(int) - (31, 119, 180)).sum(2) < 9).any(1))
    assert np.ptp(blue) > 120  # the height of the training loss
    assert read_image(tmp_path / "confusion.png").shape[0] > 500


def test_a_plot_that_fails_is_one_line(tmp_path, capsys) -> None:
    """A run that ends, or says the same after every epoch, as a picture cannot be drawn or written."""
    (tmp_path / "curves.png").mkdir()
    for _ in range(2):
        plot_curves(tmp_path / "curves.png", history_of(1), "title")
        plot_confusion(tmp_path / "confusion.png", np.zeros((2, 2)), CITYSCAPES, "title")
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2 and "curves.png" in lines[0], lines
    assert "confusion.png" in lines[1] and "the run goes on" in lines[1]
