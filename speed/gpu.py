"""What a prediction costs on a CUDA GPU: from a picture in its memory to labels in its memory.

python -m speed.gpu --quick

It needs torch and NumPy alone, so that it runs as it is on a machine that is lent for ten minutes. Everything that is
compared runs alternately; the baseline is what public repositories run: eager float32 in NCHW, interpolation to full
size, argmax. What cannot be prepared, such as torch.compile without a compiler, is a line and no end.
"""

from __future__ import annotations

import argparse
import functools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from inference.cuda import HEADS, MEAN, STD, Deployed, capture, compile_, highest, plain, running_highest
from model import FastSCNN
from speed.timing import alternate_on, compare, machine, table
from utils import UserError, load_checkpoint, run_cli, write_file

SIZES = ((1024, 2048), (512, 1024), (360, 480))
BATCHES = (1, 2, 4, 8, 16, 32)
WEIGHTS = Path(__file__).resolve().parent.parent / "weights" / "camvid.pth"
# Source: arXiv 1902.04502, and the original repository's README.
REPORTED = (("paper, Titan Xp, batch 1", 123.5), ("original repository, V100, batch 12", 197.0))
BURST = 8  # calls that are queued at once to measure throughput


class Way(NamedTuple):
    """One way to compute something, ready to be called."""

    name: str
    backend: str
    precision: str
    call: Callable[[], Tensor]


class Job(NamedTuple):
    """What all measurements have in common."""

    model: FastSCNN
    device: torch.device
    repeats: int
    compiled: bool  # use torch.compile
    say: Callable[[str], None]  # for what could not be prepared


def first_line(error: BaseException) -> str:
    """Returns an error in one line."""
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0][:160]}"


def prepare(job: Job, name: str, backend: str, precision: str, make: Callable[[], Callable[[], Tensor]]) -> list[Way]:
    """Makes a way and calls it once; one that fails, by whatever error of a compiler, is said and left out."""
    try:
        call = make()
        call()
        if job.device.type == "cuda":
            torch.cuda.synchronize()
    except Exception as error:  # compilers and drivers raise anything
        job.say(f"{name}: not run ({first_line(error)})")
        return []
    return [Way(name, backend, precision, call)]


def measure(
    job: Job, stage: str, size: tuple[int, int], batch: int, baseline: Way, ways: Sequence[Way], burst: int = 1
) -> list[dict]:
    """Times some ways and the baseline alternately, and compares their labels.

    Returns:
        A row for each, the baseline first: what benchmark.py promises, and batch, device, images_per_s, and the share
        of equal labels, or None where the result is no map of labels.
    """
    times = alternate_on(job.device, [way.call for way in (baseline, *ways)], job.repeats, burst)
    expected = baseline.call().clone()
    device = torch.cuda.get_device_name(job.device) if job.device.type == "cuda" else job.device.type
    rows = []
    for way, seconds in zip((baseline, *ways), times, strict=True):
        figures = compare(seconds, times[0])
        result = way.call()
        equal = float((result == expected).float().mean()) if result.dtype == torch.uint8 else None
        rows.append({
            "name": f"{way.name}, {size[0]}x{size[1]}, batch {batch}", "stage": stage, "backend": way.backend,
            "precision": way.precision, "height": size[0], "width": size[1], "batch": batch, "queued": burst,
            "device": device, **figures, "images_per_s": 1e3 * batch / figures["median_ms"], "equal": equal,
        })  # fmt: skip
    return rows


def resized(picture: np.ndarray | None, size: tuple[int, int], batch: int, device: torch.device) -> Tensor:
    """Returns (N, H, W, 3) uint8 pictures on the device; without a picture, blobs of color."""
    if picture is None:
        source = torch.rand(1, 3, 9, 18, generator=torch.Generator().manual_seed(0)) * 255
    else:
        source = torch.from_numpy(np.ascontiguousarray(picture)).permute(2, 0, 1)[None].float()
    image = F.interpolate(source.to(device), size, mode="bilinear").round().to(torch.uint8)
    return image.permute(0, 2, 3, 1).expand(batch, *size, 3).contiguous()


def baseline_way(job: Job, images: Tensor) -> Way:
    """Returns what everything is compared with."""
    mean, std = (torch.tensor(values, device=job.device) for values in (MEAN, STD))
    call = functools.partial(plain, job.model, images, mean, std)
    return Way("baseline: eager NCHW, interpolate + argmax", "torch", "fp32", call)


def head_rows(job: Job, images: Tensor) -> list[dict]:
    """Times every label head on the logits of a picture."""
    batch, *size, _ = images.shape
    logits = Deployed(job.model, size, "fp32").logits(images)
    arguments = (logits, size, job.model.align_corners)
    ways = []
    for name, head in HEADS.items():
        for compiled in (False, True)[: 1 + job.compiled]:
            kind = "compiled" if compiled else "eager"
            backend = "torch-compile" if compiled else "torch"

            def make(head: Callable = head, compiled: bool = compiled) -> Callable[[], Tensor]:
                return functools.partial(compile_(head) if compiled else head, *arguments)

            ways += prepare(job, f"label head, {name}, {kind}", backend, "fp32", make)
    if not ways:
        return []
    return measure(job, "label-head", size, batch, ways[0]._replace(name="baseline: " + ways[0].name), ways[1:])


