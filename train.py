"""Trains Fast-SCNN on Cityscapes, validates it by the official rules and writes the predictions that they score.

python train.py --data_path /home/data/cityscapes --crop_h 512 --crop_w 1024
"""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import sys
import time

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

import distributed
from evaluation.evaluate import evaluate, official_command, seen_note
from evaluation.prediction_files import PredictionWriter
from evaluation.scores import Scores, statistics_row
from frames.cache import open_cache
from frames.classes import Classes
from frames.description import open_data
from frames.samples import DataSet, Read, Sample, read_pair
from frames.workers import naming_dead_workers
from inference.checkpoints import build_model, check_state, initial_model
from inference.torch_engine import torch_engine
from model import FastSCNN
from training.augment import EpochSampler, make_loader
from training.console import epoch_line, print_start
from training.frames import find_frames, find_unions, padding, print_check, refuse_other_names
from training.learner import Learner, half_precision, on_device
from training.plots import deciding_score
from training.recipes import compare_settings, data_settings, load_resumable, parse_args
from training.run_files import RunFiles
from utils import StopSignal, UserError, count_parameters_and_macs, keep_freed_memory, run_cli
from web.report import Report
from web.report_data import About


class Interrupted(Exception):
    """Ctrl-C or SIGTERM arrived."""


