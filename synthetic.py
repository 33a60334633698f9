"""A small street-scene data set in the layout of Cityscapes, drawn from a seed: for a first run and for tests.

    python synthetic.py --output data/synthetic --height 256 --width 512

This file chooses what stands where and writes the files; street/things.py knows what things look like.
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

from street.scene import draw_scene
from utils import UserError, run_cli, writable_folder, write_file

CITIES = {"train": "synthville", "val": "samplestadt", "test": "testdorf"}
# fmt: off
LABEL_PICTURES = {"labelIds": (createLabelImage, "ids"), "instanceIds": (createInstanceImage, "ids"),
                  "color": (createLabelImage, "color"), "labelTrainIds": (createLabelImage, "trainIds")}
OPTIONS = {  # default, least, greatest, meaning
    "height": (256, 32, 1024, "height of the pictures, in pixels"),
    "width": (512, 64, 2048, "width of the pictures, in pixels"),
    "train": (200, 0, 999_999, "pictures of the train split"), "val": (40, 0, 999_999, "pictures of the val split"),
    "test": (10, 0, 999_999, "pictures of the test split"), "seed": (0, 0, 2**31, "same seed, same bytes"),
}
# fmt: on


def scene_files(folder: Path, split: str, number: int) -> list[Path]:
    """Returns where the picture, the polygons and the label pictures of one scene go."""
    stem, place = f"{CITIES[split]}_{number:06d}_000019", Path(split, CITIES[split])
    names = ("polygons.json", *(f"{name}.png" for name in LABEL_PICTURES))
    labels = [folder / "gtFine" / place / f"{stem}_gtFine_{name}" for name in names]
    return [folder / "leftImg8bit" / place / f"{stem}_leftImg8bit.png", *labels]


def write_scene(paths: list[Path], image: np.ndarray, objects: list[dict]) -> None:
    """Writes one scene; the label pictures come from its polygons by Cityscapes' own converters."""
    height, width, annotation = *image.shape[:2], Annotation()
    polygons = json.dumps({"imgHeight": height, "imgWidth": width, "objects": objects})
    annotation.fromJsonText(polygons)
    fast = (cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_HUFFMAN_ONLY)
    png = cv2.imencode(".png", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), fast)[1]
    contents = [png.tobytes(), polygons.encode()]
    for convert, encoding in LABEL_PICTURES.values():
        buffer = io.BytesIO()
        picture = convert(annotation, encoding)
        # Pillow writes no 32-bit PNG; the official file is a 16-bit one, and the largest instance id is below 2**16.
        (picture.convert("I;16") if picture.mode == "I" else picture).save(buffer, "png", compress_level=2)
        contents.append(buffer.getvalue())
    for path, content in zip(paths, contents, strict=True):
        write_file(path, content)


def write_dataset(output: str | Path, height: int, width: int, train: int, val: int, test: int, seed: int) -> None:
    """Writes a data set. A scene depends on seed, split, index and size alone, so more scenes leave the first alike.

    Raises:
        UserError: a number is out of range, or the folder cannot be written to or holds files of another data set.
    """
    output, counts = Path(output), {"train": train, "val": val, "test": test}
    for name, value in {"height": height, "width": width, **counts, "seed": seed}.items():
        _, low, high, meaning = OPTIONS[name]
        if not low <= value <= high:
            raise UserError(f"--{name} is {value}, expected {low} to {high} ({meaning})")
    if not any(counts.values()):
        raise UserError("--train, --val and --test are all 0, expected at least one picture")
    paths = {(split, n): scene_files(output, split, n) for split, count in counts.items() for n in range(count)}
    ours = {path for files in paths.values() for path in files}
    for path in (path for tree in ("leftImg8bit", "gtFine") for path in (output / tree).rglob("*")):
        if path.is_file() and path not in ours:
            raise UserError(f"{output} holds another data set ({path.name}); choose an empty folder by --output")
    for folder in sorted({path.parent for path in ours}):
        writable_folder(folder)
    for (split, number), files in tqdm(paths.items(), disable=None, unit="scene"):
        write_scene(files, *draw_scene((seed, list(CITIES).index(split), number), height, width))


def parse_args() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description="Draw street scenes in Cityscapes layout.", formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--output", default="data/synthetic", help="folder of the data set, empty or missing")
    for name, (default, low, high, meaning) in OPTIONS.items():
        parser.add_argument(f"--{name}", type=int, default=default, help=f"{meaning}, {low} to {high}")
    return parser.parse_args()


def main() -> int:
    """Writes the data set and says where."""
    args = parse_args()
    write_dataset(**vars(args))
    counts = f"{args.train} train, {args.val} val and {args.test} test pictures"
    print(f"wrote {counts} of {args.height}x{args.width} to {args.output}")
    return 0


if __name__ == "__main__":
    run_cli(main)