def fastest_head(rows: Sequence[dict]) -> Callable:
    """Returns the head whose row is the fastest, compiled if that was."""
    if not rows:
        return highest
    row = min(rows, key=lambda row: row["median_ms"])
    (head,) = (head for name, head in HEADS.items() if name in row["name"])
    return compile_(head) if row["backend"] == "torch-compile" else head


def picture_ways(
    job: Job, images: Tensor, precision: str, head: Callable, modes: Sequence[str] = ("default",)
) -> list[Way]:
    """Prepares the ways from pictures to labels.

    Args:
        job: what all have in common.
        images: (N, H, W, 3), which stay where they are.
        precision: of the network.
        head: a label head for the CUDA graphs.
        modes: of torch.compile; "default" is put into a CUDA graph here, the others see to that themselves.
    """
    size = tuple(images.shape[1:3])
    eager = Deployed(job.model, size, precision)
    graph = Deployed(job.model, size, precision, head)
    contiguous = Deployed(job.model, size, precision, head, torch.contiguous_format)
    ways = prepare(job, "eager channels_last", "torch", precision, lambda: functools.partial(eager, images))
    ways += prepare(job, "CUDA graph", "torch-graph", precision, lambda: capture(graph, images))
    ways += prepare(job, "CUDA graph, NCHW", "torch-graph", precision, lambda: capture(contiguous, images))
    for mode in modes if job.compiled else ():
        for name, inner in HEADS.items():

            def make(mode: str = mode, inner: Callable = inner) -> Callable[[], Tensor]:
                whole = compile_(Deployed(job.model, size, precision, inner), mode)
                return capture(whole, images) if mode == "default" else functools.partial(whole, images)

            ways += prepare(job, f"compiled, {mode}, {name}", "torch-compile", precision, make)
    return ways


def network_rows(job: Job, images: Tensor, precision: str) -> list[dict]:
    """Times the network alone, to its logits at 1/8: what the label head does not cost."""
    batch, *size, _ = images.shape
    mean, std = (torch.tensor(values, device=job.device).view(3, 1, 1) for values in (MEAN, STD))

    def baseline() -> Tensor:
        return job.model.logits((images.permute(0, 3, 1, 2).contiguous().float() / 255 - mean) / std)[0]

    network = Deployed(job.model, size, precision)
    ways = prepare(job, "network, CUDA graph", "torch-graph", precision, lambda: capture(network.logits, images))
    if job.compiled:
        whole = compile_(network.logits)
        ways += prepare(
            job, "network, compiled, CUDA graph", "torch-compile", precision, lambda: capture(whole, images)
        )
    return measure(job, "network", size, batch, Way("baseline: network, eager NCHW", "torch", "fp32", baseline), ways)


def throughput_rows(
    job: Job,
    picture: np.ndarray | None,
    size: tuple[int, int],
    precision: str,
    head: Callable,
    batches: Sequence[int],
) -> list[dict]:
    """Times batches, queued behind each other, until one does not fit; the fastest batch is then compiled too."""

    def row(batch: int, name: str, backend: str, network: Callable) -> list[dict]:
        images = resized(picture, size, batch, job.device)
        ways = prepare(job, f"{name}, batch {batch}", backend, precision, lambda: capture(network, images))
        try:
            return ways and measure(job, "picture-to-labels", size, batch, baseline_way(job, images), ways, BURST)
        except torch.cuda.OutOfMemoryError:
            job.say(f"batch {batch}: not run (the baseline does not fit into the GPU's memory)")
            return []

    rows: list[dict] = []
    network = Deployed(job.model, size, precision, head)
    for batch in batches:
        measured = row(batch, "CUDA graph, queued", "torch-graph", network)
        if not measured:
            break
        rows += measured
    if rows and job.compiled:
        best = max(rows, key=lambda row: row["images_per_s"])["batch"]
        whole = compile_(Deployed(job.model, size, precision, running_highest))
        rows += row(best, "compiled, CUDA graph, queued", "torch-compile", whole)[1:]
    return rows


def print_rows(title: str, rows: Sequence[dict]) -> None:
    """Prints rows of one group."""
    lines = [
        (
            f"{row['name']}, {row['precision']}", f"{row['median_ms']:.3f}",
            f"{row['low_ms']:.3f} - {row['high_ms']:.3f}", f"{row['baseline_median_ms']:.3f}", f"{row['ratio']:.2f}",
            f"{row['images_per_s']:.1f}", "-" if row["equal"] is None else f"{100 * row['equal']:.3f} %",
        )
        for row in rows
    ]  # fmt: skip
    header = (title, "ms", "spread", "baseline ms", "times faster", "images/s", "equal labels")
    print("\n" + table(header, lines, False), flush=True)


