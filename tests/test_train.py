"""Training from the command line: files, interruption, resume, refusals."""

from __future__ import annotations

import ctypes
import functools
import json
import math
import os
import re
import resource
import shlex
import signal
import subprocess
import sys
import time

import cv2
import numpy as np
import pytest
import torch
from conftest import assert_user_error, run_script, start_script
from runs import EVERYTHING, FLAGS, assert_same_weights, read_csv, train, without_time

from frames.cityscapes import find_samples
from frames.images import read_label
from frames.samples import read_pair
from inference.checkpoints import load_model
from model import FastSCNN
from training.run_files import COLUMNS
from utils import count_parameters_and_macs, load_checkpoint, save_checkpoint


def test_a_run_leaves_everything_and_the_official_script_agrees(frames, tmp_path) -> None:
    """The main job: weights, statistics, predictions, and a last line that scores them when pasted into a shell."""
    output = tmp_path / "a folder"
    result = train(frames, output, "--epochs", 2, "--save_step", 1)
    assert result.returncode == 0, result.stderr
    rows = read_csv(output / "32_64_statistics.csv")
    assert list(rows[0]) == list(COLUMNS) and [row["epoch"] for row in rows] == ["1", "2"]
    assert all(float(row["lr"]) == 1e-3 and 0 <= float(row["class_miou"]) <= 1 for row in rows)
    _, metadata = load_model(output / "32_64_model.pth")
    best = max(rows, key=lambda row: float(row["class_miou_present"]))
    assert metadata["epoch"] == int(best["epoch"])
    names = sorted(path.name for path in (output / "results").rglob("*"))
    assert names == [f"valstadt_000000_{i:06d}_pred_labelIds.png" for i in range(2)]
    assert len(list((output / "results_color").iterdir())) == 2
    for words in ("1,137,795 parameters", "1 steps per epoch", "total batch 2", "torch 2.", "epoch 2/2"):
        assert words in result.stdout, result.stdout
    assert result.stderr == ""  # no bars where there is no terminal

    command = result.stdout.rstrip().splitlines()[-1]
    assert "csEvalPixelLevelSemanticLabeling" in command
    subprocess.run(command, shell=True, check=True, capture_output=True, cwd="/")
    official = json.loads((output / "resultPixelLevelSemanticLabeling.json").read_text())
    assert official["averageScoreClasses"] == pytest.approx(float(best["class_miou"]), abs=1e-9)
    assert official["averageScoreCategories"] == pytest.approx(float(best["category_miou"]), abs=1e-9)


def test_everything_that_a_checkpoint_carries_is_honoured(frames, weights, tmp_path) -> None:
    """An input scale or side, an average or a fine-tuned start that training uses and evaluation does not."""
    flags = ["--init_weights", weights, "--input_scale", 1.5, "--input_side", 96]
    flags += ["--train_split", "train+val", "--aux_weight", 0.4]
    result = train(frames, tmp_path, *flags, "--ema", 0.9, "--optimizer", "sgd", "--power", 0.9, "--epochs", 2)
    assert result.returncode == 0, result.stderr
    macs = count_parameters_and_macs(FastSCNN(aux=True, input_scale=1.5), 32, 64)[1]
    assert f"{macs / 1e9:.2f}" in result.stdout and "32x64" in result.stdout  # of a crop, whatever the input side
    assert "seen in training" in result.stdout and "5 training and 2 validation" in result.stdout
    assert "aux_shallow" in result.stderr
    assert all((tmp_path / name).stat().st_size > 5000 for name in ("curves.png", "confusion.png"))
    model, metadata = load_model(tmp_path / "32_64_model.pth")
    assert model.input_scale == metadata["input_scale"] == 1.5 and metadata["train_split"] == "train+val"
    assert model.input_side == metadata["input_side"] == 96
    rows = read_csv(tmp_path / "32_64_statistics.csv")
    assert float(rows[0]["lr"]) > float(rows[1]["lr"])
    again = run_script(
        "evaluate.py", "--data_path", frames, "--model_weight", tmp_path / "32_64_model.pth", "--device", "cpu",
        "--json", tmp_path / "scores.json", "--workers", 0, cwd=tmp_path,
    )  # fmt: skip
    assert again.returncode == 0, again.stderr
    assert "val split was seen in training" in again.stdout
    best = max(float(row["class_miou_present"]) for row in rows)
    assert json.loads((tmp_path / "scores.json").read_text())["averageScoreClasses"] == pytest.approx(best, abs=1e-9)


