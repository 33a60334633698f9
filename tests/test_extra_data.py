"""Several data sets in one run: each with its own labels, unions and scales."""

from __future__ import annotations

import subprocess
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from conftest import assert_user_error, random_frame, run_script, write_frame
from runs import FLAGS, assert_same_weights, read_csv, without_time
from tiny_sets import describe, put

from frames.cache import open_cache
from frames.classes import CITYSCAPES, IGNORE_INDEX
from frames.description import open_data
from frames.samples import DataSet, Scales, read_pair
from inference.checkpoints import load_model
from training.augment import TrainSet
from training.frames import Frames, find_frames, padding
from training.recipes import parse_args

NAMES = ["road", "sign", "car", "truck"]


def make_set(root: Path, values: tuple[int, ...], count: int = 2, **keys: object) -> Path:
    """Writes frames of 48x64 whose labels have these values in columns; returns the description."""
    rng = np.random.default_rng(len(str(values)))
    label = np.repeat(np.array(values, np.uint8), 64 // len(values))[None].repeat(48, 0)
    for split, number in (("train", count), ("val", 1)):
        for index in range(number):
            put(root, f"images/{split}/{index}.png", value=rng.integers(0, 256, (48, 64, 3), np.uint8))
            put(root, f"masks/{split}/{index}.png", value=label)
    return describe(root, **{"train": "images/train", "val": "images/val", "names": NAMES, **keys})


@pytest.fixture
def sets(tmp_path: Path) -> tuple[Path, Path]:
    """Two data sets: 7 is a sign in the first and a road in the second, whose cars may be trucks."""
    first = make_set(tmp_path / "first", (6, 7), label_mapping={6: 0, 7: 1})
    how = {"label_mapping": {7: 0, 8: 2}, "unions": {"car": ["car", "truck"]}, "scales": "1.5-2"}
    return first, make_set(tmp_path / "second", (7, 8), count=3, **how)


def found(first: Path, *extra: Path, flags: tuple[str, ...] = ()) -> tuple[Frames, DataSet]:
    """The frames of a run on these data sets, and the first of them."""
    args = parse_args(["--data_path", str(first), "--extra_data", *map(str, extra), "--workers", "0", *flags])
    data = open_data(args.data_path)
    return find_frames(args, data, {path: open_data(path) for path in args.extra_data}), data


def train(first: Path, output: Path, *flags: object) -> subprocess.CompletedProcess[str]:
    """Runs train.py at a size that takes a second an epoch."""
    return run_script("train.py", "--data_path", first, "--output_dir", output, *FLAGS, *flags, cwd=first.parent)


@pytest.mark.parametrize("cached", [False, True])
def test_a_value_means_what_its_own_data_set_says(sets, tmp_path, cached: bool) -> None:
    """A second data set that is read by the label table of the first: every sign of it becomes a road."""
    frames, _ = found(*sets)
    read = open_cache(tmp_path / "cache", [*frames.train, *frames.val]).read if cached else read_pair
    seen = [set(np.unique(read(sample)[1])) for sample in frames.train]
    assert seen == [{0, 1}] * 2 + [{0, 2}] * 3
    assert [sample.image.parent.parent.parent.name for sample in frames.val] == ["first"]


def test_a_data_set_named_twice_is_drawn_twice_and_kept_once(sets, tmp_path, capsys) -> None:
    """A name that is dropped as a repetition, or a cache that needs twice the disk."""
    first, second = sets
    frames, _ = found(first, second, second)
    drawn = Counter(str(sample.image) for sample in frames.train)
    assert len(frames.train) == 8 and sorted(drawn.values()) == [1, 1, 2, 2, 2]
    assert frames.sizes == {(None, (48, 64)): 2, (Scales((1.5, 2.0), True), (48, 64)): 6}
    assert capsys.readouterr().out.count(f"extra data {second}: 3 training frames") == 1
    open_cache(tmp_path / "cache", [*frames.train, *frames.val])
    assert len(list((tmp_path / "cache").rglob("*.npy"))) == 6


def test_only_the_val_frames_of_the_first_are_trained_on_too(sets, capsys) -> None:
    """Validation frames of another data set, kept for its own scores, that are trained on."""
    frames, _ = found(*sets, flags=("--train_split", "train+val"))
    assert len(frames.train) == 2 + 1 + 3 and len(frames.val) == 1 and sum(frames.sizes.values()) == 6
    assert "no pixel in the train split: truck" in capsys.readouterr().out


def test_a_picture_with_two_labels_is_cached_twice(sets, tmp_path) -> None:
    """Two descriptions of the same pictures: the cache gives the first one the labels of the second."""
    first, _ = sets
    other = first.with_name("other.yaml")
    other.write_text(first.read_text().replace("7: 1", "7: 2"))
    frames, _ = found(first, other)
    cache = open_cache(tmp_path / "cache", frames.train)
    for sample in frames.train:
        assert (cache.read(sample)[1] == read_pair(sample)[1]).all()


def test_scales_of_a_data_set_replace_those_of_the_flag(sets) -> None:
    """Pictures of another size, whose objects are shown at scales that were meant for the first data set."""
    frames, _ = found(*sets)
    crops = TrainSet(frames.train, (32, 40), 3, Scales((0.5,), False))
    plain = TrainSet([s._replace(scales=None) for s in frames.train], (32, 40), 3, Scales((1.5, 2.0), True))
    small = TrainSet([s._replace(scales=None) for s in frames.train], (32, 40), 3, Scales((0.5,), False))
    for index, expected in ((0, small), (1, small), (2, plain), (4, plain)):
        for got, wanted in zip(crops[1, index], expected[1, index], strict=True):
            assert (got == wanted).all()


def test_the_share_of_padding_is_that_of_the_crops(sets) -> None:
    """A share that leaves out a data set, its weight or its scales: the crop is chosen by a wrong number."""
    first, second = sets
    flags = ("--crop_h", "48", "--crop_w", "96", "--scales", "0.5,1")
    frames, _ = found(first, second, second, flags=flags)
    args = parse_args([*flags])
    half, whole = 1 - 24 * 32 / (48 * 96), 1 - 64 / 96
    assert padding(args, Counter({(None, (48, 64)): 1})) == pytest.approx((half + whole) / 2)
    rng = np.random.default_rng(0)
    own = np.mean([1 - min(1, 64 * scale / 96) for scale in rng.uniform(1.5, 2, 2000)])
    expected = (2 * (half + whole) / 2 + 6 * own) / 8
    assert padding(args, frames.sizes) == pytest.approx(expected, abs=2e-3)
    crops = TrainSet(frames.train, (48, 96), 0, Scales.parse(args.scales))
    counted = np.mean([(crops[e, i][1] == IGNORE_INDEX).numpy().mean() for e in range(25) for i in range(8)])
    assert padding(args, frames.sizes) == pytest.approx(counted, abs=0.03)


def test_a_run_on_several_data_sets_resumes_to_the_same_end(sets, tmp_path) -> None:
    """Epochs, crops or targets that depend on when the run was cut; a best epoch of another score than the joined."""
    _, second = sets
    first = make_set(tmp_path / "val", (0, 2, 1, 3), unions={"car": ["car", "truck"]})
    how = ("--recipe", "strong", "--power", 0, "--scales", 0.5, "--class_mix", 0.5, "--aux_weight", 0.4)
    flags = (*how, "--extra_data", second, second, "--epochs")
    straight, cut = tmp_path / "straight", tmp_path / "cut"
    result = train(first, straight, *flags, 3)
    assert result.returncode == 0, result.stderr
    assert "8 training" in result.stdout and "1 validation" in result.stdout
    assert "crops 32x64: 15.6 % padding" in result.stdout
    rows = read_csv(straight / "32_64_statistics.csv")
    best = max(rows, key=lambda row: float(row["joined_miou"]))
    _, metadata = load_model(straight / "32_64_model.pth")
    assert metadata["epoch"] == int(best["epoch"]) and metadata["joined_miou"] == float(best["joined_miou"])
    assert metadata["extra_data"] == [str(second)] * 2

    train(first, cut, *flags, 1)
    last = cut / "32_64_last.pth"
    for other in ((second,), (first, second)):
        refused = train(first, cut, *how, "--epochs", 3, "--extra_data", *other, "--resume", last)
        assert_user_error(refused, "extra_data", second)
    text = second.read_text()
    for old, new, name in (
        ("truck", "sign", "unions"),
        ("1.5-2", "1-2", "data_scales"),
        ("7: 0", "7: 1", "extra_values"),
    ):
        second.write_text(new.join(text.rsplit(old, 1)))
        assert_user_error(train(first, cut, *flags, 3, "--resume", last), name)
    second.write_text(text)
    result = train(first, cut, *flags, 3, "--resume", last)
    assert result.returncode == 0 and "1" in result.stdout, result.stderr
    assert_same_weights(straight / "32_64_last.pth", last)
    assert without_time(rows) == without_time(read_csv(cut / "32_64_statistics.csv"))


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["road", "sign", "truck", "car"], ("class 2 is 'truck'", "'car'")),
        (["road", "sign", "car"], ("class 3 is 'none'", "'truck'")),
        ([*NAMES, "bus"], ("class 4 is 'bus'", "'none'")),
    ],
    ids=["order", "fewer", "more"],
)
def test_other_classes_are_refused(sets, tmp_path, names: list[str], words: tuple[str, ...]) -> None:
    """Train ids of another list: cars are learnt as trucks."""
    other = make_set(tmp_path / "other", (0, 1), names=names)
    result = train(sets[0], tmp_path / "out", "--extra_data", other)
    assert_user_error(result, f"--extra_data {other}: ", *words)


