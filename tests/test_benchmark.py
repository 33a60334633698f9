"""What the reported speed is compared with."""

from __future__ import annotations

import json
import multiprocessing

import numpy as np
import pytest
import torch
from conftest import assert_user_error, random_frame, run_script, write_frame

import model
from benchmark import size_row
from dataset import find_samples, read_pair
from inference.checkpoints import load_model
from inference.predictor import load_network
from model import normalise
from speed import training
from speed.predictions import BASELINE, Side, add_memory, label_head_rows, picture_rows, plain_network
from speed.timing import alternate, compare, table
from speed.training import original_order
from training.augment import TrainSet
from training.crop import crop_image, crop_label, place_crop
from utils import UserError

KEYS = {"name", "stage", "backend", "precision", "height", "width", "median_ms", "baseline_median_ms", "ratio"}


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
        normal = ((ours / 255 - model.MEAN) / model.STD).transpose(2, 0, 1)
        assert np.abs(normal - picture)[:, known].max() < 1.01 / 255 / min(model.STD)


def test_both_sides_draw_the_same_crops(frames, monkeypatch) -> None:
    """A baseline that has larger scales than ours is slower for no fault of its order of work."""
    monkeypatch.setattr(training, "CROP", (32, 64))
    samples = find_samples(frames, "train")
    ours = TrainSet(samples, (32, 64), training.SEED, training.SCALES)
    original = training.OriginalSet(samples)
    keys = training.crop_keys(len(samples), 14)
    for key in keys:
        known = original[key][1] != 255
        normal = model.normalise(ours[key][0][None])[0]
        assert (normal - original[key][0])[:, known].abs().max() < 1.01 / 255 / min(model.STD)
    scales = [training.SCALES.draw(np.random.default_rng((training.SEED, *key))) for key in keys]
    assert sorted(scales) == sorted(training.SCALES.values * 2)
    assert {index for _, index in keys} == {0, 1, 2}


def test_sides_alternate_after_a_warm_up() -> None:
    """All of one side first, then all of the other, measures how the machine's speed drifts."""
    calls: list[str] = []
    times = alternate((lambda _: calls.append("a"), lambda _: calls.append("b")), 3)
    assert calls == ["a", "b"] * 4 and [len(side) for side in times] == [3, 3]


def test_comparison_tells_medians_and_spread() -> None:
    """A mean that one slow repetition decides, or a ratio that is upside down."""
    row = compare([0.001, 0.002, 0.1], [0.01, 0.02, 0.03])
    assert (row["median_ms"], row["low_ms"], row["high_ms"]) == pytest.approx((2, 1, 100))
    assert row["baseline_median_ms"] == pytest.approx(20) and row["ratio"] == pytest.approx(10)


def test_tables_for_terminal_and_readme() -> None:
    """Columns that do not line up, or a table that a README does not show as one."""
    lines = [("a", "1.0"), ("longer", "22.0")]
    assert table(("name", "ms"), lines, False) == "name      ms\na        1.0\nlonger  22.0"
    assert table(("name", "ms"), lines, True).splitlines()[:3] == ["| name | ms |", "| --- | --: |", "| a | 1.0 |"]


def test_baseline_predicts_what_every_engine_does(weights) -> None:
    """A baseline that leaves out a step makes its ratio worthless."""
    model, _ = load_model(weights)
    picture = np.random.default_rng(0).integers(0, 256, (64, 96, 3), np.uint8)
    with torch.no_grad():
        logits = plain_network(model, picture, heads=False)
        assert logits.shape == (1, 19, 64, 96) and logits.is_contiguous()
        torch.testing.assert_close(logits, model(normalise(torch.from_numpy(picture)[None])), atol=1e-4, rtol=1e-4)
        coarse = plain_network(model, picture, heads=True)
    network, _ = load_network(weights)
    torch.testing.assert_close(network.run(torch.from_numpy(picture)[None]), coarse, atol=1e-3, rtol=1e-3)


def test_rows_have_the_promised_keys(weights) -> None:
    """A file of rows that a script cannot read."""
    model, _ = load_model(weights)
    picture = np.zeros((64, 96, 3), np.uint8)
    sides = [Side(weights, *BASELINE), Side(weights, "torch", "fp32")]
    with sides[0].process, sides[1].process:
        rows = picture_rows(sides, picture, 3)
        add_memory(rows, sides)
    assert rows[0]["peak_mib"] > 50 and rows[0]["baseline_peak_mib"] > 50 and "peak_mib" not in rows[1]
    rows += label_head_rows(model, picture, 3)
    assert [row["stage"] for row in rows] == ["picture-to-labels", "network", "label-head", "label-head"]
    assert all(row.keys() >= KEYS and row["ratio"] > 0 for row in rows)
    assert rows[3]["same"] and 0 <= rows[2]["mixed_share"] <= 1


def test_memory_is_that_of_a_process_of_its_own(weights) -> None:
    """A peak that is inherited from the process that asks for it."""
    picture = np.zeros((64, 96, 3), np.uint8)

    def peak() -> float:
        side = Side(weights, "torch", "fp32")
        with side.process:
            side.show(picture)
            assert side.seconds("picture-to-labels") > 0
            return side.peak()

    bare = peak()
    ballast = np.ones(1_000_000_000, np.uint8)
    beside = peak()
    assert bare > 50 and abs(beside - bare) < 100 and ballast[-1]


def test_a_killed_engine_is_named(weights) -> None:
    """A traceback of the pool's, where memory was short."""
    side = Side(weights, "torch", "fp32")
    with side.process:
        side.wait()
        for process in multiprocessing.active_children():
            process.kill()
        with pytest.raises(UserError, match="the process of torch fp32 was killed"):
            side.show(np.zeros((64, 96, 3), np.uint8))


def test_macs_are_multiply_adds() -> None:
    """FLOPs reported as MACs are twice too many: 6.71 G at 1024x2048."""
    row = size_row()
    assert row["parameters"] == 1_137_795
    assert row["macs"] / 1e9 == pytest.approx(6.71, abs=0.005)


def test_command_line_prints_both_sides(frames, tmp_path) -> None:
    """A row without its baseline, or a file without the promised keys."""
    flags = ["--data_path", frames, "--repeats", 3, "--json", tmp_path / "rows.json", "--train", "--quick"]
    result = run_script("benchmark.py", *flags, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert all(words in result.stdout for words in ("original's order", "times faster", "images/s"))
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert len(rows) == 2 + 4 + 1 + 2 == len({row["name"] for row in rows})  # samples, loaders, a step, loops
    for row in rows:
        assert row.keys() >= KEYS | {"images_per_s", "baseline_images_per_s"}
        assert row["ratio"] == pytest.approx(row["images_per_s"] / row["baseline_images_per_s"])
    assert_user_error(run_script("benchmark.py", "--repeats", 1, cwd=tmp_path), "--repeats is 1")
