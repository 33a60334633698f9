"""Draws a picture beside its ground truth and the prediction, in the Cityscapes colours.

python viewer.py --model_weight 1024_2048_model.pth --input_pic any.jpg
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import cv2
import numpy as np

from dataset import (
    CLASSES,
    IMAGE_SUFFIX,
    NUM_CLASSES,
    PALETTE,
    DataError,
    Sample,
    default_data_path,
    read_image,
    read_pair,
    train_ids_note,
)
from deploy import Predictor, check_size, load_model
from evaluate import encode_png
from utils import UserError, choose_device, run_cli, writable_folder, write_file

LEGEND_ROW = 22  # pixels
OPACITY = 0.55  # of the colours over the picture


def parse_args() -> argparse.Namespace:
    """Reads the command line; the first three flags are the original's."""
    parser = argparse.ArgumentParser(
        description="Segment a picture and draw the result.", formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--data_path", default=default_data_path(), help="data set in Cityscapes layout")
    parser.add_argument("--model_weight", default="1024_2048_model.pth", help="weights that train.py wrote")
    parser.add_argument(
        "--input_pic",
        default="test/berlin/berlin_000000_000019_leftImg8bit.png",
        help="a picture, relative to <data_path>/leftImg8bit or anywhere",
    )
    parser.add_argument("--output", help="file to write (default: <name>_result.png in the working directory)")
    parser.add_argument(
        "--overlay",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="blend the prediction into the picture instead of drawing them side by side",
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps")
    return parser.parse_args()


def find_picture(data_path: str, input_pic: str) -> Sample:
    """Finds the picture, and its label if it lies in the train or val split of a data set in Cityscapes layout.

    Raises:
        UserError: there is no such file.
    """
    candidates = (Path(data_path) / "leftImg8bit" / input_pic, Path(input_pic))
    path = next((candidate for candidate in candidates if candidate.is_file()), None)
    if path is None:
        raise UserError(f"--input_pic: no picture at {candidates[0]} nor at {candidates[1]}")
    name = path.name.removesuffix(IMAGE_SUFFIX)
    if name == path.name:
        return Sample(path.stem, path, None)
    city, split = path.absolute().parent, path.absolute().parent.parent
    labels = split.parent.parent / "gtFine" / split.name / city.name
    if split.name != "test" and split.parent.name == "leftImg8bit":
        for suffix, is_train_ids in (("labelIds", False), ("labelTrainIds", True)):
            label = labels / f"{name}_gtFine_{suffix}.png"
            if label.is_file():
                return Sample(name, path, label, is_train_ids)
    return Sample(name, path, None)


def draw_result(image: np.ndarray, label: np.ndarray | None, prediction: np.ndarray, overlay: bool) -> np.ndarray:
    """Returns the RGB picture to look at, with a legend of the classes that occur below it.

    Args:
        image: (H, W, 3) uint8 RGB.
        label: (H, W) train ids, or None where there is no ground truth.
        prediction: (H, W) train ids.
        overlay: blend the prediction into the picture; else picture | ground truth | prediction.
    """
    if overlay:
        panels = [blend(image, prediction)]
    else:
        panels = [image, *([PALETTE[label]] if label is not None else []), PALETTE[prediction]]
    picture = np.hstack(panels)
    maps = [prediction] if label is None or overlay else [prediction, label]
    present = np.unique(np.concatenate([np.unique(part) for part in maps]))
    return np.vstack([picture, draw_legend([int(i) for i in present if i < NUM_CLASSES], picture.shape[1])])


def blend(image: np.ndarray, prediction: np.ndarray) -> np.ndarray:
    """Returns the picture with the class colours laid over it, all (H, W, 3) uint8 RGB."""
    return cv2.addWeighted(image, 1 - OPACITY, PALETTE[prediction], OPACITY, 0)


def draw_legend(train_ids: list[int], width: int) -> np.ndarray:
    """Returns a white strip, `width` pixels wide, with a patch of colour and the name of each class."""
    font, scale = cv2.FONT_HERSHEY_SIMPLEX, 0.45
    patch, gap = 16, 6
    places, x, row = [], gap, 0
    for train_id in train_ids:
        needed = patch + 2 * gap + cv2.getTextSize(CLASSES[train_id].name, font, scale, 1)[0][0] + gap
        if x + needed > width and x > gap:
            x, row = gap, row + 1
        places.append((train_id, x, row * LEGEND_ROW))
        x += needed
    strip = np.full(((row + 1) * LEGEND_ROW, width, 3), 255, np.uint8)
    for train_id, x, y in places:
        cv2.rectangle(strip, (x, y + 4), (x + patch, y + LEGEND_ROW - 4), CLASSES[train_id].color, cv2.FILLED)
        cv2.putText(
            strip, CLASSES[train_id].name, (x + patch + gap, y + LEGEND_ROW - 7), font, scale, (0, 0, 0), 1, cv2.LINE_AA
        )
    return strip


def output_path(sample: Sample, output: str | None) -> Path:
    """Returns where the result goes.

    Raises:
        UserError: the official evaluation would take the file for a prediction, or its folder cannot be written.
    """
    path = Path(output) if output else Path(f"{sample.name}_result.png")
    if path.suffix.lower() not in (".png", ".jpg", ".jpeg"):
        raise UserError(f"--output is {path}, expected a name that ends with .png or .jpg")
    folder = writable_folder(path.absolute().parent)
    results = os.environ.get("CITYSCAPES_RESULTS")
    if results and path.suffix == ".png" and folder.resolve().is_relative_to(Path(results).resolve()):
        raise UserError(
            f"{path} would lie in $CITYSCAPES_RESULTS, where the official evaluation takes it for a prediction; "
            "name a file elsewhere with --output"
        )
    return path


def main() -> int:
    """Segments one picture and saves what it drew."""
    args = parse_args()
    sample = find_picture(args.data_path, args.input_pic)
    path = output_path(sample, args.output)
    if sample.label is None:
        image, label = read_image(sample.image), None
    else:
        image, label = read_pair(sample)
    check_size(image.shape[:2], sample.image)
    model, _ = load_model(args.model_weight)
    prediction = Predictor(model, choose_device(args.device))(image)
    picture = cv2.cvtColor(draw_result(image, label, prediction, args.overlay), cv2.COLOR_RGB2BGR)
    if path.suffix.lower() == ".png":
        write_file(path, encode_png(picture))
    else:
        write_file(path, cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, 92])[1].tobytes())
    panels = (
        "overlay" if args.overlay else "input | prediction" if label is None else "input | ground truth | prediction"
    )
    note = train_ids_note([sample])
    print("\n".join([*([note] if note else []), f"{path}: {panels}"]))
    return 0


if __name__ == "__main__":
    run_cli(main, DataError)