def without_labels(root: Path) -> Path:
    """A description of pictures alone."""
    put(root, "images/train/0.png")
    return describe(root, train="images/train", names=NAMES)


def without_train(root: Path) -> Path:
    """A folder in Cityscapes layout that has a val split only."""
    write_frame(root, "val", "a_000000_000000", *random_frame(np.random.default_rng(0)))
    return root


EMPTY = {"label_mapping": {5: "ignore_label"}}
BAD_SETS = {
    "no labels": (without_labels, ("no label for", "0.png")),
    "no train split": (without_train, ("has no leftImg8bit/train",)),
    "no `train`": (lambda root: describe(root, val="images", names=NAMES), ("lacks `train`",)),
    "nothing there": (lambda root: root / "none", ("no data set at", "none")),
    "no labelled pixel": (
        lambda root: make_set(root, (5, 255), **EMPTY),
        ("no pixel of the train split of --extra_data", "5 (ignored), 255 (ignored)"),
    ),
    "scales": (lambda root: make_set(root, (0,), scales="2-0.5"), ("`scales` is '2-0.5', expected a list",)),
    "list of scales": (lambda root: make_set(root, (0,), scales=[0.5, 1]), ("`scales` is [0.5, 1], expected a list",)),
    "scales of nothing": (lambda root: make_set(root, (0,), scales=0), ("`scales` is 0, expected a list",)),
    "unions": (lambda root: make_set(root, (0,), unions={"car": ["van"]}), ("names the class 'van'",)),
}


