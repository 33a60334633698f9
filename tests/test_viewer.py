"""What people look at."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from conftest import assert_user_error, run_script

from dataset import PALETTE, find_samples, read_image, read_pair
from viewer import LEGEND_ROW, blend, draw_legend, draw_result

VAL = "val/valstadt/valstadt_000000_000000_leftImg8bit.png"


def view(frames, weights, cwd, *flags, **variables):
    """Runs viewer.py on the CPU."""
    base = ["--data_path", frames, "--model_weight", weights, "--device", "cpu"]
    return run_script("viewer.py", *base, *flags, cwd=cwd, **variables)


def test_panels_are_picture_truth_and_prediction(frames, weights, tmp_path) -> None:
    """Channels swapped, panels in another order, or ground truth in the wrong colours."""
    result = view(frames, weights, tmp_path, "--input_pic", VAL)
    assert result.returncode == 0, result.stderr
    drawn = read_image(tmp_path / "valstadt_000000_000000_result.png")
    image, label = read_pair(find_samples(frames, "val")[0])
    assert drawn.shape[1] == 3 * 96 and drawn.shape[0] >= 64 + LEGEND_ROW
    np.testing.assert_array_equal(drawn[:64, :96], image)
    np.testing.assert_array_equal(drawn[:64, 96:192], PALETTE[label])
    colours = {tuple(colour) for colour in drawn[:64, 192:].reshape(-1, 3)}
    assert colours <= {tuple(colour) for colour in PALETTE[:19]}


def test_test_split_has_no_truth_panel(frames, weights, tmp_path) -> None:
    """The dummy labels of the test split drawn as if they were ground truth."""
    result = view(frames, weights, tmp_path, "--input_pic", "test/teststadt/teststadt_000000_000000_leftImg8bit.png")
    assert result.returncode == 0 and "ground truth" not in result.stdout
    assert read_image(tmp_path / "teststadt_000000_000000_result.png").shape[1] == 2 * 96


def test_any_picture_of_any_size(frames, weights, tmp_path) -> None:
    """A photograph that is no multiple of 32, or lies outside the data set."""
    cv2.imwrite(str(tmp_path / "photo.jpg"), np.random.default_rng(0).integers(0, 256, (77, 131, 3), np.uint8))
    result = view(frames, weights, tmp_path, "--input_pic", "photo.jpg")
    assert result.returncode == 0, result.stderr
    assert read_image(tmp_path / "photo_result.png").shape[1] == 2 * 131


def test_overlay_and_output(frames, weights, tmp_path) -> None:
    """The blended picture has one panel, and goes where it was asked to."""
    result = view(frames, weights, tmp_path, "--input_pic", VAL, "--overlay", "--output", "new/over.jpg")
    assert result.returncode == 0, result.stderr
    assert read_image(tmp_path / "new" / "over.jpg").shape[1] == 96


def test_blend_lies_between_picture_and_colour() -> None:
    """An overlay that hides the picture or the classes shows nothing."""
    image, prediction = np.full((4, 4, 3), 200, np.uint8), np.full((4, 4), 13, np.uint8)
    mixed = blend(image, prediction).astype(int)
    assert (mixed < 200).all() and (mixed[..., 2] > PALETTE[13][2] * 0.5).all()


def test_legend_names_only_what_occurs_and_fits() -> None:
    """A legend that is cut off on a narrow picture, or lists all classes on every one."""
    assert draw_legend([0], 100).shape == (LEGEND_ROW, 100, 3)
    narrow, wide = draw_legend(list(range(19)), 150), draw_legend(list(range(19)), 4000)
    assert narrow.shape[0] > wide.shape[0] == LEGEND_ROW
    patches = {tuple(colour) for colour in wide.reshape(-1, 3)}
    assert {tuple(colour) for colour in PALETTE[:19]} <= patches
    label = np.full((40, 90), 255, np.uint8)
    drawn = draw_result(np.zeros((40, 90, 3), np.uint8), label, np.zeros((40, 90), np.uint8), overlay=False)
    assert tuple(PALETTE[1]) not in {tuple(colour) for colour in drawn.reshape(-1, 3)}


@pytest.mark.parametrize("kind", ["missing", "text", "truncated", "small"])
def test_picture_that_is_none(frames, weights, tmp_path, kind: str) -> None:
    """cv2.imread returns None for all of these and the next line crashes."""
    path = tmp_path / "picture.png"
    if kind == "text":
        path.write_text("no picture")
    elif kind == "truncated":
        path.write_bytes((frames / "leftImg8bit" / VAL).read_bytes()[:900])
    elif kind == "small":
        cv2.imwrite(str(path), np.zeros((20, 40, 3), np.uint8))
    words = {"missing": "no picture at", "text": "damaged or no picture", "truncated": "truncated", "small": "20x40"}
    assert_user_error(view(frames, weights, tmp_path, "--input_pic", "picture.png"), "picture.png", words[kind])
    assert not list(tmp_path.glob("*_result.png"))


def test_output_that_cannot_be_written_or_would_disturb(frames, weights, tmp_path) -> None:
    """A result picture in the results root is a second prediction to the official script."""
    (tmp_path / "file").write_text("x")
    flags = ["--input_pic", VAL]
    assert_user_error(view(frames, weights, tmp_path, *flags, "--output", "file/x.png"), "cannot write to")
    assert_user_error(view(frames, weights, tmp_path, *flags, "--output", "x.tif"), "--output")
    inside = view(frames, weights, tmp_path, *flags, CITYSCAPES_RESULTS=str(tmp_path))
    assert_user_error(inside, "$CITYSCAPES_RESULTS", "--output")