def test_results_variable_and_stale_prediction(frames, tmp_path) -> None:
    """$CITYSCAPES_RESULTS ignored, or a second PNG of a frame found out by the official script after the run."""
    results = tmp_path / "elsewhere"
    result = train(frames, tmp_path / "out", "--epochs", 1, CITYSCAPES_RESULTS=str(results))
    assert result.returncode == 0 and len(list(results.glob("*_pred_labelIds.png"))) == 2
    assert f"CITYSCAPES_RESULTS={shlex.quote(str(results))} " in result.stdout
    (results / "valstadt_000000_000000_result.png").write_bytes(b"x")
    again = train(frames, tmp_path / "other", "--epochs", 1, CITYSCAPES_RESULTS=str(results))
    assert_user_error(again, "valstadt_000000_000000_result.png")


@pytest.mark.parametrize(
    ("number", "workers", "extra"),
    [(signal.SIGINT, 2, EVERYTHING), (signal.SIGTERM, 0, ("--epochs", 4))],
    ids=["SIGINT", "SIGTERM"],
)
def test_interrupted_and_resumed_run_ends_the_same(frames, tmp_path, number, workers: int, extra) -> None:
    """A resume that repeats crops, loses optimizer state or doubles CSV rows gives another network in silence."""
    straight = train(frames, tmp_path / "straight", *extra)
    assert straight.returncode == 0, straight.stderr

    cut = tmp_path / "cut"
    flags = (*FLAGS, "--workers", workers, *extra)
    run = start_script("train.py", "--data_path", frames, "--output_dir", cut, *flags, cwd=frames)
    while not (cut / "32_64_statistics.csv").exists() and run.returncode is None:
        time.sleep(0.01)
    run.send_signal(number)
    status, _, errors = run.wait()
    assert status != 0, "the run was over before the signal came"
    assert status == (130 if number == signal.SIGINT else 143), errors
    assert "--resume" in errors and "Traceback" not in errors

    resumed = train(frames, cut, *extra, "--resume", cut / "32_64_last.pth")
    assert resumed.returncode == 0 and "resumed after epoch" in resumed.stdout, resumed.stderr
    for name in ("32_64_model.pth", "32_64_last.pth"):
        assert_same_weights(tmp_path / "straight" / name, cut / name)
    rows = [without_time(read_csv(tmp_path / run / "32_64_statistics.csv")) for run in ("straight", "cut")]
    assert rows[0] == rows[1] and len(rows[0]) == 4


def test_resume_refuses_what_is_not_the_same_run(frames, tmp_path) -> None:
    """A silent restart when the file is missing, or a run that goes on with other crops, is nobody's result."""
    assert_user_error(train(frames, tmp_path, "--resume", tmp_path / "none.pth"), "--resume")
    assert train(frames, tmp_path, "--epochs", 1).returncode == 0
    last = tmp_path / "32_64_last.pth"
    before = last.read_bytes()
    other = train(frames, tmp_path, "--epochs", 2, "--seed", 4, "--batch_size", 3, "--resume", last)
    assert_user_error(other, "seed 3 (now 4)", "batch_size 2 (now 3)")
    assert_user_error(train(frames, tmp_path, "--resume", tmp_path / "32_64_model.pth"))
    assert last.read_bytes() == before


def test_resume_keeps_how_the_first_weights_interpolate(frames, tmp_path) -> None:
    """Weights of the original want align_corners=True: a resumed run that forgets it trains another function."""
    state = FastSCNN(align_corners=True).state_dict()
    save_checkpoint(tmp_path / "first.pth", {"model": state, "metadata": {"align_corners": True}})
    assert train(frames, tmp_path, "--epochs", 1, "--init_weights", tmp_path / "first.pth").returncode == 0
    resumed = train(frames, tmp_path, "--epochs", 2, "--resume", tmp_path / "32_64_last.pth")
    assert resumed.returncode == 0, resumed.stderr
    model, _ = load_model(tmp_path / "32_64_last.pth")
    assert model.align_corners and model.feature_fusion.align_corners


