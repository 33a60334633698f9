"""The reported speed: both sides of a comparison do the same work, in turn, and rows say what was measured."""

from __future__ import annotations

import functools
import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import assert_user_error, refused, run_script
from makers import normalise
from runs import KEYS

from benchmark import size_row
from inference.checkpoints import load_model
from inference.predictor import load_engine
from speed import predictions
from speed.load import open_load
from speed.plain import WEIGHTS, PlainNetwork
from speed.predictions import EngineProcess, add_memory, chosen_engines, image_rows, label_head_rows, open_engines, show
from speed.timing import CPU, clock, compare, interleave, peak_memory, report, table
from street.scene import draw_scene

IMAGE = np.random.default_rng(0).integers(0, 256, (64, 96, 3), np.uint8)


def test_sides_alternate_after_a_warm_up() -> None:
    """All of one side first, then all of the other, measures how the machine's speed drifts."""
    calls: list[str] = []
    timers = [functools.partial(clock, functools.partial(calls.append, side), CPU, burst=2) for side in "ab"]
    times = interleave(timers, 3)
    assert calls == ["a", "a", "b", "b"] * 4 and [len(side) for side in times] == [3, 3]


def test_a_burst_counts_as_one_call() -> None:
    """Calls that are queued at once, and a rate that is lower by their number."""
    assert 0.01 <= clock(functools.partial(time.sleep, 0.01), CPU, burst=10) < 0.05


def test_comparison_tells_medians_and_spread() -> None:
    """A mean that one slow repetition decides, or a ratio that is upside down."""
    row = compare([0.001, 0.002, 0.1], [0.01, 0.02, 0.03])
    assert (row["median_ms"], row["low_ms"], row["high_ms"]) == pytest.approx((2, 1, 100))
    assert row["baseline_median_ms"] == pytest.approx(20) and row["ratio"] == pytest.approx(10)


def test_tables_for_terminal_and_readme() -> None:
    """Columns that do not line up, or a table that a README does not show as one."""
    lines = [("a", "1.0"), ("longer", "22.0")]
    assert len({len(line) for line in table(("name", "ms"), lines, False).splitlines()}) == 1
    assert table(("name", "ms"), lines, True).splitlines()[:3] == ["| name | ms |", "| --- | --: |", "| a | 1.0 |"]


def test_rows_are_on_the_disk_after_each_group(tmp_path, capsys) -> None:
    """Measurements that are lost because a later one crashes, or because a lent machine is taken away."""
    path = tmp_path / "rows.json"

    def groups() -> Iterator[tuple[str, list[dict]]]:
        yield "first group", [{"name": "a", "ratio": 2.0}]
        assert [row["name"] for row in json.loads(path.read_text())] == ["a"]
        yield "none of these could run", []
        yield "last group", [{"name": "b", "ratio": 3.0, "equal": None}]

    rows = report(groups(), False, str(path))
    assert rows == json.loads(path.read_text()) and len(rows) == 2
    out = capsys.readouterr().out
    assert "2.00" in out and "3.00" in out and "none" not in out


def test_baseline_predicts_what_every_engine_does() -> None:
    """A baseline that leaves out a step, or runs in another memory layout, makes its ratio worthless."""
    model, _ = load_model(WEIGHTS)
    plain = PlainNetwork(model)
    images = torch.from_numpy(draw_scene(0, 97, 131)[0])[None]
    with torch.no_grad():
        labels, logits = plain.labels(images), plain.logits(images)
        expected = model(normalise(images)).argmax(1)
    assert len(expected.unique()) > 2 and (labels == expected).float().mean() > 0.999
    assert logits.is_contiguous()
    network, _ = load_engine(WEIGHTS)
    torch.testing.assert_close(network.logits(images), logits, atol=1e-3, rtol=1e-3)


def test_quick_leaves_out_what_takes_long_to_prepare(monkeypatch) -> None:
    """A look that takes minutes of compiling, or an engine of GPUs that is timed on a CPU."""
    precisions = {**predictions.PRECISIONS, "torch-graph": ("fp32", "fp16")}
    monkeypatch.setattr(predictions, "PRECISIONS", precisions)
    quick, full = chosen_engines(quick=True), chosen_engines(quick=False)
    assert quick == [("torch", "fp32"), ("torch", "bf16"), ("onnx", "fp32"), ("openvino", "fp32"), ("openvino", "bf16")]
    assert set(full) - set(quick) == {*(("openvino", precision) for precision in ("fp16", "int8")), ("onnx", "int8")}


