"""From a checkpoint file to the fastest predictor: loading and checking, one `Predictor` for every engine, export.

python deploy.py --model_weight weights/camvid.pth --format openvino --precision bf16
"""

from __future__ import annotations

import argparse
import hashlib
from pathlib import Path

import cv2
import numpy as np

from dataset import DataError, read_image
from inference.backends import Network, check_precision, export_metadata
from inference.checkpoints import load_model
from inference.export import AGREEMENT, FORMATS, agreement, export
from inference.predictor import check_size, load_predictor  # noqa: F401  load_predictor: the documented import
from street.scene import draw_scene
from utils import UserError, run_cli, writable_folder


def read_pictures(folder: str | None, count: int = 32) -> list[np.ndarray]:
    """Reads pictures to calibrate and to check with: spread over a folder, or drawn ones where none is named.

    Raises:
        UserError: there is none.
    """
    if folder is None:
        return [draw_scene(seed, 512, 1024)[0] for seed in range(4)]
    found = sorted(path for path in Path(folder).rglob("*") if path.suffix.lower() in (".png", ".jpg", ".jpeg"))
    if not found:
        raise UserError(f"--pictures: no .png or .jpg in {folder}; name a folder of street pictures")
    return [read_image(path) for path in found[:: max(1, len(found) // count)][:count]]


def parse_args() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description="Export a checkpoint, and check what was written.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--model_weight", default="1024_2048_model.pth", help="weights that train.py wrote")
    parser.add_argument("--format", default="onnx", choices=FORMATS, help="what to write")
    parser.add_argument("--height", type=int, default=1024, help="picture height")
    parser.add_argument("--width", type=int, default=2048, help="picture width")
    parser.add_argument("--dynamic", action=argparse.BooleanOptionalAction, default=False, help="for any size")
    parser.add_argument("--precision", default="fp32", help="fp32, bf16, fp16 or int8, where the format has it")
    parser.add_argument("--pictures", metavar="FOLDER", help="to calibrate int8 and to check with; else drawn ones")
    parser.add_argument("--output", help="file to write (default: beside the weights)")
    args = parser.parse_args()
    check_size((args.height, args.width), "--height, --width")
    check_precision(args.format, args.precision)
    if args.precision == "int8" and not args.pictures:
        raise UserError("int8 has to be calibrated: name a folder of street pictures with --pictures")
    ending = FORMATS[args.format]
    if args.output and Path(args.output).suffix != ending:
        raise UserError(f"--output is {args.output}, expected a name that ends with {ending} for {args.format}")
    return args


def main() -> int:
    """Exports a checkpoint; what does not agree with PyTorch is not kept."""
    args = parse_args()
    model, _ = load_model(args.model_weight)
    pictures = read_pictures(args.pictures)
    output = Path(args.output) if args.output else Path(args.model_weight).with_suffix(FORMATS[args.format])
    writable_folder(output.absolute().parent)
    source = hashlib.sha256(Path(args.model_weight).read_bytes()).hexdigest()
    size = None if args.dynamic else (args.height, args.width)
    # Of a dynamic file, two sizes are not the one it was traced at.
    sizes = [(256, 512), (360, 480), (333, 417)] if args.dynamic else [size]

    def scaled(height: int, width: int) -> list[np.ndarray]:
        return [cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA) for picture in pictures]

    def check(network: Network) -> None:
        least = AGREEMENT[args.precision]
        for height, width in sizes:
            share = agreement(model, network, scaled(height, width))
            print(
                f"{height}x{width}: {100 * share:.3f} % of the pixels have PyTorch's label (at least {100 * least:g} %)"
            )
            if share < least:
                raise UserError(
                    f"{network.name} agrees with PyTorch on {100 * share:.2f} % of the pixels, expected at least "
                    f"{100 * least:g} %: nothing was written; take another precision"
                )

    export(model, export_metadata(model, source, args.precision, size), output, args.format, pictures, check)
    files = [output, output.with_suffix(".bin")] if args.format == "openvino" else [output]
    print(f"{', '.join(map(str, files))}: {args.precision}, {'any size' if args.dynamic else f'{size[0]}x{size[1]}'}")
    return 0


if __name__ == "__main__":
    run_cli(main, DataError)
