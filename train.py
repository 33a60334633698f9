"""Trains Fast-SCNN on Cityscapes, validates it by the official rules and writes the predictions that they score.

python train.py --data_path /home/data/cityscapes --crop_h 512 --crop_w 1024
"""

from __future__ import annotations

import argparse
import math
import os
import shlex
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from dataset import (
    DataError,
    Sample,
    check_samples,
    find_samples,
    loader_worker,
    naming_dead_workers,
    read_pair,
    train_ids_note,
)
from evaluate import PredictionWriter, Scores, evaluate, official_command, predict_with
from inference.backends import torch_network
from inference.checkpoints import build_model, check_state, initial_model
from model import FastSCNN
from training import distributed
from training.augment import EpochSampler, Scales, TrainSet
from training.cache import open_cache
from training.learner import Learner, half_precision, on_device
from training.plots import plot_confusion, plot_curves
from training.recipes import compare_settings, load_resumable, parse_args, previous_path
from utils import (
    UserError,
    count_parameters_and_macs,
    keep_freed_memory,
    run_cli,
    save_checkpoint,
    writable_folder,
    write_csv,
)

COLUMNS = ("epoch", "train_loss", "val_loss", "pixel_accuracy", "class_miou", "category_miou", "lr", "images_per_s")


class Interrupted(Exception):
    """Ctrl-C or SIGTERM arrived."""


