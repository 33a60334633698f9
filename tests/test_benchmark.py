"""What the reported speed is compared with."""

from __future__ import annotations

import json

import numpy as np
import pytest
from conftest import assert_user_error, random_frame, run_script, write_frame

import dataset
from augment import crop_image, crop_label, place_crop
from benchmark import alternate, original_order, size_row
from dataset import find_samples, read_pair


def test_both_sides_make_the_same_sample(tmp_path) -> None:
    """A baseline that does other work, or less, than the loader makes its ratio worthless."""
    image, ids = random_frame(np.random.default_rng(0), 120, 200)
    write_frame(tmp_path, "train", "a_000000_000000", image, ids)
    (sample,) = find_samples(tmp_path, "train")
    for scale, flip in ((0.5, False), (1.0, True), (1.75, True)):
        picture, label = original_order(sample, scale, (64, 128), (0.3, 0.9), flip)
        frame, frame_label = read_pair(sample)
        crop = place_crop(frame_label.shape, scale, (64, 128), (0.3, 0.9), flip)
        ours, our_label = crop_image(frame, crop), crop_label(frame_label, crop)
        assert picture.dtype == np.float32 and label.dtype == np.int64
        assert picture.shape == (3, 64, 128) and label.shape == (64, 128)
        # The original pads before it maps nothing: its labels are the file's ids, and its padding is zero.
        known = label != 255
        np.testing.assert_array_equal(known | (our_label == 255), True)
        normal = ((ours / 255 - dataset.MEAN) / dataset.STD).transpose(2, 0, 1)
        assert np.abs(normal - picture)[:, known].max() < 1.01 / 255 / min(dataset.STD)


def test_sides_alternate_after_a_warm_up() -> None:
    """All of one side first, then all of the other, measures how the machine's speed drifts."""
    calls: list[str] = []
    times = alternate(lambda _: calls.append("a"), lambda _: calls.append("b"), 3)
    assert calls == ["a", "b"] * 4 and [len(side) for side in times] == [3, 3]


def test_macs_are_multiply_adds() -> None:
    """FLOPs reported as MACs are twice too many: 6.71 G at 1024x2048."""
    row = size_row()
    assert row["parameters"] == 1_137_795
    assert row["macs"] / 1e9 == pytest.approx(6.71, abs=0.005)


def test_command_line_prints_both_sides(frames, tmp_path) -> None:
    """A row without its baseline, or a file without the promised keys."""
    flags = ["--data_path", frames, "--repeats", 3, "--json", tmp_path / "rows.json"]
    result = run_script("benchmark.py", *flags, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert all(words in result.stdout for words in ("original's order", "ratio", "paper, reported", "6.92 G"))
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert {"name", "images_per_s", "baseline_images_per_s", "ratio"} <= rows[1].keys()
    assert_user_error(run_script("benchmark.py", "--repeats", 1, cwd=tmp_path), "--repeats is 1")
