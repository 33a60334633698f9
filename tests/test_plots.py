"""Pictures of a run."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

from dataset import read_image
from training.plots import plot_confusion, plot_curves


@pytest.mark.parametrize("epochs", [1, 30])
def test_curves_are_drawn_from_the_first_epoch_on(tmp_path, epochs: int) -> None:
    """A picture that fails with one point, or is empty."""
    history = [
        {"epoch": i, "train_loss": 1 / i, "val_loss": 2 / i, "pixel_accuracy": 0.8, "class_miou": 0.5 - 0.1 / i,
         "category_miou": 0.6, "lr": 1e-3} for i in range(1, epochs + 1)
    ]  # fmt: skip
    plot_curves(tmp_path / "curves.png", history, "title")
    picture = read_image(tmp_path / "curves.png")
    assert picture.shape[1] > 1000 and (picture < 128).sum() > 1000


def test_confusion_of_absent_classes_is_drawn_without_a_division_by_zero(tmp_path) -> None:
    """On data without all classes the rows of absent ones divide by zero."""
    confusion = np.zeros((19, 19), np.int64)
    confusion[0, 0], confusion[0, 1], confusion[1, 1] = 90, 10, 50
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plot_confusion(tmp_path / "confusion.png", confusion, "title")
    assert read_image(tmp_path / "confusion.png").shape[0] > 500
