"""Trains Fast-SCNN on Cityscapes, validates it by the official rules and writes the predictions that they score.

python train.py --data_path /home/data/cityscapes --crop_h 512 --crop_w 1024
"""

from __future__ import annotations

import argparse
import math
import os
import shlex
import shutil
import signal
import sys
import time
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader
from tqdm import tqdm

from dataset import (
    IGNORE_INDEX,
    DataError,
    EpochSampler,
    Sample,
    TrainSet,
    check_samples,
    default_data_path,
    find_samples,
    loader_worker,
    normalise,
)
from deploy import Predictor, check_state
from evaluate import PredictionWriter, Scores, evaluate, torch_predict
from model import MIN_SIZE, FastSCNN
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

LR = 1e-3  # Differs: the paper trains with SGD and a polynomial schedule. Source: the original's README
COLUMNS = ("epoch", "train_loss", "val_loss", "pixel_accuracy", "class_miou", "category_miou", "lr", "images_per_s")
SAME_RUN = ("crop_h", "crop_w", "batch_size", "seed")  # a resumed run must agree on these: they decide its result


def parse_args() -> argparse.Namespace:
    """Reads the command line; the first six flags are the original's, with its names, defaults and meaning."""
    parser = argparse.ArgumentParser(
        description="Train Fast-SCNN on data in Cityscapes layout.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    recipe = parser.add_argument_group("recipe")
    recipe.add_argument("--data_path", default=default_data_path(), help="data set in Cityscapes layout")
    recipe.add_argument("--crop_h", type=int, default=1024, help="crop height for training pictures")
    recipe.add_argument("--crop_w", type=int, default=2048, help="crop width for training pictures")
    recipe.add_argument("--batch_size", type=int, default=12, help="crops in each step")
    recipe.add_argument("--save_step", type=int, default=5, help="epochs between two savings of the val predictions")
    recipe.add_argument("--epochs", type=int, default=100, help="sweeps over the training split")
    run = parser.add_argument_group("run")
    run.add_argument("--resume", metavar="FILE", help="go on from a {crop_h}_{crop_w}_last.pth")
    run.add_argument("--seed", type=int, default=0, help="of weights, order, crops and dropout")
    run.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps")
    run.add_argument("--workers", type=int, default=min(8, os.cpu_count() or 1), help="loader processes")
    run.add_argument("--output_dir", default=".", help="where weights, statistics and predictions go")
    args = parser.parse_args()
    _check_args(args)
    return args


def _check_args(args: argparse.Namespace) -> None:
    for name in ("crop_h", "crop_w"):
        if getattr(args, name) < MIN_SIZE:
            raise UserError(f"--{name} is {getattr(args, name)}, expected at least {MIN_SIZE} pixels")
    if args.batch_size < 2:
        raise UserError(
            f"--batch_size is {args.batch_size}, expected at least 2: batch normalisation after the 1x1 pooling bin "
            "has a single value per channel with one crop"
        )
    for name, least in (("save_step", 1), ("epochs", 1), ("seed", 0), ("workers", 0)):
        if getattr(args, name) < least:
            raise UserError(f"--{name} is {getattr(args, name)}, expected at least {least}")
    if args.resume and not Path(args.resume).is_file():
        raise UserError(f"--resume: no file at {args.resume}; leave it out to start a new run")


class Terminated(Exception):
    """SIGTERM arrived."""


class Run:
    """One training run: the network, its optimiser, and the files that make it survive an interruption."""

    def __init__(self, args: argparse.Namespace, train_samples: list[Sample], val_samples: list[Sample]):
        self.args, self.val_samples = args, val_samples
        self.folder = writable_folder(args.output_dir)
        prefix = f"{args.crop_h}_{args.crop_w}"
        self.best_path = self.folder / f"{prefix}_model.pth"
        self.last_path = self.folder / f"{prefix}_last.pth"
        self.csv_path = self.folder / f"{prefix}_statistics.csv"
        results = os.environ.get("CITYSCAPES_RESULTS") or self.folder / "results"
        self.writer = PredictionWriter(results, val_samples, self.folder / "results_color")
        self.device = choose_device(args.device)

        torch.manual_seed(args.seed)
        self.model = FastSCNN().to(self.device, memory_format=torch.channels_last)
        self.optimiser = torch.optim.Adam(self.model.parameters(), lr=LR)
        self.history: list[dict] = []
        self.best: dict = {"class_miou": -math.inf}
        self.sampler = EpochSampler(len(train_samples), args.batch_size, args.seed)
        self.loader = DataLoader(
            TrainSet(train_samples, (args.crop_h, args.crop_w), args.seed),
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
        if not {"model", "optimiser", "history", "best", "args"} <= state.keys():
            raise UserError(f"--resume: {path} cannot be resumed; expected the {self.last_path.name} of a run")
        now = {**vars(self.args), "train_frames": self.sampler.length}
        changed = [
            f"{name} {state['args'][name]} (now {now[name]})"
            for name in (*SAME_RUN, "train_frames")
            if state["args"][name] != now[name]
        ]
        if changed:
            raise UserError(f"--resume: {path} comes from another run: {', '.join(changed)}; give the same values")
        check_state(path, state["model"], self.model.state_dict())
        self.model.load_state_dict(state["model"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.history, self.best = state["history"], state["best"]

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
        for images, targets in tqdm(self.loader, desc=f"epoch {epoch}/{self.args.epochs}", leave=False, disable=None):
            targets = targets.to(self.device, non_blocking=True).long()
            logits = self.model(normalise(images.to(self.device, non_blocking=True)))
            loss, valid = cross_entropy(logits, targets)
            self.optimiser.zero_grad(set_to_none=True)
            loss.backward()
            self.optimiser.step()
            losses.append(loss.detach())
            pixels.append(valid)
            crops += len(images)
            if len(losses) % 50 == 0:  # asking after every step would make a GPU wait
                self._check_finite(losses, epoch)
        self._check_finite(losses, epoch)
        counts = torch.stack(pixels).cpu().double()  # in this order: MPS has no double precision
        mean = float((torch.stack(losses).cpu().double() * counts).sum() / counts.sum().clamp(min=1))
        return mean, crops / (time.perf_counter() - start)

    def _check_finite(self, losses: list[Tensor], epoch: int) -> None:
        finite = torch.isfinite(torch.stack(losses))
        if not finite.all():
            step = int((~finite).nonzero()[0]) + 1
            kept = f"; the last good state is {self.last_path}" if self.last_path.exists() else ""
            raise UserError(
                f"the loss is not finite at epoch {epoch}, step {step}, lr {self.optimiser.param_groups[0]['lr']:g}: "
                f"lower the learning rate{kept}"
            )

    def validate(self, write: bool) -> Scores:
        """Scores the validation frames at their full size, and writes the predictions if asked to."""
        predict = torch_predict(Predictor(self.model, self.device))
        return evaluate(predict, self.val_samples, self.args.workers, self.writer if write else None)

    def finish_epoch(self, row: dict) -> None:
        """Records an epoch: the state to go on from, the best weights, the statistics."""
        self.history.append(row)
        if row["class_miou"] > self.best["class_miou"]:
            weights = {name: tensor.detach().cpu().clone() for name, tensor in self.model.state_dict().items()}
            self.best = {"class_miou": row["class_miou"], "epoch": row["epoch"], "model": weights}
        # The state goes first: it alone is needed to write the other two again.
        save_checkpoint(
            self.last_path,
            {
                "model": self.model.state_dict(),
                "metadata": self.metadata(row),
                "optimiser": self.optimiser.state_dict(),
                "history": self.history,
                "best": self.best,
                "args": {**vars(self.args), "train_frames": self.sampler.length},
            },
        )
        self.write_results()

    def write_results(self) -> None:
        """Writes the best weights, if they are new, and the statistics."""
        if self.best.get("epoch") == self.epoch or not self.best_path.exists():
            row = self.history[self.best["epoch"] - 1]
            save_checkpoint(self.best_path, {"model": self.best["model"], "metadata": self.metadata(row)})
        write_csv(self.csv_path, COLUMNS, self.history)

    def metadata(self, row: dict) -> dict:
        """What a weight file says of itself, in plain values."""
        return {
            "network": "Fast-SCNN",
            "align_corners": self.model.align_corners,
            "epoch": row["epoch"],
            "class_miou": row["class_miou"],
            "command": shlex.join(["train.py", *sys.argv[1:]]),
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
                "lr": self.optimiser.param_groups[0]["lr"],
                "images_per_s": images_per_s,
            }
            self.finish_epoch(row)
            tqdm.write(  # print, but above the bars where there are any
                f"epoch {epoch}/{self.args.epochs}  train loss {train_loss:.4f}  val loss {scores.loss:.4f}  "
                f"pixel accuracy {100 * scores.pixel_accuracy:.2f} %  class mIoU {100 * scores.class_miou:.2f} %  "
                f"category mIoU {100 * scores.category_miou:.2f} %  {images_per_s:.1f} images/s"
            )
            sys.stdout.flush()
        self.model.load_state_dict(self.best["model"])
        return self.validate(write=True)


def cross_entropy(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the mean cross-entropy over the pixels that count, and their number.

    A batch whose pixels are all ignored gives a loss of zero, not NaN.

    Args:
        logits: (N, K, H, W).
        targets: (N, H, W) int64 train ids.
    """
    valid = (targets != IGNORE_INDEX).sum()
    return F.cross_entropy(logits, targets, ignore_index=IGNORE_INDEX, reduction="sum") / valid.clamp(min=1), valid


def official_command(data_path: str | Path, results: Path, export: Path) -> str:
    """Returns the shell command that scores the written predictions with cityscapesScripts."""
    script = "csEvalPixelLevelSemanticLabeling"
    installed = shutil.which(
        script, path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    )
    variables = {"CITYSCAPES_DATASET": data_path, "CITYSCAPES_RESULTS": results, "CITYSCAPES_EXPORT_DIR": export}
    words = [f"{name}={shlex.quote(os.path.abspath(value))}" for name, value in variables.items()]
    return " ".join([*words, shlex.quote(installed or script)])


def print_start(run: Run, train_samples: Iterable[Sample]) -> None:
    """Prints what is about to be trained, on what, and from which data."""
    args, device = run.args, run.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} threads"
    parameters, macs = count_parameters_and_macs(run.model, args.crop_h, args.crop_w)
    train_ids = sum(sample.label_is_train_ids for sample in [*train_samples, *run.val_samples])
    if train_ids:
        print(f"{train_ids} frames have no labelIds file: their labelTrainIds are read, which may differ slightly")
    print(f"device {device} ({name}), torch {torch.__version__}")
    print(f"Fast-SCNN: {parameters:,} parameters, {macs / 1e9:.2f} G MACs at {args.crop_h}x{args.crop_w} (thop)")
    print(
        f"{run.sampler.length} training and {len(run.val_samples)} validation frames; total batch {args.batch_size}, "
        f"{len(run.sampler)} steps per epoch, {args.epochs} epochs, Adam, lr {LR:g}, seed {args.seed}",
        flush=True,
    )


def terminate(signum: int, frame: object) -> None:
    """Turns SIGTERM into an exception, so that a run ends the way Ctrl-C ends it."""
    raise Terminated


def main() -> int:
    """Trains, or goes on training, and prints how to score the result officially."""
    args = parse_args()
    signal.signal(signal.SIGTERM, terminate)
    keep_freed_memory()
    train_samples, val_samples = find_samples(args.data_path, "train"), find_samples(args.data_path, "val")
    check_samples(train_samples)
    check_samples(val_samples)
    run = Run(args, train_samples, val_samples)
    if args.resume:
        run.resume(args.resume)
    print_start(run, train_samples)
    if run.epoch:
        print(f"resumed after epoch {run.epoch} of {args.resume}", flush=True)
        run.write_results()
    try:
        scores = run.fit()
    except (KeyboardInterrupt, Terminated) as interruption:
        how = f"epoch {run.epoch} is kept: go on with --resume {run.last_path}" if run.epoch else "nothing was finished"
        print(f"\ninterrupted; {how}", file=sys.stderr)
        return 130 if isinstance(interruption, KeyboardInterrupt) else 143
    print(f"\nbest weights: epoch {run.best['epoch']}, {run.best_path}")
    print(scores.table())
    print(f"\nstatistics {run.csv_path}\npredictions {run.writer.folder}, in colour {run.writer.color_folder}")
    print("official evaluation:")
    print(official_command(args.data_path, run.writer.folder, run.folder))
    return 0


if __name__ == "__main__":
    run_cli(main, DataError)