def test_full_disk_while_saving_keeps_the_previous_state(frames, tmp_path) -> None:
    """A checkpoint overwritten in place is half a file when the disk is full."""
    assert train(frames, tmp_path, "--epochs", 1).returncode == 0
    last = tmp_path / "32_64_last.pth"
    before = {path.name: path.read_bytes() for path in tmp_path.glob("32_64_*")}
    assert len(before) == 3
    limit = functools.partial(resource.setrlimit, resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))
    flags = ("--data_path", frames, "--output_dir", tmp_path, *FLAGS, "--epochs", 2, "--resume", last)
    result = start_script("train.py", *flags, cwd=tmp_path, first=limit).result()
    assert_user_error(result, ".pth")
    assert {path.name: path.read_bytes() for path in tmp_path.glob("32_64_*")} == before
    assert not list(tmp_path.glob(".*tmp"))


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--batch_size", 1), ("--batch_size", "1", "2")),
        (("--crop_h", 31), ("--crop_h", "31", "32")),
        (("--crop_w", -5), ("--crop_w", "-5", "32")),
        (("--epochs", 0), ("--epochs", "0")),
        (("--save_step", 0), ("--save_step", "0")),
        (("--seed", -1), ("--seed", "-1")),
        (("--device", "tpu9"), ("--device", "tpu9")),
    ],
    ids=lambda value: str(value[0]).strip("-") if isinstance(value, tuple) and len(value) == 2 else "",
)
def test_flags_that_make_no_sense_are_refused(frames, tmp_path, flags, words) -> None:
    """A value that fails only at the last batch of an epoch, deep in a layer."""
    assert_user_error(train(frames, tmp_path / "out", *flags), *words)
    assert not list((tmp_path / "out").glob("*.pth"))


def test_unwritable_output_stops_before_training(frames, tmp_path) -> None:
    """An output folder that cannot be written is found out when the first epoch is over."""
    (tmp_path / "file").write_text("x")
    start = train(frames, tmp_path / "file" / "out", "--epochs", 1)
    assert_user_error(start, tmp_path / "file" / "out")
    assert "epoch" not in start.stdout


def test_crop_larger_than_any_scaled_picture_is_padded(frames, tmp_path) -> None:
    """Random offsets from an empty range crash where the scaled picture is smaller than the crop."""
    result = train(frames, tmp_path, "--epochs", 1, "--crop_h", 160, "--crop_w", 224)
    assert result.returncode == 0 and (tmp_path / "160_224_model.pth").exists(), result.stderr


def test_loss_that_is_not_finite_stops_with_its_place(frames, tmp_path, monkeypatch) -> None:
    """A NaN that trains on for hours and overwrites the last good state."""
    monkeypatch.setattr("training.learner.scaled_rate", lambda *_: math.inf)
    result = train(frames, tmp_path / "out", "--train_split", "train+val", "--epochs", 1)
    assert_user_error(result, "epoch 1", "step 2", "inf")
    assert not list((tmp_path / "out").glob("*.pth"))


def test_the_last_predictions_are_those_of_the_best_weights(frames, tmp_path, monkeypatch) -> None:
    """Predictions of the last epoch beside the weights of the best: the official score is that of no file."""
    there = set(np.unique([read_pair(sample)[1] for sample in find_samples(frames, "val")]).tolist())
    good, bad = min(there), min(set(range(19)) - there)

    def answer_always(options, learner, loader, sampler, epoch, *_) -> tuple[float, float]:
        with torch.no_grad():
            learner.model.classifier.conv.bias[good if epoch == 1 else bad] = 1e3 * epoch
        return 1.0, 1.0

    monkeypatch.setattr("train.train_epoch", answer_always)
    assert train(frames, tmp_path, "--epochs", 2).returncode == 0
    first, second = (float(row["class_miou"]) for row in read_csv(tmp_path / "32_64_statistics.csv"))
    assert first > second and load_checkpoint(tmp_path / "32_64_model.pth")["metadata"]["epoch"] == 1
    written = [read_label(path) for path in (tmp_path / "results").iterdir()]
    assert len(written) == 2 and all((label == good).all() for label in written)