class Trainer:
    """The training loop.

    Args:
        args: the flags, see training/recipes.py.
        learner: takes the steps.
        loader: gives the batches of the epoch that its EpochSampler is set to.
        val_samples: the frames to score.
        data: the data set.
        read: reads a frame, from files or from a cache.
        writer: writes predictions.
        report: gets the frames of the best weights, if given.
        files: the run's files.
        settings: what a resumed run is compared with.

    Attributes:
        history: one row per finished epoch, as in the statistics file.
        best: epoch and weights (`model`) of the best epoch.
        stop: true once Ctrl-C or SIGTERM came.
    """

    def __init__(
        self,
        args: argparse.Namespace,
        learner: Learner,
        loader: DataLoader,
        val_samples: list[Sample],
        data: DataSet,
        read: Read,
        writer: PredictionWriter,
        report: Report | None,
        files: RunFiles,
        settings: dict,
    ):
        self.args = args
        self.learner = learner
        self.loader = loader
        self.sampler: EpochSampler = loader.batch_sampler
        self.val_samples = val_samples
        self.data = data
        self.read = read
        self.writer = writer
        self.report = report
        self.files = files
        self.settings = settings
        self.history: list[dict] = []
        self.best: dict = {}
        self.stop = StopSignal()

    def fit(self) -> Scores:
        """Trains to the last epoch; returns the scores of the best weights, whose predictions are then on disk.

        Raises:
            Interrupted: a signal came.
            UserError: the loss is not finite, or a file cannot be written.
        """
        epochs = range(1, self.args.epochs + 1)
        done = len(self.history)
        bar = {"unit": "epoch", "disable": distributed.hide_bars()}
        for epoch in tqdm(epochs[done:], "run", len(epochs), initial=done, **bar):
            train_loss, images_per_s = self.train_epoch(epoch)
            scores = self.validate(write=epoch % self.args.save_step == 0)
            row = statistics_row(epoch, train_loss, scores, self.learner.lr, images_per_s)
            self.finish_epoch(row, scores)
            tqdm.write(epoch_line(row, self.args.epochs))  # as print, but above the bars
            sys.stdout.flush()
        self.learner.scored.load_state_dict(self.best["model"])
        return self.validate(write=True, report=self.report)

    def train_epoch(self, epoch: int) -> tuple[float, float]:
        """Trains one epoch; returns the mean loss over the labelled pixels, and the crops per second.

        Raises:
            UserError: the loss is not finite.
        """
        self.sampler.epoch = epoch
        # Dropout is a function of (seed, epoch, rank) too: a resumed epoch needs no saved random state.
        torch.manual_seed(self.args.seed + 1_000_003 * epoch + 7_919 * distributed.rank())
        self.learner.model.train()
        losses = []
        pixels = []
        first_step = (epoch - 1) * len(self.sampler)
        start = time.perf_counter()
        title = f"epoch {epoch}/{self.args.epochs}"
        batches = tqdm(self.loader, desc=title, leave=False, disable=distributed.hide_bars())
        with naming_dead_workers(self.loader):
            for batch in on_device(batches, self.learner.device):
                self.check_stop()
                loss, count = self.learner.step(first_step + len(losses), *batch)
                losses.append(loss)
                pixels.append(count)
                if len(losses) % 50 == 0:  # a look after every step would make a GPU wait
                    self._finite_means(losses, epoch)
        means = self._finite_means(losses, epoch)
        counts = torch.stack(pixels).cpu().double()  # in this order: MPS has no double precision
        mean = float((means * counts).sum() / counts.sum().clamp(min=1))
        return mean, self.sampler.crops / (time.perf_counter() - start)

    def _finite_means(self, losses: list[Tensor], epoch: int) -> Tensor:
        """Returns the losses of an epoch's steps so far, averaged over the processes, in double precision."""
        means = distributed.all_reduce_sum(torch.stack(losses)).cpu().double() / distributed.count()
        finite = torch.isfinite(means)
        if not finite.all():
            step = int((~finite).nonzero()[0]) + 1
            kept = f"; the last good state is {self.files.last}" if self.files.last.exists() else ""
            raise UserError(
                f"the loss is not finite at epoch {epoch}, step {step}, lr {self.learner.lr:g}: "
                f"lower the learning rate{kept}"
            )
        return means

    def validate(self, write: bool, report: Report | None = None) -> Scores:
        """Scores the validation frames at their full size, and writes predictions and report if asked to."""
        # On a CPU, batch-norm statistics differ between processes: the first one's are scored.
        distributed.broadcast_from_first(self.learner.scored)
        return evaluate(
            torch_engine(self.learner.scored, self.learner.device, classes=self.data.classes),
            self.val_samples,
            self.data.classes,
            workers=self.args.workers,
            writer=self.writer if write else None,
            report=report,
            read=self.read,
            with_loss=True,
            before_each=self.check_stop,
        )

    def check_stop(self) -> None:
        """Ends the run if a signal asked for it.

        Raises:
            Interrupted: one did.
        """
        if self.stop:
            raise Interrupted

    def finish_epoch(self, row: dict, scores: Scores) -> None:
        """Records an epoch: its row, the best weights so far, and the run's files."""
        self.history.append(row)
        if not self.best or deciding_score(row) > deciding_score(self.history[self.best["epoch"] - 1]):
            scored = self.learner.scored.state_dict()
            weights = {name: tensor.detach().cpu().clone() for name, tensor in scored.items()}
            self.best = {"epoch": row["epoch"], "model": weights}
        if distributed.is_first():
            state = {
                **self.learner.state_dict(),
                "metadata": self.files.metadata(self.learner.model, row),
                "history": self.history,
                "best": self.best,
                "args": self.settings,
            }
            self.files.save_epoch(state, self.best_metadata(), scores.confusion)

    def resume(self, state: dict) -> None:
        """Restores what finish_epoch saved, and writes the files that a killed run may not have written any more."""
        self.learner.load_state_dict(state)
        # Runs that began without these columns were scored by the mean over all classes.
        later = ({"class_miou_present": row["class_miou"], "joined_miou": math.nan} for row in state["history"])
        self.history = [{**columns, **row} for columns, row in zip(later, state["history"], strict=True)]
        self.best = state["best"]
        if distributed.is_first():
            self.files.save_results(self.history, self.best["model"], self.best_metadata())

    def best_metadata(self) -> dict:
        """Returns the metadata of the best weights."""
        return self.files.metadata(self.learner.model, self.history[self.best["epoch"] - 1])


def make_model(args: argparse.Namespace, classes: Classes, state: dict | None) -> FastSCNN:
    """Returns the network that a run begins with; that of a resumed run does not have its weights yet."""
    aux = args.aux_weight > 0
    if state:
        # align_corners may come from --init_weights
        model = build_model(state["model"], state["metadata"], len(classes), aux)
        check_state(args.resume, state["model"], model.state_dict())
    elif args.init_weights:
        model = initial_model(args.init_weights, classes, aux, args.reset_head)
    else:
        model = FastSCNN(len(classes), aux=aux)
    model.input_scale, model.input_side = args.input_scale, 0
    return model


def open_all(args: argparse.Namespace) -> tuple[DataSet, dict[str, DataSet]]:
    """Opens the data set of --data_path, and those of --extra_data, which are returned by their path."""
    data = open_data(args.data_path, args.data_root)
    extra = {path: open_data(path) for path in args.extra_data or ()}
    for path, added in extra.items():
        refuse_other_names(path, added.classes, data.classes)
    return data, extra


