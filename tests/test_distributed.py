"""Several processes: what one alone would have computed, and no one left hanging."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, Started, call_main, run_process, run_script
from runs import FLAGS, assert_same_weights, files_below, read_csv, start, without_time

import distributed
from evaluation.evaluate import evaluate
from evaluation.prediction_files import PredictionWriter
from evaluation.scores import Scores
from frames.cityscapes import find_samples
from frames.classes import CITYSCAPES
from inference.checkpoints import load_model
from inference.torch_engine import torch_engine
from model import FastSCNN
from training.augment import EpochSampler
from training.learner import Learner
from training.losses import summed_cross_entropy
from training.recipes import parse_args
from web.report import Report
from web.report_data import About

LEARN = ["--batch_size", "4", "--aux_weight", "0.4"]


def start_training(frames: Path, output: Path, *flags: object, **variables: str) -> list[Started]:
    """Starts train.py in two processes, with two crops for each."""
    return start(2, call_main, "train.py", *train_flags(frames, output, *flags), cwd=frames, **variables)


def train_flags(frames: Path, output: Path, *flags: object) -> list[str]:
    """Flags of train.py for two crops for each of two processes."""
    return [str(flag) for flag in ("--data_path", frames, "--output_dir", output, *FLAGS, "--batch_size", 4, *flags)]


def frozen_learner() -> tuple[Learner, tuple[torch.Tensor, ...]]:
    """A learner without dropout whose batch normalisation stands still, and a batch with unlike shares of labels."""
    torch.manual_seed(0)
    model = FastSCNN(aux=True)
    learner = Learner(parse_args(LEARN), model, torch.device("cpu"), 10, None, unions=((2, 3),))
    learner.model.train()
    for module in learner.model.modules():
        if isinstance(module, (torch.nn.BatchNorm2d, torch.nn.Dropout)):
            module.eval()
    images = torch.randint(0, 256, (4, 64, 96, 3), dtype=torch.uint8)
    targets = torch.randint(0, 20, (4, 64, 96), dtype=torch.uint8)
    targets[1, 5:] = 255
    targets[2, :, 30:] = 255
    return learner, (images, targets, torch.tensor([1.0, 1.0, 1.0, 0.0]).expand(4, 4))


@pytest.fixture
def eight_frames(frames: Path) -> Path:
    """A data set whose training split is enough for two batches of two processes."""
    for number in range(3, 8):
        for path in list(frames.rglob("trainstadt_000000_000000_*")):
            copied = path.with_name(path.name.replace("000000_000000", f"000000_{number:06d}"))
            copied.write_bytes(path.read_bytes())
    return frames


def wait_for_an_epoch(running: list[Started], output: Path) -> None:
    """Returns when the first epoch is over, or a process has ended."""
    while not (output / "32_64_statistics.csv").exists() and all(process.returncode is None for process in running):
        time.sleep(0.02)


def gradients(part: slice) -> dict[str, torch.Tensor]:
    """The gradients of every parameter from a part of the batch."""
    learner, batch = frozen_learner()
    learner.loss(*(tensor[part] for tensor in batch))[0].backward()
    return {name: parameter.grad for name, parameter in learner.model.named_parameters()}


def scored(weights: Path, frames: Path, results: Path) -> Scores:
    """The scores of the train split, which two processes cannot share evenly; predictions and report are written."""
    network = torch_engine(load_model(weights)[0], torch.device("cpu"), "fp32")
    samples = find_samples(frames, "train")
    writer = PredictionWriter(results / "ids", samples, CITYSCAPES, results / "color")
    with Report(results / "report", CITYSCAPES, samples) as report:
        scores = evaluate(network, samples, CITYSCAPES, outputs=[writer, report], loss=summed_cross_entropy)
        if distributed.is_first():
            report.finish(scores, About("w.pth", "data", "train", "torch", "command"))
    return scores


def save_gradients() -> None:
    """Saves the gradients of this process's part of the batch."""
    with distributed.process_group("cpu"):
        rank = distributed.rank()
        torch.save(gradients(slice(rank, None, 2)), f"{rank}.pth")


def save_scores(weights: Path, frames: Path) -> None:
    """Saves the confusion matrix and the loss that this process gets, on a disk of its own."""
    with distributed.process_group("cpu"):
        rank = distributed.rank()
        scores = scored(weights, frames, Path(f"machine{rank}"))
        np.savez(f"{rank}.npz", confusion=scores.confusion, loss=scores.loss)


def test_gradients_are_those_of_one_process_with_the_whole_batch(tmp_path) -> None:
    """A mean of means: pixels of a crop with few labels weigh more than those of others."""
    for running in start(2, save_gradients, cwd=tmp_path):
        status, _, errors = running.wait()
        assert status == 0, errors
    expected = gradients(slice(None))
    for number in range(2):
        found = torch.load(tmp_path / f"{number}.pth")
        assert found.keys() == expected.keys()
        for name, gradient in expected.items():
            assert (found[name] - gradient).norm() <= 1e-5 * gradient.norm(), name