def test_help_lists_the_original_flags_with_their_defaults(tmp_path) -> None:
    """The original's command lines must go on to work as documented."""
    text = run_script("train.py", "--help", cwd=tmp_path, COLUMNS="200").stdout
    text = re.sub(r"\n {12,}", " ", text)  # argparse breaks the line after a long flag
    for flag, default in {"data_path": "/home/data/cityscapes", "crop_h": 1024, "crop_w": 2048, "batch_size": 12,
                          "save_step": 5, "epochs": 100}.items():  # fmt: skip
        (line,) = [line for line in text.splitlines() if line.strip().startswith(f"--{flag} ")]
        assert line.endswith(f"(default: {default})")


def test_a_second_run_in_a_folder_is_refused(frames, tmp_path) -> None:
    """The best weights, the state and the statistics of an earlier run gone, with exit status 0."""
    first, second = tmp_path / "first", tmp_path / "second"
    assert train(frames, first, "--epochs", 2).returncode == 0
    before = {path.name: path.read_bytes() for path in first.glob("32_64_*")}
    last = first / "32_64_last.pth"
    for flags in ((), ("--crop_h", 64), ("--init_weights", first / "32_64_model.pth")):
        again = train(frames, first, "--epochs", 1, *flags)
        assert_user_error(again, "32_64_last.pth", f"--resume {last}", "--output_dir", "--overwrite")
    assert {path.name: path.read_bytes() for path in first.glob("*_*_*")} == before
    # Files of other programs are no reason; a run that resumes from another folder is another run.
    second.mkdir()
    for name in ("resnet_model.pth", "statistics.csv", "notes_last.pth"):
        (second / name).write_text("x")
    assert train(frames, second, "--epochs", 1).returncode == 0
    other = train(frames, second, "--epochs", 3, "--resume", last)
    assert_user_error(other, "32_64_last.pth", "--overwrite")
    assert train(frames, second, "--epochs", 3, "--resume", last, "--overwrite").returncode == 0
    assert [row["epoch"] for row in read_csv(second / "32_64_statistics.csv")] == ["1", "2", "3"]
    # What is overwritten is gone before the first step: a run that was stopped then must not resume the earlier one.
    limit = functools.partial(resource.setrlimit, resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))
    given = ("--data_path", frames, "--output_dir", second, *FLAGS, "--epochs", 1, "--overwrite")
    stopped = start_script("train.py", *given, cwd=tmp_path, first=limit).result()
    assert_user_error(stopped, "32_64_last.pth")
    assert not list(second.glob("32_64_*"))
    assert (second / "resnet_model.pth").exists()