class Run:
    """One training run: the learner, what it learns from, and the files that make it survive an interruption.

    Args:
        args: see recipes.py.
        train_samples: the frames to learn from.
        val_samples: the frames to score.
        device: where to compute.
        state: what an earlier run saved, to go on from.
    """

    def __init__(
        self,
        args: argparse.Namespace,
        train_samples: list[Sample],
        val_samples: list[Sample],
        device: torch.device,
        state: dict | None = None,
    ):
        self.args, self.val_samples, self.device = args, val_samples, device
        self.folder = writable_folder(args.output_dir)
        prefix = f"{args.crop_h}_{args.crop_w}"
        self.best_path = self.folder / f"{prefix}_model.pth"
        self.last_path = self.folder / f"{prefix}_last.pth"
        self.csv_path = self.folder / f"{prefix}_statistics.csv"
        results = os.environ.get("CITYSCAPES_RESULTS") or self.folder / "results"
        self.writer = PredictionWriter(results, val_samples, self.folder / "results_color")
        self.command = shlex.join(["train.py", *sys.argv[1:]])
        self.board = open_board(self.folder) if args.tensorboard and distributed.is_first() else None
        self.interrupted_by = 0
        self.history: list[dict] = []
        self.best: dict = {"class_miou": -math.inf}
        part = distributed.rank(), distributed.count()
        self.sampler = EpochSampler(len(train_samples), args.batch_size, args.seed, part)
        self.read = open_cache(args.cache, train_samples + val_samples, args.workers).read if args.cache else read_pair
        self.loader = DataLoader(
            TrainSet(
                train_samples,
                (args.crop_h, args.crop_w),
                args.seed,
                Scales.parse(args.scales),
                args.max_class_share,
                args.class_uniform,
                args.color_strength,
                args.class_mix,
                self.read,
            ),
            batch_sampler=self.sampler,
            num_workers=args.workers,
            worker_init_fn=loader_worker,
            persistent_workers=args.workers > 0,
            pin_memory=device.type == "cuda",
            # The loader draws a number whenever workers are started: out of the generator of dropout, it would make the
            # result depend on how many there are, and on when a run was resumed.
            generator=torch.Generator(),
        )
        torch.manual_seed(args.seed)
        half = half_precision(device) if args.amp else None
        self.learner = Learner(args, first_model(args, state), device, args.epochs * len(self.sampler), half)
        if state:
            self.learner.load_state_dict(state)
            self.history, self.best = state["history"], state["best"]
        elif distributed.is_first():
            for left in self.folder.glob(f".{prefix}_*.tmp"):  # by a run that was killed while it saved
                left.unlink(missing_ok=True)

    @property
    def settings(self) -> dict:
        """What a run that goes on from this one has to agree with, or is told that it differs in."""
        return {**vars(self.args), "train_frames": self.sampler.length, "processes": distributed.count()}

    def interrupt(self, signum: int, frame: object) -> None:
        """Takes a signal: the run ends after the step, or the validation frame, at hand.

        An exception out of a signal handler could come up in the middle of a save, or inside a library that turns it
        into another one. A second signal ends the process at once.
        """
        if self.interrupted_by:
            os._exit(128 + signum)
        self.interrupted_by = signum

    def check_interrupted(self) -> None:
        """Ends the run if a signal asked for it.

        Raises:
            Interrupted: one did.
        """
        if self.interrupted_by:
            raise Interrupted

    @property
    def epoch(self) -> int:
        """The last finished epoch, 0 before the first."""
        return len(self.history)

    def train_epoch(self, epoch: int) -> tuple[float, float]:
        """Trains one epoch; returns the mean loss over the pixels that count and the crops per second.

        Raises:
            UserError: the loss is not finite.
        """
        self.sampler.epoch = epoch
        # Dropout is a function of (seed, epoch, process) too: a resumed epoch needs no saved random state.
        torch.manual_seed(self.args.seed + 1_000_003 * epoch + 7_919 * distributed.rank())
        self.learner.model.train()
        losses, pixels, start = [], [], time.perf_counter()
        batches = tqdm(
            self.loader, desc=f"epoch {epoch}/{self.args.epochs}", leave=False, disable=distributed.hide_bars()
        )
        with naming_dead_workers(self.loader):
            for batch in on_device(batches, self.device):
                self.check_interrupted()
                loss, valid = self.learner.step((epoch - 1) * len(self.sampler) + len(losses), *batch)
                losses.append(loss)
                pixels.append(valid)
                if len(losses) % 50 == 0:  # asking after every step would make a GPU wait
                    self._check_finite(losses, epoch)
        means = self._check_finite(losses, epoch)
        counts = torch.stack(pixels).cpu().double()  # in this order: MPS has no double precision
        mean = float((means * counts).sum() / counts.sum().clamp(min=1))
        return mean, self.sampler.crops / (time.perf_counter() - start)

    def _check_finite(self, losses: list[Tensor], epoch: int) -> Tensor:
        """Returns the losses of the steps of an epoch so far, means over the processes, in double precision."""
        means = distributed.all_reduce_sum(torch.stack(losses)).cpu().double() / distributed.count()
        finite = torch.isfinite(means)
        if not finite.all():
            step = int((~finite).nonzero()[0]) + 1
            kept = f"; the last good state is {self.last_path}" if self.last_path.exists() else ""
            raise UserError(
                f"the loss is not finite at epoch {epoch}, step {step}, lr {self.learner.lr:g}: "
                f"lower the learning rate{kept}"
            )
        return means

    def validate(self, write: bool) -> Scores:
        """Scores the validation frames at their full size, and writes the predictions if asked to."""
        distributed.broadcast_from_first(
            self.learner.scored
        )  # each has statistics of its own crops where they are not shared
        scored = predict_with(torch_network(self.learner.scored, self.device, "fp32", compiled=False), with_loss=True)

        def predict(images: Tensor, targets: Tensor) -> tuple[Tensor, float]:
            self.check_interrupted()
            return scored(images, targets)

        return evaluate(predict, self.val_samples, self.args.workers, self.writer if write else None, self.read)

    def finish_epoch(self, row: dict, scores: Scores) -> None:
        """Records an epoch: the state to go on from, the best weights, the statistics and their pictures."""
        history = [*self.history, row]
        if "epoch" not in self.best or row["class_miou"] > self.best["class_miou"]:
            scored = self.learner.scored.state_dict()
            weights = {name: tensor.detach().cpu().clone() for name, tensor in scored.items()}
            self.best = {"class_miou": row["class_miou"], "epoch": row["epoch"], "model": weights}
        self.history = history
        if not distributed.is_first():
            return
        # The state goes first: it alone is needed to write the others again.
        state = {"metadata": self.metadata(row), "history": history, "best": self.best, "args": self.settings}
        save_checkpoint(self.last_path, {**self.learner.state_dict(), **state}, previous_path(self.last_path))
        self.write_results()
        plot_confusion(self.folder / "confusion.png", scores.confusion, f"epoch {row['epoch']}, validation")
        if self.board:
            for name in COLUMNS[1:]:
                self.board.add_scalar(name, row[name], row["epoch"])

    def write_results(self) -> None:
        """Writes the best weights, if they are new, the statistics and the curves."""
        if self.best["epoch"] == self.epoch or not self.best_path.exists():
            row = self.history[self.best["epoch"] - 1]
            save_checkpoint(self.best_path, {"model": self.best["model"], "metadata": self.metadata(row)})
        write_csv(self.csv_path, COLUMNS, self.history)
        plot_curves(self.folder / "curves.png", self.history, self.command)

    def metadata(self, row: dict) -> dict:
        """What a weight file says of itself, in plain values."""
        return {
            "network": "Fast-SCNN",
            "align_corners": self.learner.model.align_corners,
            "input_scale": self.learner.model.input_scale,
            "train_split": self.args.train_split,
            "epoch": row["epoch"],
            "class_miou": row["class_miou"],
            "command": self.command,
            "torch": str(torch.__version__),
        }

    def fit(self) -> Scores:
        """Trains to the last epoch; returns the scores of the best weights, whose predictions are then on disk."""
        epochs = range(1, self.args.epochs + 1)
        bars = {"unit": "epoch", "disable": distributed.hide_bars()}
        for epoch in tqdm(epochs[self.epoch :], "run", len(epochs), initial=self.epoch, **bars):
            train_loss, images_per_s = self.train_epoch(epoch)
            scores = self.validate(write=epoch % self.args.save_step == 0)
            row = {
                "epoch": epoch,
                "train_loss": train_loss,
                "val_loss": scores.loss,
                "pixel_accuracy": scores.pixel_accuracy,
                "class_miou": scores.class_miou,
                "category_miou": scores.category_miou,
                "lr": self.learner.lr,
                "images_per_s": images_per_s,
            }
            self.finish_epoch(row, scores)
            tqdm.write(  # print, but above the bars where there are any
                f"epoch {epoch}/{self.args.epochs}  train loss {train_loss:.4f}  val loss {scores.loss:.4f}  "
                f"pixel accuracy {100 * scores.pixel_accuracy:.2f} %  class mIoU {100 * scores.class_miou:.2f} %  "
                f"category mIoU {100 * scores.category_miou:.2f} %  {images_per_s:.1f} images/s"
            )
            sys.stdout.flush()
        self.learner.scored.load_state_dict(self.best["model"])
        return self.validate(write=True)