@pytest.mark.parametrize("check", [False, True], ids=["train", "check"])
@pytest.mark.parametrize("case", BAD_SETS)
def test_bad_extra_data_is_refused(case: str, check: bool, tmp_path) -> None:
    """A run that trains for a day without the frames that were asked for."""
    make, words = BAD_SETS[case]
    names = list(CITYSCAPES.names) if case in ("no train split", "nothing there") else NAMES
    first = make_set(tmp_path / "first", (0, 1), names=names)
    result = train(first, tmp_path / "out", "--extra_data", make(tmp_path / "bad"), *(["--check"] if check else []))
    assert_user_error(result, *words)


def test_check_shows_the_extra_data(sets, tmp_path) -> None:
    """A second data set whose values nobody looked at before training on them; its val is not the run's affair."""
    first, second = sets
    (second.parent / "masks" / "val" / "0.png").unlink()
    result = train(first, tmp_path / "out", "--extra_data", second, "--check")
    assert result.returncode == 0, result.stderr
    report = result.stdout[result.stdout.index(f"extra data {second}, train: 3 frames, 3 of 48x64") :]
    rows = {line.split()[0]: line.split()[1] for line in report.splitlines()[2:]}
    assert rows["7"] == "road" and rows["8"] == "car"


def test_a_sigmoid_per_class_cannot_learn_unions(sets, tmp_path) -> None:
    """A loss that takes the id of a union for a class, or each of its classes for a wrong one."""
    result = train(sets[0], tmp_path / "out", "--extra_data", sets[1], "--loss", "bce")
    assert_user_error(result, "--loss", "unions", "cross_entropy")


def test_one_class_is_enough_for_extra_data(sets, tmp_path) -> None:
    """Pictures of riders alone, added because the first data set lacks them, are refused."""
    other = make_set(tmp_path / "other", (3,))
    frames, _ = found(sets[0], other)
    assert [set(np.unique(read_pair(sample)[1])) for sample in frames.train[2:]] == [{3}, {3}]


def test_runs_of_equal_flags_are_equal(sets, tmp_path) -> None:
    """Targets that depend on the number of workers."""
    first, second = sets
    flags = ("--extra_data", second, "--epochs", 2, "--class_mix", 0.5)
    for workers in (0, 2):
        result = train(first, tmp_path / str(workers), *flags, "--workers", workers)
        assert result.returncode == 0, result.stderr
    assert_same_weights(*(tmp_path / name / "32_64_last.pth" for name in "02"))
    rows = [without_time(read_csv(tmp_path / name / "32_64_statistics.csv")) for name in "02"]
    assert rows[0] == rows[1] and rows[0][0]["joined_miou"] == "nan"
