"""Trains Fast-SCNN on Cityscapes, validates it by the official rules and writes the predictions that they score.

python train.py --data_path /home/data/cityscapes --crop_h 512 --crop_w 1024
"""

from __future__ import annotations

import contextlib
import math
import os
import sys
import time
from collections.abc import Callable
from dataclasses import asdict

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
from frames.samples import DataSet, read_pair
from frames.workers import naming_dead_workers
from inference.checkpoints import build_model, check_state, initial_model
from inference.torch_engine import torch_engine
from model import FastSCNN
from training.augment import EpochSampler, make_loader
from training.frames import find_frames, find_unions, padding, print_check, refuse_other_names
from training.learner import Learner, half_precision, on_device
from training.losses import summed_cross_entropy
from training.plots import deciding_score
from training.recipes import Options, compare_settings, data_settings, load_resumable, parse_args
from training.run_files import RunFiles
from utils import StopSignal, UserError, count_parameters_and_macs, keep_freed_memory, run_cli
from web.report import Report
from web.report_data import About


class Interrupted(Exception):
    """Ctrl-C or SIGTERM arrived."""


def train(options: Options, device: torch.device) -> int:
    """Trains or resumes a run: data, model, step, loop, results; returns the exit status."""
    check_batch(options.batch_size)
    state = load_resumable(options.resume) if options.resume else None

    data, extra = open_all(options)
    files = RunFiles(options, data.classes)
    train_samples, val_samples, sizes = find_frames(options, data, extra)
    decides = data_settings(data.classes, [added.classes for added in extra.values()], train_samples)
    settings = {**asdict(options), **decides, "processes": distributed.count()}
    if state:
        compare_settings(options.resume, state["args"], settings)
    results = os.environ.get("CITYSCAPES_RESULTS") or files.folder / "results"
    report = Report(files.folder / "report", data.classes, val_samples, outputs=[results]) if options.report else None
    writer = PredictionWriter(results, val_samples, data.classes, files.folder / "results_color")
    sampler = EpochSampler(
        len(train_samples), options.batch_size, options.seed, (distributed.rank(), distributed.count())
    )
    samples = train_samples + val_samples
    read = open_cache(options.cache, samples, options.workers).read if options.cache else read_pair
    unions = find_unions(options, train_samples, len(data.classes))
    loader = make_loader(options, train_samples, sampler, read, device, unions)

    torch.manual_seed(options.seed)
    model = make_model(options, data.classes, state)
    macs = count_parameters_and_macs(model, options.crop_h, options.crop_w)[1]
    model.input_side = options.input_side  # of pictures: crops are counted as they are
    half = half_precision(device) if options.amp else None
    learner = Learner(options, model, device, options.epochs * len(sampler), half, unions.members)
    print_start(options, learner, sampler, len(val_samples), macs)
    print(f"crops {options.crop_h}x{options.crop_w}: {100 * padding(options, sizes):.1f} % padding", flush=True)

    history, best = [], {}
    if distributed.is_first():
        files.remove_earlier()
    if state:
        history, best = resume(learner, files, state)
        print(f"resumed after epoch {len(history)} of {options.resume}", flush=True)
    del state  # weights, optimizer and best weights, a second time
    stop = StopSignal()

    def check_stop() -> None:
        if stop:
            raise Interrupted

    def validate(*outputs: PredictionWriter | Report) -> Scores:
        # On a CPU, batch-norm statistics differ between processes: the first one's are scored.
        distributed.broadcast_from_first(learner.scored)
        engine = torch_engine(learner.scored, device, classes=data.classes)
        how = {"workers": options.workers, "read": read, "loss": summed_cross_entropy, "before_each": check_stop}
        return evaluate(engine, val_samples, data.classes, outputs=outputs, **how)

    with report or contextlib.nullcontext():
        stop.listen()
        try:
            epochs = range(1, options.epochs + 1)
            bar = {"unit": "epoch", "disable": distributed.hide_bars()}
            for epoch in tqdm(epochs[len(history) :], "run", len(epochs), initial=len(history), **bar):
                train_loss, images_per_s = train_epoch(options, learner, loader, sampler, epoch, files, check_stop)
                scores = validate(*([writer] if epoch % options.save_step == 0 else []))
                history.append(statistics_row(epoch, train_loss, scores, learner.lr, images_per_s))
                if not best or deciding_score(history[-1]) > deciding_score(history[best["epoch"] - 1]):
                    best = {"epoch": epoch, "model": on_cpu(learner.scored.state_dict())}
                if distributed.is_first():
                    metadata = files.metadata(learner.model, history[-1])
                    saved = {"metadata": metadata, "history": history, "best": best, "args": settings}
                    best_metadata = files.metadata(learner.model, history[best["epoch"] - 1])
                    files.save_epoch({**learner.state_dict(), **saved}, best_metadata, scores.confusion)
                tqdm.write(epoch_line(history[-1], options.epochs))  # as print, but above the bars
                sys.stdout.flush()
            learner.scored.load_state_dict(best["model"])
            scores = validate(writer, *([report] if report else []))
        except (Interrupted, RuntimeError) as error:
            if not stop:  # a RuntimeError is also raised if another process was interrupted first
                raise
            if distributed.is_first() or not isinstance(error, Interrupted):
                kept = f"epoch {len(history)} is kept: continue with --resume {files.last}"
                print(f"\ninterrupted; {kept if history else 'no epoch was finished'}", file=sys.stderr)
            return stop.status
        print_results(options, data, files, writer, best["epoch"], scores)
        if report and distributed.is_first():
            finish_report(options, report, files, best["epoch"], scores, device)
    return 0