def test_every_label_is_read_before_the_first_step(frames, tmp_path) -> None:
    """A 77 in the last label that ends the run in its first epoch, when there is no checkpoint yet."""
    for split, words in (("train", ("000002", "[77]")), ("val", ("000001", "[77]"))):
        label = sorted(frames.rglob(f"{split}/*/*labelIds.png"))[-1]
        before = label.read_bytes()
        values = cv2.imread(str(label), cv2.IMREAD_UNCHANGED)
        values[-1, -1] = 77
        cv2.imwrite(str(label), values)
        for flags in ((), ("--check",)):
            result = train(frames, tmp_path / "out", "--workers", 1, *flags)
            assert_user_error(result, *words)
            assert "device" not in result.stdout
        label.write_bytes(before)
    image = sorted(frames.rglob("val/*/*_leftImg8bit.png"))[-1]
    data = bytearray(image.read_bytes())
    data[len(data) // 2] ^= 0xFF  # in the middle, where no header tells
    image.write_bytes(data)
    assert_user_error(train(frames, tmp_path / "out"), image.name)


def test_check_prints_what_the_data_set_holds(frames, tmp_path) -> None:
    """A look at the data that trains, writes files, or counts otherwise than training does."""
    result = train(frames, tmp_path / "out", "--check")
    assert result.returncode == 0 and not (tmp_path / "out").exists(), result.stderr
    pixels = np.zeros(34, int)
    for label in frames.rglob("train/*/*labelIds.png"):
        pixels += np.bincount(cv2.imread(str(label), cv2.IMREAD_UNCHANGED).ravel(), minlength=34)
    train_part, val_part = result.stdout.split("val: ")
    assert "train: 3 frames, 3 of 64x96" in train_part and val_part.startswith("2 frames, 2 of 64x96")
    for value in np.flatnonzero(pixels):
        assert re.search(rf"^ +{value}  .* {pixels[value]:,} ", train_part, re.MULTILINE)
    assert "test: 1 frames" in val_part


@pytest.mark.parametrize(
    ("ids", "words"), [([0, 1], ("train", "0", "unlabeled", "1", "ego", "0-33")), ([7, 0], ("road", "train"))]
)
def test_labels_without_classes_are_refused(frames, tmp_path, ids: list[int], words) -> None:
    """Masks of 0 and 1 that train to a loss of 0, an mIoU of nan and "best weights"."""
    for label in frames.rglob("train/*/*labelIds.png"):
        mask = np.full((64, 96), ids[0], np.uint8)
        mask[10:30] = ids[1]
        cv2.imwrite(str(label), mask)
    assert_user_error(train(frames, tmp_path / "out"), *words)
    for label in frames.rglob("val/*/*labelIds.png"):
        cv2.imwrite(str(label), np.zeros((64, 96), np.uint8))
    flags = ("--data_path", frames, "--workers", 0, "--device", "cpu", "--model_weight", tmp_path / "w.pth")
    torch.save(FastSCNN().state_dict(), tmp_path / "w.pth")
    assert_user_error(run_script("evaluate.py", *flags, cwd=tmp_path), "0 (unlabeled)")


def test_a_void_frame_among_others_is_trained_on(frames, tmp_path) -> None:
    """A frame without a labelled pixel that divides by zero; classes that never occur and are not named."""
    label = next(frames.rglob("train/*/*labelIds.png"))
    cv2.imwrite(str(label), np.zeros((64, 96), np.uint8))
    result = train(frames, tmp_path / "out", "--epochs", 1)
    assert result.returncode == 0, result.stderr
    assert "nan" not in result.stdout and "no pixel in the train split: " in result.stdout


def without_shared_memory() -> None:
    """Leaves 64 KiB of shared memory to this process and those that it starts."""
    libc = ctypes.CDLL(None, use_errno=True)
    new_mounts, private = 0x00020000, 0x44000
    if libc.unshare(new_mounts) or libc.mount(b"none", b"/", None, private, None):
        os._exit(77)
    if libc.mount(b"tmpfs", b"/dev/shm", b"tmpfs", 0, b"size=64k"):
        os._exit(77)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("script", ["train.py", "evaluate.py"])
def test_little_shared_memory(frames, weights, tmp_path, script: str, workers: int) -> None:
    """Docker's 64 MB of /dev/shm: a traceback of PyTorch's; or a run without workers, which needs none, refused."""
    flags = ["--data_path", frames, "--device", "cpu", "--workers", workers]
    if script == "train.py":
        flags += ["--output_dir", tmp_path, "--crop_h", 256, "--crop_w", 256, "--batch_size", 2, "--epochs", 1]
    else:
        flags += ["--model_weight", weights]
    result = start_script(script, *flags, cwd=tmp_path, first=without_shared_memory).result()
    if result.returncode == 77:
        pytest.skip("mounting needs rights that this process lacks")
    if workers:
        assert_user_error(result, "/dev/shm", "--shm-size", "--workers")
    else:
        assert result.returncode == 0, result.stderr


def test_training_needs_no_posix_system(frames, tmp_path, monkeypatch) -> None:
    """File locks, which Windows lacks, asked for by any run."""
    monkeypatch.setitem(sys.modules, "fcntl", None)
    assert train(frames, tmp_path / "out", "--epochs", 1).returncode == 0
    result = train(frames, tmp_path / "cached", "--epochs", 1, "--cache", tmp_path / "cache")
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("loss", ["bce", "ohem"])
def test_other_losses_train(frames, tmp_path, loss: str) -> None:
    """A loss that fails at its first step."""
    result = train(frames, tmp_path, "--epochs", 1, "--loss", loss)
    assert result.returncode == 0 and loss in result.stdout, result.stderr
    assert math.isfinite(float(read_csv(tmp_path / "32_64_statistics.csv")[0]["train_loss"]))


def test_tensorboard_gets_every_column(frames, tmp_path) -> None:
    """Events that no board shows."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert train(frames, tmp_path, "--epochs", 2, "--tensorboard").returncode == 0
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    rows = read_csv(tmp_path / "32_64_statistics.csv")
    assert set(events.Tags()["scalars"]) == rows[0].keys() - {"epoch"}
    written = [event.value for event in events.Scalars("class_miou")]
    assert written == pytest.approx([float(row["class_miou"]) for row in rows], abs=1e-6)
