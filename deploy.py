"""Export of a checkpoint for deployment: ONNX, OpenVINO or safetensors files, or a web page; checked before it is kept.

python deploy.py --model_weight weights/street.pth --format openvino --precision bf16
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import math
import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np

from frames.folders import find_pictures
from frames.images import read_image
from inference.checkpoints import load_model
from inference.engine import FORMATS, Engine, check_precision, export_metadata
from inference.export import AGREEMENT, agreement, exported_aside, exported_files, safetensors_aside
from inference.predictor import add_side_flag, check_side, check_size
from model import FastSCNN
from street.scene import draw_scene
from utils import UserError, refuse_input, run_cli, writable_folder
from web.folder import FolderAside
from web.site import CDN, RUNTIME_PACKAGE, find_runtime, open_site, site_aside

SAFETENSORS, WEB = "safetensors", "web"
ENDINGS = {**FORMATS, SAFETENSORS: ".safetensors", WEB: "_site"}
# A file for any size is checked at these: two of them are not the size that it was traced at.
DYNAMIC_SIZES = ((256, 512), (360, 480), (333, 417))


def read_pictures(found: Sequence[Path], count: int = 32) -> list[np.ndarray]:
    """Returns (H, W, 3) uint8 RGB images for calibration and checks.

    Args:
        found: up to `count` of these files, spread evenly over all, are read; without any, a few scenes are drawn.
        count: see found.
    """
    if not found:
        return [draw_scene(seed, 512, 1024)[0] for seed in range(4)]
    return [read_image(path) for path in found[:: -(-len(found) // count)]]


def check_output(output: Path, inputs: Sequence[Path]) -> None:
    """Refuses to write an export over a folder, or over one of the files that it is made from.

    Raises:
        UserError: names the file.
    """
    writable_folder(output.absolute().parent)
    for file in exported_files(output):
        try:
            mode = os.stat(file).st_mode
        except FileNotFoundError:
            continue
        except OSError as error:
            raise UserError(f"--output {file} cannot be written ({error.strerror}): choose another name") from None
        if stat.S_ISDIR(mode):
            raise UserError(f"--output {file} is a folder, expected the name of a file")
        refuse_input(file, "--output", inputs)


def check_agreement(
    model: FastSCNN, engine: Engine, images: Sequence[np.ndarray], least: float, sizes: Sequence[tuple[int, int]]
) -> float:
    """Prints the share of pixels with PyTorch's label, at each (height, width) that the images are resized to.

    Returns:
        The lowest share.

    Raises:
        UserError: it is below `least`.
    """
    shares = []
    for height, width in sizes:
        resized = [cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA) for image in images]
        share = agreement(model, engine, resized)
        print(f"{height}x{width}: {100 * share:.3f} % of the pixels have PyTorch's label (at least {100 * least:g} %)")
        if share < least:
            raise UserError(
                f"{engine.name} agrees with PyTorch on {100 * share:.2f} % of the pixels, expected at least "
                f"{100 * least:g} %: nothing was written; take another precision, name more and better --pictures, or "
                f"accept it with --least_agreement {math.floor(100 * share) / 100:g}"
            )
        shares.append(share)
    return min(shares)


@contextlib.contextmanager
def web_aside(
    model: FastSCNN, metadata: dict, site: FolderAside, weights: str, runtime: Path | None, images: Sequence[np.ndarray]
) -> Iterator[Engine]:
    """Writes a site with the ONNX file in it; see site_aside, and exported_aside for the rest."""
    with (
        site_aside(site, weights, metadata, runtime) as path,
        exported_aside(model, metadata, path, "onnx", images) as engine,
    ):
        yield engine


def weights_metadata(loaded: dict) -> dict:
    """Returns what a weight file says about itself, from load_model, in values that JSON has."""
    plain = {key: value for key, value in loaded.items() if isinstance(value, (str, int, float)) or key == "variant"}
    return {**plain, "classes": loaded["classes"].as_dict()}


def build_parser() -> argparse.ArgumentParser:
    """Returns the parser of the command line."""
    parser = argparse.ArgumentParser(
        description="Export a checkpoint to ONNX, OpenVINO, safetensors or a web page, and check the result against "
        "PyTorch.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--model_weight", default="1024_2048_model.pth", help="weights that train.py wrote")
    parser.add_argument("--format", default="onnx", choices=ENDINGS, help="format to write")
    parser.add_argument("--height", type=int, default=1024, help="image height")
    parser.add_argument("--width", type=int, default=2048, help="image width")
    parser.add_argument("--dynamic", action=argparse.BooleanOptionalAction, default=False, help="accept any image size")
    parser.add_argument("--precision", default="fp32", help="fp32, bf16, fp16 or int8, where the format has it")
    add_side_flag(parser)
    parser.add_argument(
        "--pictures", metavar="FOLDER", help="images to calibrate int8 and to check with; drawn scenes if not given"
    )
    parser.add_argument(
        "--least_agreement",
        type=float,
        metavar="SHARE",
        help="keep the file if this share of the labels is PyTorch's, 0 to 1; by precision if not given",
    )
    parser.add_argument("--output", help="file to write, for web a folder; next to the weights if not given")
    parser.add_argument(
        "--runtime",
        metavar="FOLDER",
        help=f"for web: the unpacked npm package {RUNTIME_PACKAGE}, to be copied; from a CDN if not given",
    )
    return parser


def parse_args() -> argparse.Namespace:
    """Reads and checks the command line."""
    args = build_parser().parse_args()
    check_size((args.height, args.width), "--height, --width")
    check_side(args.input_side)
    if args.format in FORMATS:
        check_precision(args.format, args.precision)
    elif args.precision != "fp32":
        reason = "safetensors are written as they are loaded" if args.format == SAFETENSORS else "the page runs fp32"
        raise UserError(f"--precision is {args.precision}, but {reason}: use fp32")
    if args.runtime and args.format != WEB:
        raise UserError(f"--runtime was given, which --format {args.format} has no use for; leave it out")
    if args.precision == "int8" and not args.pictures:
        raise UserError("int8 has to be calibrated: name a folder of street pictures with --pictures")
    if args.least_agreement is not None and not 0 <= args.least_agreement <= 1:
        raise UserError(f"--least_agreement is {args.least_agreement:g}, expected a share from 0 to 1, such as 0.98")
    ending = ENDINGS[args.format]
    if args.output and args.format != WEB and Path(args.output).suffix.lower() != ending:
        raise UserError(f"--output is {args.output}, expected a name that ends with {ending} for {args.format}")
    return args


def main() -> int:
    """Exports a checkpoint; a file that does not agree with PyTorch is not kept."""
    args = parse_args()
    model, loaded = load_model(args.model_weight, args.input_side)
    found, left_out = find_pictures(args.pictures) if args.pictures else ([], "")
    if args.pictures and not found:
        raise UserError(f"--pictures: no picture that OpenCV decodes in {args.pictures}; name a folder of pictures")
    if left_out:
        print(left_out)
    weights = Path(args.model_weight)
    output = Path(args.output) if args.output else weights.with_name(weights.stem + ENDINGS[args.format])
    runtime = find_runtime(args.runtime) if args.runtime else None
    site = open_site(output) if args.format == WEB else None
    if not site:
        check_output(output, [weights, *found])
    images = read_pictures(found)
    source = hashlib.sha256(weights.read_bytes()).hexdigest()
    size = None if args.dynamic or args.format in (SAFETENSORS, WEB) else (args.height, args.width)
    least = AGREEMENT[args.precision] if args.least_agreement is None else args.least_agreement
    if args.format == SAFETENSORS:
        metadata = {**weights_metadata(loaded), "source_sha256": source}
        aside = safetensors_aside(model, metadata, output)
    else:
        metadata = export_metadata(model, source, args.precision, size, loaded["classes"])
        if site:
            aside = web_aside(model, metadata, site, weights.name, runtime, images)
        else:
            aside = exported_aside(model, metadata, output, args.format, images)
    with aside as engine:
        share = check_agreement(model, engine, images, least, [size] if size else DYNAMIC_SIZES)
        metadata |= {"agreement": share, "least_agreement": least}
    if site:
        place = "the folder itself" if runtime else CDN
        print(f"{output}: any size; {RUNTIME_PACKAGE} comes from {place}; look at it by python {output / 'serve.py'}")
        return 0
    accepted = f"{args.height}x{args.width}" if size else "any size"
    print(f"{', '.join(map(str, exported_files(output)))}: {args.precision}, {accepted}")
    return 0


if __name__ == "__main__":
    run_cli(main)