def check_batch(batch_size: int) -> None:
    """Refuses a batch that cannot be split over the processes."""
    count = distributed.count()
    if batch_size % count or batch_size < 2 * count:
        raise UserError(
            f"--batch_size is {batch_size}, expected a multiple of {count} for {count} processes, with at least two "
            "crops for each"
        )


def open_all(options: Options) -> tuple[DataSet, dict[str, DataSet]]:
    """Opens the data set of --data_path, and the data sets of --extra_data by their path."""
    data = open_data(options.data_path, options.data_root)
    extra = {path: open_data(path) for path in options.extra_data or ()}
    for path, added in extra.items():
        refuse_other_names(path, added.classes, data.classes)
    return data, extra


def make_model(options: Options, classes: Classes, state: dict | None) -> FastSCNN:
    """Returns the network that a run begins with; the network of a resumed run gets its weights later."""
    aux = options.aux_weight > 0
    if state:
        # align_corners may come from --init_weights
        model = build_model(state["model"], state["metadata"], len(classes), aux)
        check_state(options.resume, state["model"], model.state_dict())
    elif options.init_weights:
        model = initial_model(options.init_weights, classes, aux, options.reset_head)
    else:
        model = FastSCNN(len(classes), aux=aux)
    model.input_scale, model.input_side = options.input_scale, 0
    return model


def resume(learner: Learner, files: RunFiles, state: dict) -> tuple[list[dict], dict]:
    """Restores a run, and writes the files that a killed run may not have written any more.

    Returns:
        The history, a row for each finished epoch; and the best epoch with its weights.
    """
    learner.load_state_dict(state)
    # Runs that began without these columns were scored by the mean over all classes.
    added = ({"class_miou_present": row["class_miou"], "joined_miou": math.nan} for row in state["history"])
    history = [{**columns, **row} for columns, row in zip(added, state["history"], strict=True)]
    best = state["best"]
    if distributed.is_first():
        files.save_results(history, best["model"], files.metadata(learner.model, history[best["epoch"] - 1]))
    return history, best


