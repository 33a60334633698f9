"""The cache gives what the files give, is never taken for more than it is, and says what is wrong with it."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import tempfile
import time
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from conftest import Started, assert_user_error, random_frame, refused, run_script, start_script, write_frame
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from frames.cache import open_cache
from frames.cityscapes import find_samples
from frames.samples import Scales, read_pair
from frames.workers import loader_worker
from training.augment import EpochSampler, TrainSet
from utils import UserError, load_checkpoint, run_cli

FLAGS = ("--crop_h", 32, "--crop_w", 64, "--batch_size", 2, "--epochs", 1, "--workers", 1, "--device", "cpu")


def both_splits(root: Path) -> list:
    """The training and validation frames."""
    return find_samples(root, "train") + find_samples(root, "val")


def frame_files(folder: Path) -> list[Path]:
    """The files of a cache that hold frames."""
    return sorted(folder.rglob("*.npy"))


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 10**6), st.lists(st.tuples(st.integers(1, 90), st.integers(1, 90)), min_size=1, max_size=4))
def test_frames_of_any_size_are_those_of_the_files(seed, sizes) -> None:
    """A frame that begins a byte late, or has the size of another."""
    rng = np.random.default_rng(seed)
    with tempfile.TemporaryDirectory() as name:
        for index, size in enumerate(sizes):
            write_frame(Path(name) / "data", "train", f"a_000000_{index:06d}", *random_frame(rng, *size))
        samples = find_samples(Path(name) / "data", "train")
        opened = open_cache(Path(name) / "cache", samples)
        for sample in reversed(samples):
            for cached, read in zip(opened.read(sample), read_pair(sample), strict=True):
                assert cached.dtype == np.uint8 and cached.flags.writeable
                np.testing.assert_array_equal(cached, read)
                cached[:] = 7  # stays in this process
        np.testing.assert_array_equal(opened.read(samples[0])[0], read_pair(samples[0])[0])


@pytest.mark.parametrize(
    ("workers", "persistent", "start"),
    [(0, False, None), (1, False, "fork"), (2, True, "fork"),
     pytest.param(2, True, "spawn", marks=pytest.mark.slow)],
)  # fmt: skip
def test_crops_are_bitwise_those_of_the_files(frames, tmp_path, workers, persistent, start) -> None:
    """A run that cannot be compared with one on a machine without the cache."""
    samples = find_samples(frames, "train")

    def batches(read, count: int, **how) -> list[torch.Tensor]:
        sampler = EpochSampler(len(samples), 2, seed=3)
        augment = {"class_uniform": 0.5, "color_strength": 1.0, "class_mix": 0.5}
        train_set = TrainSet(samples, (48, 64), 3, Scales.parse("0.5-2"), **augment, read=read)
        loader = DataLoader(train_set, batch_sampler=sampler, num_workers=count, **how)
        collected = []
        for sampler.epoch in (1, 2):
            collected += [torch.cat([part.flatten() for part in batch]) for batch in loader]
        return collected

    read = open_cache(tmp_path / "cache", samples).read
    how = {"multiprocessing_context": start, "persistent_workers": persistent, "worker_init_fn": loader_worker}
    cached, plain = batches(read, workers, **(how if workers else {})), batches(read_pair, 0)
    assert len(cached) == 2 and all(torch.equal(a, b) for a, b in zip(cached, plain, strict=True))


def test_a_run_with_the_cache_ends_in_the_same_weights(frames, tmp_path) -> None:
    """A flag that is read and then forgotten, or a cache that trains another network."""
    weights, printed = [], []
    for output, flags in (("plain", ()), ("cached", ("--cache", "cache")), ("again", ("--cache", "cache"))):
        flags = ["--data_path", frames, "--output_dir", output, *FLAGS, *flags]
        result = run_script("train.py", *flags, cwd=tmp_path)
        assert result.returncode == 0, result.stderr
        weights.append(load_checkpoint(tmp_path / output / "32_64_last.pth")["model"])
        printed.append(result.stdout)
    for other in weights[1:]:
        assert all(torch.equal(tensor, other[name]) for name, tensor in weights[0].items())
    assert "5 of 5" in printed[1] and "to decode" not in printed[2]


def test_splits_share_a_folder(frames, tmp_path, capfd) -> None:
    """Validation that throws the training frames away, or train+val that decodes everything again."""
    train, val = find_samples(frames, "train"), find_samples(frames, "val")
    open_cache(tmp_path / "cache", train)
    open_cache(tmp_path / "cache", val)
    assert "3 of 3" in (printed := capfd.readouterr().out) and "2 of 2" in printed
    opened = open_cache(tmp_path / "cache", train + val + val, workers=1)
    assert capfd.readouterr().out == "" and len(frame_files(tmp_path / "cache")) == 5
    np.testing.assert_array_equal(opened.read(val[1])[0], read_pair(val[1])[0])
    with refused(train[0].image):
        open_cache(tmp_path / "other", val).read(train[0])


def build(data: str, folder: str, workers: int) -> int:
    """Opens the cache of a data set and reads all of it, as one of several processes of a run would."""

    def main() -> None:
        samples = find_samples(data, "train")
        opened = open_cache(folder, samples, workers)
        print("equal", all(np.array_equal(opened.read(s)[i], read_pair(s)[i]) for s in samples for i in (0, 1)))

    try:
        run_cli(main)
    except SystemExit as end:
        return end.code


def start_build(data: Path, folder: Path, workers: int) -> Started:
    """Starts build in a process of its own."""
    return Started(build, str(data), str(folder), workers, cwd=data)


@pytest.fixture
def many(tmp_path) -> Path:
    """Frames enough that a build can be met in its middle."""
    image, ids = random_frame(np.random.default_rng(0), 256, 512)
    for index in range(40):
        write_frame(tmp_path / "data", "train", f"a_000000_{index:06d}", np.roll(image, index, 0), ids)
    return tmp_path / "data"


def stop_build(data: Path, folder: Path, workers: int, number: int) -> tuple[int, str]:
    """Ends a build in its middle by a signal; returns its exit status and what it said on stderr."""
    building = start_build(data, folder, workers)
    while len(frame_files(folder)) < 5 and building.returncode is None:
        time.sleep(0.002)
    building.send_signal(number)
    status, _, errors = building.wait()
    return status, errors


@pytest.mark.parametrize("workers", [0, 2])
def test_an_interrupted_build_ends_in_one_line(many, tmp_path, workers) -> None:
    """Ctrl-C in the first minutes of a run: pages of tracebacks, from every worker."""
    status, errors = stop_build(many, tmp_path / "cache", workers, signal.SIGINT)
    assert status == 130 and len(frame_files(tmp_path / "cache")) < 40
    assert [line for line in errors.splitlines() if line] == ["interrupted"]
    assert "equal True" in start_build(many, tmp_path / "cache", workers).wait()[1]


def test_a_build_that_was_killed_goes_on_where_it_was(many, tmp_path) -> None:
    """A cache that is half there and taken for whole, or 27 GiB that are written again from the start."""
    folder = tmp_path / "cache"
    stop_build(many, folder, 2, signal.SIGKILL)
    before = {path: path.stat().st_mtime_ns for path in frame_files(folder)}
    assert 5 <= len(before) < 40, "the build was over before the signal came"
    (next(iter(before)).parent / ".left.1.tmp").write_bytes(b"half")
    half = next(iter(before))
    half.write_bytes(half.read_bytes()[:1000])  # what a file system may leave after a power cut
    samples = find_samples(many, "train")
    opened = open_cache(folder, samples, workers=2)
    assert all(path.stat().st_mtime_ns == time_ns for path, time_ns in before.items() if path != half)
    assert all(np.array_equal(opened.read(s)[0], read_pair(s)[0]) for s in samples)
    assert not list(folder.rglob("*.tmp")) and len(frame_files(folder)) == 40


def test_of_several_processes_one_builds(many, tmp_path) -> None:
    """Two processes of a run that write the same file, or read what the other has not finished."""
    outputs = [building.wait() for building in [start_build(many, tmp_path / "cache", 1) for _ in range(3)]]
    assert all(status == 0 and "equal True" in out for status, out, _ in outputs), outputs
    assert sum("40" in out for _, out, _ in outputs) == 1
    assert sum("to decode" in out for _, out, _ in outputs) == 1


def _picture_changed(root: Path, folder: Path) -> None:
    cv2.imwrite(str(find_samples(root, "train")[1].image), np.zeros((64, 96, 3), np.uint8))


def _label_touched(root: Path, folder: Path) -> None:
    os.utime(find_samples(root, "val")[0].label, ns=(0, 10**18))


def _other_labels(root: Path, folder: Path) -> None:
    label = find_samples(root, "train")[0].label
    cv2.imwrite(str(label).replace("labelIds", "labelTrainIds"), read_pair(find_samples(root, "train")[0])[1])
    label.unlink()


def _truncated(root: Path, folder: Path) -> None:
    path = frame_files(folder)[2]
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize(
    "change", [_picture_changed, _label_touched, _other_labels, _truncated], ids=lambda function: function.__name__
)
def test_a_frame_that_changed_is_made_again(frames, tmp_path, change, capfd) -> None:
    """A network trained on other pictures than those of the data set that was named."""
    folder = tmp_path / "cache"
    open_cache(folder, both_splits(frames))
    change(frames, folder)
    capfd.readouterr()
    samples = both_splits(frames)
    opened = open_cache(folder, samples)
    assert "1 of 5" in capfd.readouterr().out
    for sample in samples:
        assert all(np.array_equal(a, b) for a, b in zip(opened.read(sample), read_pair(sample), strict=True))


def test_folders_that_are_no_cache_are_refused(frames, tmp_path) -> None:
    """Somebody's folder filled with frames, or a traceback."""
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.tex").write_text("x")
    (tmp_path / "file").write_text("a file where the folder should be")
    for folder, noun in (("thesis", "thesis.tex"), ("file", "file")):
        result = run_script("train.py", "--data_path", frames, *FLAGS, "--cache", tmp_path / folder, cwd=tmp_path)
        assert_user_error(result, noun)
    assert sorted(path.name for path in tmp_path.glob("t*/*")) == ["thesis.tex"]


