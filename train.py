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

from augment import EpochSampler, Scales, TrainSet, distort_colours
from backends import torch_network
from dataset import DataError, Sample, check_samples, find_samples, loader_worker, normalise, train_ids_note
from deploy import build_model, check_state, initial_model, load_state
from evaluate import PredictionWriter, Scores, evaluate, official_command, predict_with
from losses import auxiliary_loss, lovasz_loss, pixel_loss
from model import FastSCNN
from optim import learning_rate, make_average, make_optimizer, parameter_groups, scaled_rate
from plots import plot_confusion, plot_curves
from recipes import RECIPES, parse_args
from utils import (
    UserError,
    choose_device,
    count_parameters_and_macs,
    keep_freed_memory,
    load_checkpoint,
    run_cli,
    save_checkpoint,
    writable_folder,
    write_csv,
)

COLUMNS = ("epoch", "train_loss", "val_loss", "pixel_accuracy", "class_miou", "category_miou", "lr", "images_per_s")
# A resumed run must agree on these: they decide its result. --epochs does too where the learning rate depends on it.
SAME_RUN = ("seed", "train_split", "input_scale", "amp", *RECIPES["original"])


class Interrupted(Exception):
    """Ctrl-C or SIGTERM arrived."""


class Run:
    """One training run: the network, its optimizer, and the files that make it survive an interruption."""

    def __init__(self, args: argparse.Namespace, train_samples: list[Sample], val_samples: list[Sample]):
        self.args, self.val_samples = args, val_samples
        self.folder = writable_folder(args.output_dir)
        prefix = f"{args.crop_h}_{args.crop_w}"
        self.best_path = self.folder / f"{prefix}_model.pth"
        self.last_path = self.folder / f"{prefix}_last.pth"
        self.csv_path = self.folder / f"{prefix}_statistics.csv"
        results = os.environ.get("CITYSCAPES_RESULTS") or self.folder / "results"
        self.writer = PredictionWriter(results, val_samples, self.folder / "results_color")
        self.command = shlex.join(["train.py", *sys.argv[1:]])
        self.board = open_board(self.folder) if args.tensorboard else None
        self.device = choose_device(args.device)

        torch.manual_seed(args.seed)
        self.model = first_model(args)
        self.model.to(self.device, memory_format=torch.channels_last)
        groups = parameter_groups(self.model, args.weight_decay, args.decay_all)
        self.peak_lr = scaled_rate(args.lr, args.batch_size, args.base_batch)
        self.optimizer = make_optimizer(args.optimizer, groups, self.peak_lr)
        self.average = make_average(self.model, args.ema) if args.ema else None
        self.interrupted_by = 0
        self.history: list[dict] = []
        self.best: dict = {"class_miou": -math.inf}
        self.sampler = EpochSampler(len(train_samples), args.batch_size, args.seed)
        self.loader = DataLoader(
            TrainSet(
                train_samples,
                (args.crop_h, args.crop_w),
                args.seed,
                Scales.parse(args.scales),
                args.max_class_share,
                args.class_uniform,
                args.color_strength,
            ),
            batch_sampler=self.sampler,
            num_workers=args.workers,
            worker_init_fn=loader_worker,
            persistent_workers=args.workers > 0,
            pin_memory=self.device.type == "cuda",
        )

    def resume(self, path: str) -> None:
        """Takes over the state after the last finished epoch of an earlier run.

        Raises:
            UserError: the file is no such state, or its run had other flags that decide the result.
        """
        state = load_checkpoint(path)
        if not {"model", "optimizer", "history", "best", "args"} <= state.keys():
            raise UserError(f"--resume: {path} cannot be resumed; expected the {self.last_path.name} of a run")
        now = {**vars(self.args), "train_frames": self.sampler.length}
        changed = [
            f"{name} {state['args'].get(name)} (now {now[name]})"
            for name in (*SAME_RUN, "train_frames")
            if state["args"].get(name) != now[name] and not (name == "epochs" and not self.args.power)
        ]
        if changed:
            raise UserError(f"--resume: {path} comes from another run: {', '.join(changed)}; give the same values")
        check_state(path, state["model"], self.model.state_dict())
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.average:
            self.average.load_state_dict(state["average"])
        self.history, self.best = state["history"], state["best"]

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
        # Dropout is a function of (seed, epoch) too: a resumed epoch needs no saved random state.
        torch.manual_seed(self.args.seed + 1_000_003 * epoch)
        self.model.train()
        losses, pixels, crops, start = [], [], 0, time.perf_counter()
        for batch in tqdm(self.loader, desc=f"epoch {epoch}/{self.args.epochs}", leave=False, disable=None):
            self.check_interrupted()
            self.set_rate((epoch - 1) * len(self.sampler) + len(losses))
            loss, valid = self.loss(*batch)
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            self.optimizer.step()
            if self.average:
                self.average.update_parameters(self.model)
            losses.append(loss.detach())
            pixels.append(valid)
            crops += len(batch[0])
            if len(losses) % 50 == 0:  # asking after every step would make a GPU wait
                self._check_finite(losses, epoch)
        self._check_finite(losses, epoch)
        counts = torch.stack(pixels).cpu().double()  # in this order: MPS has no double precision
        mean = float((torch.stack(losses).cpu().double() * counts).sum() / counts.sum().clamp(min=1))
        return mean, crops / (time.perf_counter() - start)

    def set_rate(self, step: int) -> None:
        """Sets the learning rate of a step of the run."""
        args, steps = self.args, self.args.epochs * len(self.sampler)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(step, steps, self.peak_lr, args.power, args.warmup_steps, args.min_lr)

    def loss(self, images: Tensor, targets: Tensor, colours: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the loss of a batch, auxiliary ones included, and the number of pixels that the main one counts."""
        targets = targets.to(self.device, non_blocking=True).long()
        images = distort_colours(images.to(self.device, non_blocking=True), colours)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.args.amp):
            outputs = self.model(normalise(images))
        logits, *auxiliary = outputs if isinstance(outputs, list) else [outputs]
        summed, pixels = pixel_loss(self.args.loss, logits.float(), targets, self.args.label_smoothing)
        loss = summed / pixels.clamp(min=1)
        if self.args.lovasz_weight:
            loss = loss + self.args.lovasz_weight * lovasz_loss(logits.float(), targets)
        for head in auxiliary:
            loss = loss + self.args.aux_weight * auxiliary_loss(head.float(), targets)
        return loss, pixels

    @property
    def scored(self) -> torch.nn.Module:
        """The network that is scored and saved: the average of the weights where there is one."""
        return self.average.module if self.average else self.model

    def _check_finite(self, losses: list[Tensor], epoch: int) -> None:
        finite = torch.isfinite(torch.stack(losses))
        if not finite.all():
            step = int((~finite).nonzero()[0]) + 1
            kept = f"; the last good state is {self.last_path}" if self.last_path.exists() else ""
            raise UserError(
                f"the loss is not finite at epoch {epoch}, step {step}, lr {self.optimizer.param_groups[0]['lr']:g}: "
                f"lower the learning rate{kept}"
            )

    def validate(self, write: bool) -> Scores:
        """Scores the validation frames at their full size, and writes the predictions if asked to."""
        scored = predict_with(torch_network(self.scored, self.device, "fp32", compiled=False), with_loss=True)

        def predict(images: Tensor, targets: Tensor) -> tuple[Tensor, float]:
            self.check_interrupted()
            return scored(images, targets)

        return evaluate(predict, self.val_samples, self.args.workers, self.writer if write else None)

    def finish_epoch(self, row: dict, scores: Scores) -> None:
        """Records an epoch: the state to go on from, the best weights, the statistics and their pictures."""
        history = [*self.history, row]
        if "epoch" not in self.best or row["class_miou"] > self.best["class_miou"]:
            weights = {name: tensor.detach().cpu().clone() for name, tensor in self.scored.state_dict().items()}
            self.best = {"class_miou": row["class_miou"], "epoch": row["epoch"], "model": weights}
        # The state goes first: it alone is needed to write the others again.
        save_checkpoint(
            self.last_path,
            {
                "model": self.model.state_dict(),
                "metadata": self.metadata(row),
                "average": self.average.state_dict() if self.average else None,
                "optimizer": self.optimizer.state_dict(),
                "history": history,
                "best": self.best,
                "args": {**vars(self.args), "train_frames": self.sampler.length},
            },
        )
        self.history = history
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
            "align_corners": self.model.align_corners,
            "input_scale": self.model.input_scale,
            "train_split": self.args.train_split,
            "epoch": row["epoch"],
            "class_miou": row["class_miou"],
            "command": self.command,
            "torch": str(torch.__version__),
        }

    def fit(self) -> Scores:
        """Trains to the last epoch; returns the scores of the best weights, whose predictions are then on disk."""
        epochs = range(1, self.args.epochs + 1)
        for epoch in tqdm(epochs[self.epoch :], "run", len(epochs), initial=self.epoch, unit="epoch", disable=None):
            train_loss, images_per_s = self.train_epoch(epoch)
            scores = self.validate(write=epoch % self.args.save_step == 0)
            row = {
                "epoch": epoch,
                "train_loss": train_loss,
                "val_loss": scores.loss,
                "pixel_accuracy": scores.pixel_accuracy,
                "class_miou": scores.class_miou,
                "category_miou": scores.category_miou,
                "lr": self.optimizer.param_groups[0]["lr"],
                "images_per_s": images_per_s,
            }
            self.finish_epoch(row, scores)
            tqdm.write(  # print, but above the bars where there are any
                f"epoch {epoch}/{self.args.epochs}  train loss {train_loss:.4f}  val loss {scores.loss:.4f}  "
                f"pixel accuracy {100 * scores.pixel_accuracy:.2f} %  class mIoU {100 * scores.class_miou:.2f} %  "
                f"category mIoU {100 * scores.category_miou:.2f} %  {images_per_s:.1f} images/s"
            )
            sys.stdout.flush()
        self.scored.load_state_dict(self.best["model"])
        return self.validate(write=True)


def first_model(args: argparse.Namespace) -> FastSCNN:
    """Returns the network that a run begins with; a resumed one still lacks its weights."""
    aux = args.aux_weight > 0
    if args.resume:
        model = build_model(*load_state(args.resume), aux)  # align_corners may come from the first run's init_weights
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
    parameters, macs = count_parameters_and_macs(run.model, args.crop_h, args.crop_w)
    note = train_ids_note([*train_samples, *run.val_samples])
    if note:
        print(note)
    print(f"device {device} ({name}), torch {torch.__version__}")
    print(f"Fast-SCNN: {parameters:,} parameters, {macs / 1e9:.2f} G MACs at {args.crop_h}x{args.crop_w} (thop)")
    print(
        f"{run.sampler.length} training and {len(run.val_samples)} validation frames; total batch {args.batch_size}, "
        f"{len(run.sampler)} steps per epoch, {args.epochs} epochs, {args.epochs * len(run.sampler)} steps"
    )
    print(
        f"recipe {args.recipe}: {args.optimizer}, lr {run.peak_lr:g}, {args.loss}, seed {args.seed}",
        flush=True,
    )


def main() -> int:
    """Trains, or goes on training, and prints how to score the result officially."""
    args = parse_args()
    keep_freed_memory()
    train_samples, val_samples = find_samples(args.data_path, "train"), find_samples(args.data_path, "val")
    if args.train_split == "train+val":
        train_samples = train_samples + val_samples
        print("training on train+val: the validation scores below are on frames seen in training")
    check_samples(train_samples)
    check_samples(val_samples)
    run = Run(args, train_samples, val_samples)
    if args.resume:
        run.resume(args.resume)
    print_start(run, train_samples)
    if run.epoch:
        print(f"resumed after epoch {run.epoch} of {args.resume}", flush=True)
        run.write_results()
    signal.signal(signal.SIGINT, run.interrupt)
    signal.signal(signal.SIGTERM, run.interrupt)
    try:
        scores = run.fit()
    except Interrupted:
        how = f"epoch {run.epoch} is kept: go on with --resume {run.last_path}" if run.epoch else "nothing was finished"
        print(f"\ninterrupted; {how}", file=sys.stderr)
        return 128 + run.interrupted_by
    print(f"\nbest weights: epoch {run.best['epoch']}, {run.best_path}")
    print(scores.table())
    print(f"\nstatistics {run.csv_path}\npredictions {run.writer.folder}, in colour {run.writer.color_folder}")
    print("official evaluation:")
    print(official_command(args.data_path, run.writer.folder, run.folder))
    return 0


if __name__ == "__main__":
    run_cli(main, DataError)