def on_cpu(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Returns a copy of a state dict in main memory."""
    return {name: tensor.detach().cpu().clone() for name, tensor in state.items()}


def train_epoch(
    options: Options,
    learner: Learner,
    loader: DataLoader,
    sampler: EpochSampler,
    epoch: int,
    files: RunFiles,
    check_stop: Callable[[], None],
) -> tuple[float, float]:
    """Trains one epoch; returns the mean loss over the labelled pixels, and the crops per second.

    Raises:
        Interrupted: a signal came.
        UserError: the loss is not finite.
    """
    sampler.epoch = epoch
    # Dropout is a function of (seed, epoch, rank) too: a resumed epoch needs no saved random state.
    torch.manual_seed(options.seed + 1_000_003 * epoch + 7_919 * distributed.rank())
    learner.model.train()
    losses, pixels = [], []
    first_step = (epoch - 1) * len(sampler)
    start = time.perf_counter()
    bar = tqdm(loader, desc=f"epoch {epoch}/{options.epochs}", leave=False, disable=distributed.hide_bars())
    with naming_dead_workers(loader):
        for batch in on_device(bar, learner.device):
            check_stop()
            loss, count = learner.step(first_step + len(losses), *batch)
            losses.append(loss)
            pixels.append(count)
            if len(losses) % 50 == 0:  # a look after every step would make a GPU wait
                finite_means(losses, epoch, learner.lr, files)
    means = finite_means(losses, epoch, learner.lr, files)
    counts = torch.stack(pixels).cpu().double()  # in this order: MPS has no double precision
    mean = float((means * counts).sum() / counts.sum().clamp(min=1))
    return mean, sampler.crops / (time.perf_counter() - start)


def finite_means(losses: list[Tensor], epoch: int, lr: float, files: RunFiles) -> Tensor:
    """Returns the losses of an epoch's steps so far, averaged over the processes, in double precision.

    Raises:
        UserError: one of them is not finite.
    """
    means = distributed.all_reduce_sum(torch.stack(losses)).cpu().double() / distributed.count()
    finite = torch.isfinite(means)
    if not finite.all():
        step = int((~finite).nonzero()[0]) + 1
        kept = f"; the last good state is {files.last}" if files.last.exists() else ""
        raise UserError(
            f"the loss is not finite at epoch {epoch}, step {step}, lr {lr:g}: lower the learning rate{kept}"
        )
    return means


def print_start(options: Options, learner: Learner, sampler: EpochSampler, val_frames: int, macs: int) -> None:
    """Prints what is about to be trained, on which device and data."""
    device = learner.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} threads"
    if distributed.count() > 1:
        name = f"{distributed.count()} processes, each {name}"
    precision = {None: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16, gradients scaled"}[learner.half]
    print(f"device {device} ({name}), {precision}, torch {torch.__version__}")
    if options.amp and learner.half is None:
        print("--amp ignored: this CPU has no bf16 instructions")
    parameters = sum(parameter.numel() for parameter in learner.model.parameters())
    print(f"Fast-SCNN: {parameters:,} parameters, {macs / 1e9:.2f} G MACs at {options.crop_h}x{options.crop_w} (thop)")
    print(
        f"{sampler.length} training and {val_frames} validation frames; total batch {options.batch_size}, "
        f"{len(sampler)} steps per epoch, {options.epochs} epochs, {options.epochs * len(sampler)} steps"
    )
    recipe = f"recipe {options.recipe}: {options.optimizer}, lr {learner.peak_lr:g}, {options.loss}"
    print(f"{recipe}, seed {options.seed}", flush=True)


def epoch_line(row: dict, epochs: int) -> str:
    """Returns a row of the statistics file as one line."""
    means = []
    if row["class_miou"] != row["class_miou_present"]:
        means.append(f"of present classes {100 * row['class_miou_present']:.2f} %  ")
    if not math.isnan(row["joined_miou"]):
        means.append(f"joined {100 * row['joined_miou']:.2f} %  ")
    if not math.isnan(row["category_miou"]):
        means.append(f"category mIoU {100 * row['category_miou']:.2f} %  ")
    return (
        f"epoch {row['epoch']}/{epochs}  train loss {row['train_loss']:.4f}  val loss {row['val_loss']:.4f}  "
        f"pixel accuracy {100 * row['pixel_accuracy']:.2f} %  class mIoU {100 * row['class_miou']:.2f} %  "
        f"{''.join(means)}{row['images_per_s']:.1f} images/s"
    )


def print_results(
    options: Options, data: DataSet, files: RunFiles, writer: PredictionWriter, epoch: int, scores: Scores
) -> None:
    """Prints the scores of the best weights, and where the files of the run are."""
    print(f"\nbest weights: epoch {epoch}, {files.best}")
    print(scores.table())
    print(f"\nstatistics {files.statistics}\npredictions {writer.folder}, in color {writer.color_folder}")
    if not data.described:
        print("official evaluation:")
        print(official_command(options.data_path, writer.folder, files.folder))


def finish_report(
    options: Options, report: Report, files: RunFiles, epoch: int, scores: Scores, device: torch.device
) -> None:
    """Writes the report of the best weights.

    Raises:
        UserError: it cannot be written.
    """
    about = About(
        weights=str(files.best),
        data=options.data_path,
        split="val",
        network=f"torch fp32 on {device}",
        command=files.command,
        epoch=epoch,
        note=seen_note("val", options.train_split),
    )
    report.finish(scores, about)
    print(f"report {report.path / 'index.html'}")


def main() -> int:
    """Trains in one process, or in one of several."""
    options = parse_args()
    keep_freed_memory()
    with distributed.process_group(options.device) as device:
        if options.check:
            print_check(*open_all(options), options.workers)
            return 0
        return train(options, device)


if __name__ == "__main__":
    run_cli(main)