def test_a_disk_that_is_too_small_is_refused_with_the_figure(frames, tmp_path) -> None:
    """A disk that is full after an hour."""
    samples = both_splits(frames)
    needed = 5 * 4 * 64 * 96
    with refused("0.00", "5"):
        open_cache(tmp_path / "cache", samples, free=needed - 1)
    assert not frame_files(tmp_path / "cache")
    open_cache(tmp_path / "cache", samples, free=needed)
    written = sum(path.stat().st_size for path in frame_files(tmp_path / "cache"))
    assert needed < written < 1.1 * needed
    open_cache(tmp_path / "cache", samples, free=0)  # nothing more to write


def test_a_disk_that_fills_up_leaves_what_is_whole(many, tmp_path) -> None:
    """Half a frame under the name of a whole one when somebody else fills the disk."""
    size = 4 * 256 * 512 - 1
    limit = partial(resource.setrlimit, resource.RLIMIT_FSIZE, (size, size))
    for folder in ("leftImg8bit", "gtFine"):
        shutil.copytree(many / folder / "train", many / folder / "val")
    flags = ("--data_path", many, "--cache", tmp_path / "cache", *FLAGS)
    result = start_script("train.py", *flags, cwd=tmp_path, first=limit).result()
    assert_user_error(result, ".npy")
    assert not frame_files(tmp_path / "cache") and not list((tmp_path / "cache").rglob("*.tmp"))


def test_a_file_that_vanishes_during_a_run_is_named(frames, tmp_path) -> None:
    """A traceback from a loader worker."""
    samples = both_splits(frames)
    opened = open_cache(tmp_path / "cache", samples)
    for path in frame_files(tmp_path / "cache"):
        path.unlink()
    with refused(samples[0].image):
        opened.read(samples[0])


def test_a_damaged_source_is_named_and_nothing_of_it_is_kept(frames, tmp_path) -> None:
    """A picture of which a part is grey, cached for good."""
    samples = find_samples(frames, "train")
    data = bytearray(samples[1].image.read_bytes())
    data[len(data) // 2] ^= 0xFF
    samples[1].image.write_bytes(data)
    with pytest.raises(UserError, match=samples[1].image.name):
        open_cache(tmp_path / "cache", samples, workers=1)
    assert len(frame_files(tmp_path / "cache")) < len(samples)