def test_shared_validation_counts_every_frame_once_and_one_process_writes(frames, weights, tmp_path) -> None:
    """Shards padded to equal lengths count frames twice; a loss of one shard; predictions on another machine's disk."""
    for running in start(2, save_scores, weights, frames, cwd=tmp_path):
        status, _, errors = running.wait()
        assert status == 0, errors
    expected = scored(weights, frames, tmp_path / "alone")
    assert expected.confusion.sum() > 3000
    written, shared = files_below(tmp_path / "alone"), files_below(tmp_path / "machine0")
    data = Path("report", "data.js")
    assert json.loads(shared.pop(data)[20:-2])["frames"] == json.loads(written.pop(data)[20:-2])["frames"]  # no date
    assert sum(path.suffix == ".png" for path in written) == 6 and shared == written
    assert sum(path.suffix == ".webp" for path in written) == 12
    assert not files_below(tmp_path / "machine1")
    for number in range(2):
        found = np.load(tmp_path / f"{number}.npz")
        assert np.array_equal(found["confusion"], expected.confusion)
        assert found["loss"] == pytest.approx(expected.loss, rel=1e-9)


@pytest.mark.parametrize("count", [2, 4])
def test_the_parts_of_a_batch_are_the_batch(count: int) -> None:
    """Crops that are drawn twice, or not at all, because processes disagree about the order."""
    whole = EpochSampler(37, 12, seed=5)
    parts = [EpochSampler(37, 12, seed=5, part=(number, count)) for number in range(count)]
    whole.epoch = 3
    for part in parts:
        part.epoch = 3
        assert len(part) == 3  # the last batch would have a single frame
    assert whole.crops == 36
    for batch, *shares in zip(whole, *parts, strict=True):
        assert sorted(batch) == sorted(key for share in shares for key in share)
        assert {len(share) for share in shares} == {12 // count}


def test_torchrun_trains_resumes_and_one_process_writes(eight_frames, tmp_path) -> None:
    """Two processes that write the same files, print everything twice, or resume from different states."""
    extra = ("--ema", "0.9", "--workers", "1")
    straight, cut = tmp_path / "straight", tmp_path / "cut"

    def train(output: Path, *flags: object) -> str:
        first, second = (process.wait() for process in start_training(eight_frames, output, *extra, *flags))
        assert first[0] == second[0] == 0, first + second
        assert first[1].count("best weights") == 1 and second[1] == ""
        return first[1]

    out = train(straight, "--epochs", 3)
    assert "2 processes" in out and out.count("epoch 1/3") == 1 and "2" in out
    names = sorted(path.name for path in (straight / "results").iterdir())
    assert names == [f"valstadt_000000_{i:06d}_pred_labelIds.png" for i in range(2)]
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", ROOT / "train.py")
    launched = run_process(*launcher, *train_flags(eight_frames, cut, *extra, "--epochs", 2), cwd=tmp_path)
    assert launched.returncode == 0 and launched.stdout.count("best weights") == 1, launched.stderr
    assert f"epoch 2 of {cut / '32_64_last.pth'}" in train(cut, "--epochs", 3, "--resume", cut / "32_64_last.pth")
    rows = [without_time(read_csv(output / "32_64_statistics.csv")) for output in (straight, cut)]
    assert rows[0] == rows[1] and len(rows[0]) == 3
    for name in ("32_64_model.pth", "32_64_last.pth"):
        assert_same_weights(straight / name, cut / name)


def test_the_others_end_when_one_process_dies(eight_frames, tmp_path) -> None:
    """A job that waits for a dead process until somebody looks."""
    running = start_training(eight_frames, tmp_path / "out", "--epochs", 500)
    wait_for_an_epoch(running, tmp_path / "out")
    running[1].send_signal(signal.SIGKILL)
    (status, _, errors), (killed, _, _) = (process.wait() for process in running)
    assert killed == -signal.SIGKILL and status == 2, errors
    lines = [line for line in errors.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and all(str(noun) in lines[0] for noun in ("0", "2")) and "--resume" in lines[0]
    assert "Traceback" not in errors


def test_interrupted_processes_all_end(eight_frames, tmp_path) -> None:
    """A Ctrl-C that ends one process and leaves the other waiting."""
    running = start_training(eight_frames, tmp_path / "out", "--epochs", 500)
    wait_for_an_epoch(running, tmp_path / "out")
    for process in running:
        process.send_signal(signal.SIGTERM)
    ended = [process.wait() for process in running]
    assert [status for status, _, _ in ended] == [143, 143], ended
    assert "--resume" in ended[0][2]


@pytest.mark.parametrize(
    ("flags", "variables", "words"),
    [
        (("--batch_size", 5), {}, ("--batch_size", "5", "2")),
        (("--batch_size", 2), {}, ("--batch_size", "2")),
        ((), {"MASTER_PORT": "no"}, ("2",)),
    ],
    ids=["uneven", "too-small", "no-port"],
)
def test_what_cannot_be_shared_is_refused(eight_frames, tmp_path, flags, variables, words) -> None:
    """A batch of 5 over 2 processes is one of 4, or of 6, without a word."""
    for running in start_training(eight_frames, tmp_path, *flags, **variables):
        status, _, errors = running.wait()
        lines = [line for line in errors.splitlines() if line.startswith("error: ")]
        assert status == 2 and len(lines) == 1 and all(word in lines[0] for word in words), errors


def test_half_an_environment_is_refused(eight_frames, tmp_path) -> None:
    """WORLD_SIZE left over in a shell starts a run that waits for processes that never come."""
    result = run_script("train.py", *train_flags(eight_frames, tmp_path), cwd=tmp_path, WORLD_SIZE="2")
    assert result.returncode == 2 and "RANK" in result.stderr and "torchrun" in result.stderr
