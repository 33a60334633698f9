"""The pictures of a frame in a report, and the labels in them by which the page names what is under the pointer."""

from __future__ import annotations

import zlib

import cv2
import numpy as np

from frames.classes import IGNORE_INDEX, Classes
from frames.images import color, shrink

LOSSY = 80  # quality of the input: 25 kB at 640x320
LOSSLESS = 101  # OpenCV's word for it
MOST_PIXELS = 16383  # a side of a WebP picture


def picture_size(size: tuple[int, int], width: int) -> tuple[int, int]:
    """Returns the (height, width) at which a frame is shown: at most `width` wide and four times that high."""
    scale = min(1, width / size[1], min(4 * width, MOST_PIXELS) / size[0])
    return max(1, round(scale * size[0])), max(1, round(scale * size[1]))


def draw_pictures(
    image: np.ndarray,
    truth: np.ndarray,
    prediction: np.ndarray,
    classes: Classes,
    groups: np.ndarray,
    shown: tuple[int, int],
) -> tuple[dict[str, bytes], bytes]:
    """Draws a frame as WebP files: its input lossy, labels in their exact colors.

    Labels are reduced by taking the nearest pixel, so that a pixel of `errors` is one of the frame's own. Of `truth`,
    pixels without a label are transparent; of `errors`, all that are not wrong. Those have the color of the prediction.

    Args:
        image: (H, W, 3) uint8 RGB.
        truth: (H, W) uint8 train ids.
        prediction: the same.
        classes: give the colors.
        groups: (256,) from a train id to a number that all classes share which count as the same.
        shown: (height, width) of the pictures.

    Returns:
        The files `input`, `truth`, `prediction` and `errors`; and see pack_labels.
    """
    small = shrink(image, shown[::-1])
    truth, prediction = (
        cv2.resize(part, shown[::-1], interpolation=cv2.INTER_NEAREST_EXACT) for part in (truth, prediction)
    )
    labelled = truth != IGNORE_INDEX
    wrong = labelled & (groups[truth] != groups[prediction])
    predicted = color(prediction, classes)
    pictures = {
        "input": _webp(small, LOSSY),
        "truth": _webp(_with_alpha(color(truth, classes), labelled), LOSSLESS),
        "prediction": _webp(predicted, LOSSLESS),
        "errors": _webp(_with_alpha(predicted, wrong), LOSSLESS),
    }
    return pictures, pack_labels(truth, prediction)


def pack_labels(truth: np.ndarray, prediction: np.ndarray) -> bytes:
    """Returns every second row and column of both, one after the other, compressed by zlib."""
    return zlib.compress(np.stack([truth[::2, ::2], prediction[::2, ::2]]).tobytes(), 9)


def unpacked_length(shown: tuple[int, int]) -> int:
    """Returns the bytes that pack_labels compresses for a (height, width)."""
    return 2 * ((shown[0] + 1) // 2) * ((shown[1] + 1) // 2)


def _with_alpha(rgb: np.ndarray, opaque: np.ndarray) -> np.ndarray:
    return np.dstack([np.where(opaque[..., None], rgb, np.uint8(0)), np.where(opaque, np.uint8(255), np.uint8(0))])


def _webp(image: np.ndarray, quality: int) -> bytes:
    code = cv2.COLOR_RGBA2BGRA if image.shape[2] == 4 else cv2.COLOR_RGB2BGR
    return cv2.imencode(".webp", cv2.cvtColor(image, code), [cv2.IMWRITE_WEBP_QUALITY, quality])[1].tobytes()