@torch.no_grad()
def gpu_rows(
    model: FastSCNN,
    picture: np.ndarray | None,
    repeats: int,
    quick: bool = False,
    *,
    device: str = "cuda",
    sizes: Sequence[tuple[int, int]] = SIZES,
    batches: Sequence[int] = BATCHES,
    precisions: Sequence[str] = ("fp16", "bf16"),
    compiled: bool = True,
    keep: Callable[[list[dict]], None] = lambda rows: None,
) -> list[dict]:
    """Measures and prints everything, the largest picture first.

    Args:
        model: the network; its input_scale is left out.
        picture: (H, W, 3) uint8 RGB, resized to every size; None for blobs of color.
        repeats: of each side.
        quick: the first size and precision only, nothing that takes minutes to prepare.
        device: where; on a CPU nothing is captured or timed by events.
        sizes: (height, width) of the pictures.
        batches: to find the highest throughput with, at the first size.
        precisions: of the network; everything is run in the first, the first size in all.
        compiled: use torch.compile too.
        keep: called with all rows so far after each group, so that nothing is lost if the machine is taken away.
    """
    torch.backends.cudnn.benchmark = True  # for both sides
    place = torch.device(device)
    rows: list[dict] = []
    job = Job(FastSCNN(model.classifier.conv.out_channels, align_corners=model.align_corners), place, repeats, compiled,
              lambda line: print(line, flush=True))  # fmt: skip
    job.model.load_state_dict({k: v for k, v in model.state_dict().items() if not k.startswith("aux_")})
    job.model.eval().requires_grad_(False).to(place)

    def add(title: str, more: list[dict]) -> None:
        rows.extend(more)
        keep(rows)
        print_rows(title, more)

    frame = resized(picture, sizes[0], 1, place)
    heads = head_rows(job, frame)
    add("label head", heads)
    head = fastest_head(heads)
    add("network, to the logits at 1/8", network_rows(job, frame, precisions[0]))
    for size in sizes[:1] if quick else sizes:
        images = resized(picture, size, 1, place)
        for precision in precisions if size == sizes[0] and not quick else precisions[:1]:
            ways = picture_ways(job, images, precision, head)
            add("picture to labels", measure(job, "picture-to-labels", size, 1, baseline_way(job, images), ways))
    add("throughput", throughput_rows(job, picture, sizes[0], precisions[0], head, batches[:4] if quick else batches))
    if compiled and not quick:
        ways = picture_ways(job, frame, precisions[0], head, ("reduce-overhead", "max-autotune"))
        add("picture to labels", measure(job, "picture-to-labels", sizes[0], 1, baseline_way(job, frame), ways))
    for name, rate in REPORTED:
        print(f"reported, other hardware: {rate:g} frames/s ({name})")
    return rows


def read_network(path: str | Path | None) -> FastSCNN:
    """Loads what train.py wrote, without the packages that deploy.py needs; without a path, random weights.

    Raises:
        UserError: the file is missing, damaged or of another network.
    """
    torch.manual_seed(0)
    if path is None:
        print("no weights: the network is random, which the speed does not depend on")
        return FastSCNN().eval()
    checkpoint = load_checkpoint(path)
    state = checkpoint.get("model", checkpoint)
    metadata = checkpoint.get("metadata", {})
    model = FastSCNN(align_corners=bool(metadata.get("align_corners", False)))
    try:
        model.load_state_dict({name: tensor for name, tensor in state.items() if not name.startswith("aux_")})
    except (RuntimeError, AttributeError) as error:
        raise UserError(
            f"{path} belongs to another network ({first_line(error)}); expected weights of train.py"
        ) from None
    return model.eval()


def parse_args() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description="Measure predictions on a CUDA GPU.", formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--model_weight", help="weights that train.py wrote (default: weights/camvid.pth)")
    parser.add_argument("--repeats", type=int, default=50, help="repetitions of each side")
    parser.add_argument("--json", metavar="FILE", help="write the rows here, anew after each group")
    parser.add_argument("--quick", action=argparse.BooleanOptionalAction, default=False,
                        help="1024x2048 in fp16 only, nothing that takes minutes to prepare")  # fmt: skip
    args = parser.parse_args()
    if args.repeats < 3:
        raise UserError(f"--repeats is {args.repeats}, expected at least 3 for a median")
    return args


def main() -> int:
    """Prints the rows."""
    args = parse_args()
    if not torch.cuda.is_available():
        raise UserError("no CUDA device: nothing was measured; benchmark.py measures the processor")
    model = read_network(args.model_weight or (WEIGHTS if WEIGHTS.is_file() else None))
    print(
        f"{torch.cuda.get_device_name()}, torch {torch.__version__}, CUDA {torch.version.cuda}, "
        f"cuDNN {torch.backends.cudnn.version()}; {machine()}"
    )
    print(f"{args.repeats} repetitions of each side, alternately; medians, smallest and largest", flush=True)

    def keep(rows: list[dict]) -> None:
        if args.json:
            write_file(args.json, json.dumps(rows, indent=2).encode())

    gpu_rows(model, None, args.repeats, args.quick, keep=keep)
    return 0


if __name__ == "__main__":
    run_cli(main)
