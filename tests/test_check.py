"""train.py --check: what a data set holds, and the first problem of each kind."""

from __future__ import annotations

import numpy as np
from conftest import assert_user_error, run_script
from tiny_sets import put

YAML = (
    "train: images/train\nval: images/val\nmasks_dir: masks\nnames: [road, car]\nlabel_mapping: {7: 0, 26: 1, 9: 1}\n"
)


def lay_out(root, values, count: int = 4) -> None:
    """Frames whose labels have the given values."""
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for index in range(count):
            put(root, f"images/{split}/{index}.png", value=rng.integers(0, 256, (40, 60, 3)).astype(np.uint8))
            put(root, f"masks/{split}/{index}.png", value=rng.choice(values, (40, 60)).astype(np.uint8))
    (root / "data.yaml").write_text(YAML)


def test_check_tells_what_is_there_and_what_will_be_written(tmp_path) -> None:
    """A mapping that is wrong, seen after a day of training."""
    lay_out(tmp_path, [7, 9, 26, 255])
    result = run_script("train.py", "--data_path", tmp_path / "data.yaml", "--check", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    text = result.stdout
    assert "train: 4 frames, 4 of 40x60" in text and "val: 4 frames" in text
    rows = {line.split()[0]: line.split() for line in text.splitlines() if line.startswith("  ")}
    assert rows["26"][1] == rows["9"][1] == "car" and rows["255"][1] == "ignored"
    assert rows["road"][-1] == "7" and rows["car"][-1] == "9"  # the lowest that the description names


def test_check_goes_on_to_the_first_problem_of_each_kind(tmp_path) -> None:
    """One problem a run: a data set of ten problems takes ten runs over all its files."""
    lay_out(tmp_path, [7, 26])
    masks = tmp_path / "masks" / "train"
    put(masks, "0.png", value=np.full((40, 60), 77, np.uint8))
    put(masks, "1.png", value=np.full((40, 60), 88, np.uint8))
    put(masks, "2.png", value=np.full((20, 60), 7, np.uint8))
    (tmp_path / "images" / "val" / "3.png").write_bytes(b"")
    result = run_script("train.py", "--data_path", tmp_path / "data.yaml", "--check", "--workers", "2", cwd=tmp_path)
    assert_user_error(result, "77", "2")
    problems = [line for line in result.stdout.splitlines() if "problem of" in line]
    assert len(problems) == 3, problems
    assert "2 frame(s)" in problems[0] and "0.png" in problems[0] and "77" in problems[0]
    assert "20x60" in problems[1] and "1 frame(s)" in problems[1]
    assert "3.png" in problems[2]


def test_labels_that_cannot_be_read_are_one_problem(tmp_path) -> None:
    """Files that nobody could read, counted as a split without classes too: "the labels only hold ; expected ,"."""
    lay_out(tmp_path, [7, 26], count=1)
    for split in ("train", "val"):
        put(tmp_path, f"masks/{split}/0.png", value=np.zeros((40, 60, 3), np.uint8))
    result = run_script("train.py", "--data_path", tmp_path / "data.yaml", "--check", "--workers", "0", cwd=tmp_path)
    assert_user_error(result, "3 channel", "1")
    assert "belongs to a class" not in result.stdout and "not read" not in result.stdout
    assert "train: 1 frames\n" in result.stdout


def test_check_misses_the_val_split_as_training_does(tmp_path) -> None:
    """A check without a complaint, after which training refuses the description."""
    lay_out(tmp_path, [7, 26], count=2)
    (tmp_path / "data.yaml").write_text(YAML.replace("val: images/val\n", ""))
    for check in ("--check", "--no-check"):
        result = run_script("train.py", "--data_path", tmp_path / "data.yaml", check, cwd=tmp_path)
        assert_user_error(result, "val", "val: FOLDER")