def first_model(args: argparse.Namespace, state: dict | None) -> FastSCNN:
    """Returns the network that a run begins with; a resumed one still lacks its weights."""
    aux = args.aux_weight > 0
    if state:
        model = build_model(state["model"], state["metadata"], aux)  # align_corners may come from init_weights
        check_state(args.resume, state["model"], model.state_dict())
    elif args.init_weights:
        model = initial_model(args.init_weights, aux, args.reset_head)
    else:
        model = FastSCNN(aux=aux)
    model.input_scale = args.input_scale
    return model


def open_board(folder: Path) -> object:
    """Returns a TensorBoard writer.

    Raises:
        UserError: the package is not installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise UserError("--tensorboard needs the package tensorboard: pip install tensorboard") from None
    return SummaryWriter(folder / "tensorboard")


def print_start(run: Run, train_samples: Sequence[Sample]) -> None:
    """Prints what is about to be trained, on what, and from which data."""
    args, device = run.args, run.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} threads"
    name = f"{distributed.count()} processes, each {name}" if distributed.count() > 1 else name
    parameters, macs = count_parameters_and_macs(run.learner.model, args.crop_h, args.crop_w)
    note = train_ids_note([*train_samples, *run.val_samples])
    if note:
        print(note)
    precision = {None: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16, gradients scaled"}[run.learner.half]
    print(f"device {device} ({name}), {precision}, torch {torch.__version__}")
    if args.amp and run.learner.half is None:
        print(
            "--amp changes nothing: this processor has no instructions for bf16, without which it is slower than fp32"
        )
    print(f"Fast-SCNN: {parameters:,} parameters, {macs / 1e9:.2f} G MACs at {args.crop_h}x{args.crop_w} (thop)")
    print(
        f"{run.sampler.length} training and {len(run.val_samples)} validation frames; total batch {args.batch_size}, "
        f"{len(run.sampler)} steps per epoch, {args.epochs} epochs, {args.epochs * len(run.sampler)} steps"
    )
    print(
        f"recipe {args.recipe}: {args.optimizer}, lr {run.learner.peak_lr:g}, {args.loss}, seed {args.seed}",
        flush=True,
    )


def train(args: argparse.Namespace, device: torch.device) -> int:
    """Trains, or goes on training, and prints how to score the result officially; returns the exit status."""
    if args.batch_size % distributed.count() or args.batch_size < 2 * distributed.count():
        raise UserError(
            f"--batch_size {args.batch_size} cannot be dealt out to {distributed.count()} processes; expected a "
            f"multiple of {distributed.count()}, with two crops for each at least"
        )
    train_samples, val_samples = find_samples(args.data_path, "train"), find_samples(args.data_path, "val")
    if args.train_split == "train+val":
        train_samples = train_samples + val_samples
        print("training on train+val: the validation scores below are on frames seen in training")
    check_samples(train_samples)
    check_samples(val_samples)
    state = load_resumable(args.resume) if args.resume else None
    run = Run(args, train_samples, val_samples, device, state)
    if state:
        compare_settings(args.resume, state["args"], run.settings)
    print_start(run, train_samples)
    if run.epoch and distributed.is_first():
        print(f"resumed after epoch {run.epoch} of {args.resume}", flush=True)
        run.write_results()
    signal.signal(signal.SIGINT, run.interrupt)
    signal.signal(signal.SIGTERM, run.interrupt)
    try:
        scores = run.fit()
    except (Interrupted, RuntimeError) as error:
        if not run.interrupted_by:  # a RuntimeError also comes of another process that was interrupted first
            raise
        how = f"epoch {run.epoch} is kept: go on with --resume {run.last_path}" if run.epoch else "nothing was finished"
        if distributed.is_first() or not isinstance(error, Interrupted):
            print(f"\ninterrupted; {how}", file=sys.stderr)
        return 128 + run.interrupted_by
    print(f"\nbest weights: epoch {run.best['epoch']}, {run.best_path}")
    print(scores.table())
    print(f"\nstatistics {run.csv_path}\npredictions {run.writer.folder}, in color {run.writer.color_folder}")
    print("official evaluation:")
    print(official_command(args.data_path, run.writer.folder, run.folder))
    return 0


def main() -> int:
    """Trains, alone or as one of several distributed."""
    args = parse_args()
    keep_freed_memory()
    with distributed.process_group(args.device) as device:
        return train(args, device)


if __name__ == "__main__":
    run_cli(main, DataError)