@pytest.fixture(scope="module")
def engines(weights, tmp_path_factory) -> Iterator[tuple[list[EngineProcess], list[str]]]:
    """Both baselines and PyTorch, each in its process, and what is said of an engine that cannot be opened."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(predictions, "chosen_engines", lambda quick: [("torch", "fp32"), ("torch", "int8")])
        with open_engines(weights, tmp_path_factory.mktemp("exported"), [], quick=False) as opened:
            yield opened


def test_an_engine_that_cannot_run_is_a_line(engines) -> None:
    """One missing package that ends the measurement of all others."""
    opened, missing = engines
    both = [predictions.BASELINE, predictions.RETURNING]
    assert [(engine.backend, engine.precision) for engine in opened] == [*both, ("torch", "fp32")]
    (line,) = missing
    assert line.startswith("torch int8: not run (") and "int8" in line.removeprefix("torch int8")


def test_rows_have_the_promised_keys(engines, weights) -> None:
    """A file of rows that a script cannot read."""
    opened = engines[0][::2]  # without the baseline that returns freed memory
    rows = [row for stage in ("picture-to-labels", "network") for row in image_rows(opened, IMAGE, stage, 3)]
    add_memory(rows[:1], opened)
    assert rows[0]["peak_mib"] > 50 and rows[0]["baseline_peak_mib"] > 50 and "peak_mib" not in rows[1]
    rows += label_head_rows(opened[0], load_model(weights)[0].align_corners, IMAGE, 3)
    assert [row["stage"] for row in rows] == ["picture-to-labels", "network", "label-head", "label-head"]
    heads = [f"{name}, scene, 64x96" for name in ("label head", "interpolate + max(1).indices")]
    assert [row["name"] for row in rows] == ["torch fp32, 64x96"] * 2 + heads
    assert all(row.keys() >= KEYS and row["ratio"] > 0 and row["device"] == "cpu" for row in rows)
    assert all(row["differing"] < 10 and 0 <= row["mixed_share"] <= 1 for row in rows[2:])
    assert not any("loaded_median_ms" in row for row in rows)


@pytest.mark.skipif(sys.platform != "linux", reason="only glibc can be told to keep freed memory")
def test_only_the_named_baseline_returns_freed_memory(engines) -> None:
    """A baseline slowed down by the allocator, which no engine here is; or the other one under a wrong name."""

    def resident_mib(pid: int) -> float:
        (line,) = (x for x in Path(f"/proc/{pid}/status").read_text().splitlines() if x.startswith("VmRSS"))
        return int(line.split()[1]) / 1024

    def kept_of_64_mib(engine: EngineProcess) -> float:
        pid = engine.call(os.getpid)
        before = resident_mib(pid)
        engine.call(eval, "len(b'x' * (64 << 20))", {})
        return resident_mib(pid) - before

    kept, returning, ours = map(kept_of_64_mib, engines[0])
    assert kept > 50 and ours > 50 and returning < 10


def test_the_baseline_has_a_row_under_load(engines) -> None:
    """A ratio of an engine under load that nobody can compare with what others get there."""
    opened = engines[0][::2]
    with open_load(1) as load:
        rows = image_rows(opened, IMAGE, "network", 3, load)
        heads = label_head_rows(opened[0], False, IMAGE, 3, load)
    add_memory(rows, opened)
    assert [row["name"] for row in rows] == ["baseline fp32, 64x96", "torch fp32, 64x96"] and len(heads) == 3
    assert rows[0]["ratio"] == heads[0]["ratio"] == 1 and rows[0]["peak_mib"] == rows[1]["baseline_peak_mib"]
    assert all(row["slowdown"] > 0 and row["load"] == 1 for row in rows + heads)


def test_a_process_has_its_own_memory_and_is_named_when_killed(engines, weights) -> None:
    """A peak inherited from the process that asks for it; a traceback of the pool's where memory was short."""
    ballast = np.ones(1_000_000_000, np.uint8)
    other = EngineProcess(weights, "torch", "fp32")
    peaks = []
    with other.process:
        for engine in (engines[0][2], other):
            engine.call(show, IMAGE)
            assert engine.call(predictions.seconds_of, "picture-to-labels") > 0
            peaks.append(engine.call(peak_memory))
        assert peaks[0] > 50 and abs(peaks[1] - peaks[0]) < 100 and ballast[-1]
        with refused("fp32"):
            other.call(os.kill, other.call(os.getpid), signal.SIGKILL)


def test_macs_are_multiply_adds() -> None:
    """FLOPs reported as MACs are twice too many: 6.71 G at 1024x2048."""
    row = size_row()
    assert row["parameters"] == 1_137_795
    assert row["macs"] / 1e9 == pytest.approx(6.71, abs=0.005)


def test_command_line_refuses_and_writes(tmp_path, monkeypatch, weights) -> None:
    """A row without its baseline, or a file without the promised keys."""
    monkeypatch.setattr("benchmark.FRAME", (64, 96))
    monkeypatch.setattr("benchmark.SIZES", ((64, 96),))
    monkeypatch.setattr(predictions, "chosen_engines", lambda quick: [("torch", "fp32")])
    flags = ["--model_weight", weights, "--json", tmp_path / "rows.json", "--quick"]
    result = run_script("benchmark.py", *flags, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert [row["stage"] for row in rows][:2] == ["picture-to-labels", "network"]
    assert all(row.keys() >= KEYS and f"{row['ratio']:.2f}" in result.stdout for row in rows)
    assert_user_error(run_script("benchmark.py", "--repeats", 1, cwd=tmp_path), "--repeats", "1")
