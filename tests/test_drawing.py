"""Panels, colors and the legend."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from frames.classes import CITYSCAPES
from frames.images import color, shrink
from viewing.drawing import LEGEND_ROW, blend, draw_legend, draw_result

ALL = tuple(range(19))


def blocks(height: int, width: int) -> np.ndarray:
    """Train ids in blocks of 8, with all classes and the ignored one."""
    ids = np.array([*ALL, 255], np.uint8)
    small = np.random.default_rng(0).choice(ids, (height // 8 + 1, width // 8 + 1))
    return np.ascontiguousarray(np.kron(small, np.ones((8, 8), np.uint8))[:height, :width])


def test_colors_are_those_of_the_palette() -> None:
    """The fast look-up swaps channels, or interpolates between the classes."""
    train_ids = np.arange(256, dtype=np.uint8).reshape(8, 32)
    np.testing.assert_array_equal(color(train_ids, CITYSCAPES), CITYSCAPES.palette[train_ids])


def test_panels_stand_in_order() -> None:
    """Picture, ground truth and prediction swapped, or one drawn over another."""
    image = np.random.default_rng(1).integers(0, 256, (40, 64, 3), np.uint8)
    label, prediction = blocks(40, 64), blocks(40, 64)[::-1].copy()
    drawn = draw_result(image, label, prediction, CITYSCAPES, legend=())
    np.testing.assert_array_equal(drawn, np.hstack([image, CITYSCAPES.palette[label], CITYSCAPES.palette[prediction]]))
    np.testing.assert_array_equal(
        draw_result(image, None, prediction, CITYSCAPES, legend=()), drawn[:, [*range(64), *range(128, 192)]]
    )
    over = draw_result(image, label, prediction, CITYSCAPES, overlay=True, legend=())
    np.testing.assert_array_equal(over, blend(image, prediction, CITYSCAPES))


@pytest.mark.parametrize("size", [(40, 64), (333, 517), (512, 1024)])
@pytest.mark.parametrize("width", [64, 100, 129, 5000])
def test_width_holds_for_all_panels_together(size: tuple[int, int], width: int) -> None:
    """A width that each panel takes for itself, a picture that is enlarged, or one whose shape changes."""
    image, prediction = np.zeros((*size, 3), np.uint8), blocks(*size)
    for overlay, panels in ((True, 1), (False, 2)):
        h, w = draw_result(image, None, prediction, CITYSCAPES, overlay, width, legend=()).shape[:2]
        assert w == panels * min(size[1], width // panels)
        assert abs(h - size[0] * w / panels / size[1]) <= 0.5


def test_shrinking_averages_and_keeps_classes() -> None:
    """Fine patterns that flicker in a small video, or colors of no class between two classes."""
    stripes = np.zeros((96, 192, 3), np.uint8)
    stripes[:, ::2] = 200
    assert abs(shrink(stripes, (48, 24)).astype(int) - 100).max() <= 1
    assert shrink(stripes, (70, 35)).std() < 15 < cv2.resize(stripes, (70, 35)).std()
    prediction = np.where(blocks(96, 192) < 9, 13, 8).astype(np.uint8)
    small = draw_result(stripes, None, prediction, CITYSCAPES, width=100, legend=())[:, 50:]
    assert small.shape == (25, 50, 3)
    assert {tuple(pixel) for pixel in small.reshape(-1, 3)} == {
        tuple(CITYSCAPES.palette[13]),
        tuple(CITYSCAPES.palette[8]),
    }


def test_blend_lies_between_picture_and_color() -> None:
    """An overlay that hides the picture or the classes shows nothing."""
    image, prediction = np.full((4, 4, 3), 200, np.uint8), np.full((4, 4), 13, np.uint8)
    mixed = blend(image, prediction, CITYSCAPES).astype(int)
    assert (mixed < 200).all() and (mixed[..., 2] > CITYSCAPES.palette[13][2] * 0.5).all()


def test_legend_names_only_what_occurs_and_fits() -> None:
    """A legend that is cut off on a narrow picture, or names classes that are not in it."""
    assert draw_legend((0,), CITYSCAPES, 100).shape == (LEGEND_ROW, 100, 3)
    narrow, wide = draw_legend(ALL, CITYSCAPES, 150), draw_legend(ALL, CITYSCAPES, 4000)
    assert narrow.shape[0] > wide.shape[0] == LEGEND_ROW
    patches = {tuple(color) for color in wide.reshape(-1, 3)}
    assert {tuple(color) for color in CITYSCAPES.palette[:19]} <= patches
    label = np.full((40, 90), 255, np.uint8)
    drawn = draw_result(np.zeros((40, 90, 3), np.uint8), label, np.zeros((40, 90), np.uint8), CITYSCAPES)
    assert drawn.shape == (40 + LEGEND_ROW, 270, 3)
    assert tuple(CITYSCAPES.palette[1]) not in {tuple(color) for color in drawn.reshape(-1, 3)}
