"""Resuming after a power cut: killed at any moment, with a damaged state, or with other flags."""

from __future__ import annotations

import random
import shutil
import signal
import time
from pathlib import Path

from conftest import assert_user_error, refused, start_script
from runs import EVERYTHING, FLAGS, assert_same_weights, read_csv, train, without_time

from training.recipes import load_resumable, previous_path
from utils import load_checkpoint, save_checkpoint

KILLS = 5


def killed_and_resumed(frames: Path, output: Path, rng: random.Random, kills: int, flags: tuple) -> int:
    """Kills a run at random moments and resumes it, until it ends; returns how often it was killed."""
    last = output / "32_64_last.pth"
    killed = 0
    while True:
        resume = ("--resume", last) if last.exists() or previous_path(last).exists() else ()
        given = (*FLAGS, "--workers", rng.randrange(3), *flags, *resume)
        run = start_script("train.py", "--data_path", frames, "--output_dir", output, *given, cwd=frames)
        if killed < kills:
            while "recipe" not in run.stdout and run.returncode is None:
                time.sleep(0.01)  # the clock starts with the training: before, there is little to lose
            time.sleep(rng.uniform(0, 1))
            run.send_signal(signal.SIGKILL)
            killed += 1
        status, _, errors = run.wait()
        if status == 0:
            return killed
        assert status == -signal.SIGKILL, errors


def test_killed_at_random_moments_it_ends_the_same(frames, tmp_path) -> None:
    """Half a file, an epoch that is trained twice, or a state that came before the files beside it."""
    flags = (*EVERYTHING, "--epochs", 12)
    straight = train(frames, tmp_path / "straight", *flags)
    assert straight.returncode == 0, straight.stderr
    rng = random.Random(0)
    assert killed_and_resumed(frames, tmp_path / "cut", rng, KILLS, flags) == KILLS
    for name in ("32_64_model.pth", "32_64_last.pth"):
        assert_same_weights(tmp_path / "straight" / name, tmp_path / "cut" / name)
    rows = [without_time(read_csv(tmp_path / run / "32_64_statistics.csv")) for run in ("straight", "cut")]
    assert rows[0] == rows[1] and len(rows[0]) == 12


def test_workers_and_resumes_do_not_change_the_result(frames, tmp_path) -> None:
    """Whatever the loader draws when its workers start, taken from the stream of random numbers that dropout uses."""
    for name, workers, stops in (("none", 0, [3]), ("two", 2, [3]), ("resumed", 2, [1, 2, 3])):
        for stop in stops:
            resume = ["--resume", tmp_path / name / "32_64_last.pth"] if stop > stops[0] else []
            result = train(frames, tmp_path / name, "--epochs", stop, "--workers", workers, *resume)
            assert result.returncode == 0, result.stderr
    for name in ("two", "resumed"):
        assert_same_weights(tmp_path / "none" / "32_64_last.pth", tmp_path / name / "32_64_last.pth")


def test_a_damaged_state_falls_back_to_the_one_before(frames, tmp_path) -> None:
    """A run of weeks that a single bad block ends; or one that starts anew in silence."""
    straight, cut = tmp_path / "straight", tmp_path / "cut"
    assert train(frames, straight, "--epochs", 3).returncode == 0
    assert train(frames, cut, "--epochs", 2).returncode == 0
    last, previous = cut / "32_64_last.pth", cut / "32_64_last.prev.pth"
    assert len(load_checkpoint(previous)["history"]) == 1
    last.write_bytes(last.read_bytes()[:-1000])
    resumed = train(frames, cut, "--epochs", 3, "--resume", last)
    assert resumed.returncode == 0 and "1" in resumed.stdout, resumed.stderr
    (line,) = [line for line in resumed.stderr.splitlines() if "prev.pth" in line]
    assert "cannot be read" in line and str(last) in line
    assert_same_weights(straight / last.name, last)
    # Killed between two renames: there is no last state at all.
    last.unlink()
    (cut / ".32_64_last.pth.77.tmp").write_bytes(b"half")
    assert train(frames, cut, "--epochs", 3, "--resume", last).returncode == 0
    assert_same_weights(straight / last.name, last)


def test_both_states_damaged_are_refused(tmp_path) -> None:
    """A fallback that hides what was wrong."""
    last = tmp_path / "32_64_last.pth"
    save_checkpoint(last, {"model": {}})
    last.write_bytes(last.read_bytes()[:-50])
    with refused("32_64_last.pth"):
        load_resumable(last)
    shutil.copy(last, previous_path(last))
    with refused("prev.pth"):
        load_resumable(last)
    save_checkpoint(last, {"model": {}})
    with refused("--resume", last):
        load_resumable(last)


def test_flags_that_differ_are_named_and_those_that_matter_refused(frames, tmp_path) -> None:
    """A run that goes on with other crops is nobody's result; one with other workers is the same."""
    assert train(frames, tmp_path, "--epochs", 1).returncode == 0
    last = tmp_path / "32_64_last.pth"
    before = {path.name: path.read_bytes() for path in tmp_path.glob("32_64_*")}
    other = train(frames, tmp_path, "--epochs", 2, "--lr", 0.01, "--compile", "--resume", last)
    assert_user_error(other, "lr 0.001 (now 0.01)", "compile False (now True)")
    assert {path.name: path.read_bytes() for path in tmp_path.glob("32_64_*")} == before
    same = train(frames, tmp_path, "--epochs", 2, "--save_step", 1, "--workers", 1, "--resume", last)
    assert same.returncode == 0, same.stderr
    for words in ("another workers: 1 (was 0)", "another save_step: 1 (was 5)", "another epochs: 2 (was 1)"):
        assert words in same.stdout
    assert "another output_dir" not in same.stdout and "another seed" not in same.stdout
    # A state that was saved before a flag existed: the run had nothing of it.
    state = load_checkpoint(last)
    del state["args"]["class_mix"], state["args"]["input_side"], state["metadata"]["input_side"]
    save_checkpoint(last, state)
    older = train(frames, tmp_path, "--epochs", 3, "--resume", last)
    assert older.returncode == 0 and "class_mix" not in older.stdout, older.stderr
    assert_user_error(
        train(frames, tmp_path, "--epochs", 4, "--class_mix", 0.5, "--resume", last), "class_mix 0.0 (now 0.5)"
    )
