"""Draws a small data set of street scenes in Cityscapes layout, for a first run and for tests.

    python synthetic.py --output data/synthetic --height 256 --width 512

This file writes the data set; street/ draws the scenes.
"""

from __future__ import annotations

import argparse
import io
import json
from pathlib import Path

import cv2
import numpy as np
from cityscapesscripts.helpers.annotation import Annotation
from cityscapesscripts.preparation.json2instanceImg import createInstanceImage
from cityscapesscripts.preparation.json2labelImg import createLabelImage
from tqdm import tqdm

from frames.folders import is_data
from street.scene import draw_scene
from utils import UserError, run_cli, writable_folder, write_file

CITIES = {"train": "synthville", "val": "samplestadt", "test": "testdorf"}
LABEL_IMAGES = {  # the converter and the encoding of each
    "labelIds": (createLabelImage, "ids"),
    "instanceIds": (createInstanceImage, "ids"),
    "color": (createLabelImage, "color"),
    "labelTrainIds": (createLabelImage, "trainIds"),
}
OPTIONS = {  # default, lowest, highest, meaning
    "height": (256, 32, 1024, "height of the images in pixels"),
    "width": (512, 64, 2048, "width of the images in pixels"),
    "train": (200, 0, 999_999, "images of the train split"),
    "val": (40, 0, 999_999, "images of the val split"),
    "test": (10, 0, 999_999, "images of the test split"),
    "seed": (0, 0, 2**31, "equal seeds give equal files"),
}


def scene_files(folder: Path, split: str, number: int) -> list[Path]:
    """Returns the paths of a scene's image, polygons and label images."""
    city = CITIES[split]
    stem = f"{city}_{number:06d}_000019"
    labels = folder / "gtFine" / split / city
    return [
        folder / "leftImg8bit" / split / city / f"{stem}_leftImg8bit.png",
        labels / f"{stem}_gtFine_polygons.json",
        *(labels / f"{stem}_gtFine_{name}.png" for name in LABEL_IMAGES),
    ]


def write_scene(paths: list[Path], image: np.ndarray, objects: list[dict]) -> None:
    """Writes one scene; Cityscapes' own converters draw the label images from its polygons."""
    height, width = image.shape[:2]
    polygons = json.dumps({"imgHeight": height, "imgWidth": width, "objects": objects})
    annotation = Annotation()
    annotation.fromJsonText(polygons)
    fast = (cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_HUFFMAN_ONLY)
    png = cv2.imencode(".png", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), fast)[1]
    contents = [png.tobytes(), polygons.encode()]
    for convert, encoding in LABEL_IMAGES.values():
        label = convert(annotation, encoding)
        if label.mode == "I":  # Pillow writes no 32-bit PNG; instance ids fit 16 bits, as in the official files
            label = label.convert("I;16")
        buffer = io.BytesIO()
        label.save(buffer, "png", compress_level=2)
        contents.append(buffer.getvalue())
    for path, content in zip(paths, contents, strict=True):
        write_file(path, content)


def write_dataset(output: str | Path, height: int, width: int, train: int, val: int, test: int, seed: int) -> None:
    """Writes a data set. A scene depends only on seed, split, index and size: a larger set begins with the same scenes.

    Raises:
        UserError: a number is out of range, or the folder cannot be written to or holds files of another data set.
    """
    output = Path(output)
    counts = {"train": train, "val": val, "test": test}
    for name, value in {"height": height, "width": width, **counts, "seed": seed}.items():
        _, low, high, meaning = OPTIONS[name]
        if not low <= value <= high:
            raise UserError(f"--{name} is {value}, expected {low} to {high} ({meaning})")
    if not any(counts.values()):
        raise UserError("--train, --val and --test are all 0, expected at least one picture")
    scenes = {(split, n): scene_files(output, split, n) for split, count in counts.items() for n in range(count)}
    ours = {path for files in scenes.values() for path in files}
    for tree in ("leftImg8bit", "gtFine"):
        for path in (output / tree).rglob("*"):
            if path.is_file() and is_data(path.name) and path not in ours:
                raise UserError(f"{output} holds another data set ({path.name}); choose an empty folder by --output")
    for folder in sorted({path.parent for path in ours}):
        writable_folder(folder)
    for (split, number), files in tqdm(scenes.items(), disable=None, unit="scene"):
        image, objects = draw_scene((seed, list(CITIES).index(split), number), height, width)
        write_scene(files, image, objects)


def build_parser() -> argparse.ArgumentParser:
    """Returns the parser; the numbers come from OPTIONS."""
    parser = argparse.ArgumentParser(
        description="Draw street scenes in Cityscapes layout.", formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--output", default="data/synthetic", help="folder of the data set, empty or missing")
    for name, (default, low, high, meaning) in OPTIONS.items():
        parser.add_argument(f"--{name}", type=int, default=default, help=f"{meaning}, {low} to {high}")
    return parser


def main() -> int:
    """Writes the data set and prints where it is."""
    args = build_parser().parse_args()
    write_dataset(**vars(args))
    counts = f"{args.train} train, {args.val} val and {args.test} test pictures"
    print(f"wrote {counts} of {args.height}x{args.width} to {args.output}")
    return 0


if __name__ == "__main__":
    run_cli(main)