def make_trainer(args: argparse.Namespace, device: torch.device) -> Trainer:
    """Prepares a run, new or resumed, up to its first step."""
    state = load_resumable(args.resume) if args.resume else None
    data, extra = open_all(args)
    files = RunFiles(args, data.classes)
    train_samples, val_samples, sizes = find_frames(args, data, extra)
    decides = data_settings(data.classes, [added.classes for added in extra.values()], train_samples)
    settings = {**vars(args), **decides, "processes": distributed.count()}
    if state:
        compare_settings(args.resume, state["args"], settings)
    results = os.environ.get("CITYSCAPES_RESULTS") or files.folder / "results"
    colors = files.folder / "results_color"
    report = Report(files.folder / "report", data.classes, val_samples, outputs=[results]) if args.report else None
    writer = PredictionWriter(results, val_samples, data.classes, colors)

    part = distributed.rank(), distributed.count()
    sampler = EpochSampler(len(train_samples), args.batch_size, args.seed, part)
    read = open_cache(args.cache, train_samples + val_samples, args.workers).read if args.cache else read_pair
    unions = find_unions(args, train_samples, len(data.classes))
    loader = make_loader(args, train_samples, sampler, read, device, unions)
    torch.manual_seed(args.seed)
    model = make_model(args, data.classes, state)
    macs = count_parameters_and_macs(model, args.crop_h, args.crop_w)[1]
    model.input_side = args.input_side  # of pictures: crops are counted as they are
    half = half_precision(device) if args.amp else None
    learner = Learner(args, model, device, args.epochs * len(sampler), half, unions.members)
    print_start(args, learner, sampler, len(val_samples), macs)
    print(f"crops {args.crop_h}x{args.crop_w}: {100 * padding(args, sizes):.1f} % padding", flush=True)
    trainer = Trainer(args, learner, loader, val_samples, data, read, writer, report, files, settings)
    if distributed.is_first():
        files.remove_earlier()
    if state:
        trainer.resume(state)
        print(f"resumed after epoch {len(trainer.history)} of {args.resume}", flush=True)
    return trainer


def finish_report(trainer: Trainer, scores: Scores) -> None:
    """Writes the report of the best weights.

    Raises:
        UserError: it cannot be written.
    """
    args, files = trainer.args, trainer.files
    about = About(
        weights=str(files.best),
        data=args.data_path,
        split="val",
        network=f"torch fp32 on {trainer.learner.device}",
        command=files.command,
        epoch=trainer.best["epoch"],
        note=seen_note("val", args.train_split),
    )
    trainer.report.finish(scores, about)
    print(f"report {trainer.report.path / 'index.html'}")


def train(args: argparse.Namespace, device: torch.device) -> int:
    """Trains or resumes a run; returns the exit status."""
    if args.batch_size % distributed.count() or args.batch_size < 2 * distributed.count():
        raise UserError(
            f"--batch_size {args.batch_size} cannot be split over {distributed.count()} processes; expected a "
            f"multiple of {distributed.count()}, with at least two crops for each"
        )
    trainer = make_trainer(args, device)
    with trainer.report or contextlib.nullcontext():
        return run(trainer)


def run(trainer: Trainer) -> int:
    """Trains, prints what came out, and writes the report; returns the exit status."""
    files, writer = trainer.files, trainer.writer
    trainer.stop.listen()
    try:
        scores = trainer.fit()
    except (Interrupted, RuntimeError) as error:
        if not trainer.stop:  # a RuntimeError is also raised if another process was interrupted first
            raise
        done = len(trainer.history)
        kept = f"epoch {done} is kept: continue with --resume {files.last}" if done else "no epoch was finished"
        if distributed.is_first() or not isinstance(error, Interrupted):
            print(f"\ninterrupted; {kept}", file=sys.stderr)
        return trainer.stop.status
    print(f"\nbest weights: epoch {trainer.best['epoch']}, {files.best}")
    print(scores.table())
    print(f"\nstatistics {files.statistics}\npredictions {writer.folder}, in color {writer.color_folder}")
    if not trainer.data.described:
        print("official evaluation:")
        print(official_command(trainer.args.data_path, writer.folder, files.folder))
    if trainer.report and distributed.is_first():
        finish_report(trainer, scores)
    return 0


def main() -> int:
    """Trains in one process, or in one of several."""
    args = parse_args()
    keep_freed_memory()
    with distributed.process_group(args.device) as device:
        if args.check:
            print_check(*open_all(args), args.workers)
            return 0
        return train(args, device)


if __name__ == "__main__":
    run_cli(main)
