"""The reported number: class and category IoU by the official Cityscapes rules, and the prediction PNGs.

python evaluate.py --model_weight 1024_2048_model.pth --split val --json scores.json
torchrun --nproc_per_node=2 evaluate.py --model_weight 1024_2048_model.pth --data_path mine.yaml --split test
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import functools
import json
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

import distributed
from evaluation.evaluate import evaluate, seen_note
from evaluation.labelling import label_pictures
from evaluation.prediction_files import PredictionWriter
from frames.check import check_frames
from frames.cityscapes import train_ids_note
from frames.classes import Classes
from frames.description import add_data_flags, open_data
from frames.samples import SPLITS, Sample, check_headers, read_at_width, read_pair
from inference.engine import Engine
from inference.predictor import add_backend_flags, choose_engine, load_engine
from model import MIN_SIZE
from utils import UserError, refuse_input, run_cli, writable_folder, write_file
from web.report import WIDTH, WIDTHS, Report
from web.report_data import About

# Timeout while processes label (their shares may finish hours apart), and the hint to print.
LABELLING = datetime.timedelta(days=30), "start again with --skip_existing, which makes only what is missing"


def build_parser() -> argparse.ArgumentParser:
    """Returns the parser of evaluate.py."""
    parser = argparse.ArgumentParser(
        description="Score a checkpoint by the official Cityscapes rules.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add_data_flags(parser)
    parser.add_argument(
        "--model_weight",
        default="1024_2048_model.pth",
        help="weights of train.py, a bare state dict or an exported file",
    )
    parser.add_argument(
        "--split", default="val", choices=SPLITS, help="test is only predicted: it has no public labels"
    )
    parser.add_argument("--width", type=int, help="resize pictures and labels to this width first; scores only")
    parser.add_argument("--save_dir", help="write label-id PNGs here (test: $CITYSCAPES_RESULTS, else ./results)")
    parser.add_argument("--color_dir", help="write color PNGs here")
    parser.add_argument(
        "--skip_existing",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="with --split test: keep predictions that are whole and of the picture's size, and make only the others",
    )
    parser.add_argument("--json", metavar="FILE", help="write the scores here")
    parser.add_argument("--report", metavar="DIR", help="write a folder with a page of the scores and all frames here")
    parser.add_argument("--compare", metavar="DIR", help="with --report: another report, to show the differences to")
    parser.add_argument("--report_width", type=int, default=WIDTH, help="most pixels in width of its pictures")
    add_backend_flags(parser)
    parser.add_argument("--workers", type=int, default=min(4, os.cpu_count() or 1), help="loader processes")
    return parser


def check_args(args: argparse.Namespace) -> None:
    """Refuses flags that do not go together.

    Raises:
        UserError: says which.
    """
    predict_only = args.split == "test"
    for flag in ("json", "report"):
        if predict_only and getattr(args, flag) is not None:
            raise UserError(
                f"--{flag} was given for the test split, which has no public labels to score; use --split val"
            )
    if args.skip_existing and not predict_only:
        raise UserError(
            f"--skip_existing is only for --split test: skipped frames would be missing from the scores of {args.split}"
        )
    if args.width is not None and (args.save_dir or predict_only or not MIN_SIZE <= args.width <= 16384):
        raise UserError(f"--width is {args.width}, expected {MIN_SIZE} to 16384, to score a split without --save_dir")
    if args.compare is not None and args.report is None:
        raise UserError("--compare was given without --report; give both")
    if not WIDTHS[0] <= args.report_width <= WIDTHS[1]:
        raise UserError(f"--report_width is {args.report_width}, expected {WIDTHS[0]} to {WIDTHS[1]}")


def open_outputs(
    args: argparse.Namespace, samples: Sequence[Sample], classes: Classes
) -> tuple[PredictionWriter | None, Report | None]:
    """Returns what writes predictions and report, where they are asked for, after a check of all outputs.

    Raises:
        UserError: one of them cannot be written.
    """
    default = os.environ.get("CITYSCAPES_RESULTS", "results") if args.split == "test" else None
    save_dir = default if args.save_dir is None else args.save_dir
    if args.color_dir and save_dir is None:
        raise UserError("--color_dir was given without --save_dir; give both")
    report = None
    if args.report is not None:
        outputs = (args.json, save_dir, args.color_dir)
        report = Report(args.report, classes, samples, args.report_width, args.compare, outputs)
    writer = PredictionWriter(save_dir, samples, classes, args.color_dir) if save_dir else None
    if args.json:
        writable_folder(Path(args.json).absolute().parent)
        refuse_input(args.json, "--json", [args.model_weight, *(file for s in samples for file in (s.image, s.label))])
    return writer, report


def score(
    args: argparse.Namespace,
    samples: Sequence[Sample],
    engine: Engine,
    metadata: dict,
    writer: PredictionWriter | None,
    report: Report | None,
) -> int:
    """Scores a split, and writes what is asked for; returns the exit status."""
    classes = engine.classes
    seen = seen_note(args.split, metadata.get("train_split", "train"))
    for note in (notes := list(filter(None, (train_ids_note(samples), seen)))):
        print(note)
    read = functools.partial(read_at_width, width=args.width) if args.width else read_pair
    outputs = [output for output in (writer, report) if output]
    scores = evaluate(engine, samples, classes, workers=args.workers, outputs=outputs, read=read)
    if writer:
        print(f"predictions: {writer.folder}")
    if not scores.confusion.any():
        check_frames(samples, args.split, classes, args.workers, decode_images=False).refuse_unlabelled()
    print(scores.table())
    if args.json and distributed.is_first():
        write_file(args.json, json.dumps(scores.as_json(), indent=2).encode())
    if report and distributed.is_first():
        notes += [f"frames were made {args.width} wide"] if args.width else []
        about = About(
            weights=args.model_weight,
            data=args.data_path,
            split=args.split,
            network=engine.name,
            command=shlex.join(["evaluate.py", *sys.argv[1:]]),
            epoch=metadata.get("epoch"),
            note="; ".join(notes),
        )
        difference = report.finish(scores, about)
        print(f"report: {report.path / 'index.html'}")
        if difference:
            raise UserError(f"--compare {args.compare}: {difference}; {report.path} was written without it")
    return 1 if writer and writer.refused else 0


def label(args: argparse.Namespace, samples: Sequence[Sample], engine: Engine, writer: PredictionWriter) -> int:
    """Predicts the test split; returns the exit status."""
    counts = label_pictures(engine, samples, writer, workers=args.workers, keep=args.skip_existing)
    print(f"predictions: {writer.folder}: {', '.join(f'{count} {outcome}' for outcome, count in counts.items())}")
    return 1 if counts["left out"] else 0


def main() -> int:
    """Scores a checkpoint on a split, or predicts the test split, in one process or in one of several."""
    args = build_parser().parse_args()
    check_args(args)
    chosen = args.model_weight, args.device, args.backend, args.precision
    place = choose_engine(*chosen, args.input_side)[2]
    with (
        distributed.process_group(str(place), *(LABELLING if args.split == "test" else ())),
        contextlib.ExitStack() as stack,
    ):
        data = open_data(args.data_path, args.data_root)
        samples = data.find(args.split)
        if args.split != "test":  # there, a damaged picture is left out when it comes
            check_headers(samples)
        engine, metadata = load_engine(*chosen, data.classes, args.input_side)
        writer, report = open_outputs(args, samples, data.classes)
        if report:
            stack.enter_context(report)
        if writer and distributed.is_first():
            stack.enter_context(writer.alone())
        epoch = f", epoch {metadata['epoch']}" if "epoch" in metadata else ""
        what = f"{args.split}: {len(samples)} frames{f' made {args.width} wide' if args.width else ''}"
        print(f"{args.model_weight}{epoch} on {args.data_path}, {what}, {engine.name}", flush=True)
        if args.split == "test":
            return label(args, samples, engine, writer)
        return score(args, samples, engine, metadata, writer, report)


if __name__ == "__main__":
    run_cli(main)
