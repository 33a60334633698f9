"""What can be looked at: a picture, a folder or pattern of pictures, a video file, a camera."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from dataset import IMAGE_SUFFIX, DataError, Sample, read_image, read_label
from inference.predictor import check_size
from utils import UserError
from viewing.video import Frame, Problem, frame_count, frame_rate, open_capture, read_frames

PICTURES = (".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
VIDEOS = (".avi", ".gif", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm", ".wmv")
RESULT = "_result.png"  # what our own pictures end with: they are no input


class Source(NamedTuple):
    """Frames to come. Of `samples`, pictures have one each, a video has one without label, a camera none."""

    kind: str  # "picture", "pictures", "video" or "camera"
    name: str  # of the result
    samples: list[Sample]
    capture: cv2.VideoCapture | None = None
    camera: int | None = None

    @property
    def count(self) -> int | None:
        """The frames to be expected, None where nobody knows."""
        return len(self.samples) if self.capture is None else frame_count(self.capture)

    @property
    def fps(self) -> float | None:
        """The frames/s that a video or camera claims."""
        return None if self.capture is None else frame_rate(self.capture)

    def frames(self, labels: bool = True) -> Iterator[Frame | Problem]:
        """Reads the frames; with `labels`, the ground truth too where there is one."""
        if self.capture is None:
            return (_read(sample, labels) for sample in self.samples)
        path = self.camera if self.camera is not None else self.samples[0].image
        return _sized(read_frames(self.capture, path), f"camera {path}" if self.camera is not None else path)


def open_source(data_path: str, input_pic: str) -> Source:
    """Finds out what a name stands for, first below <data_path>/leftImg8bit, then anywhere.

    Raises:
        UserError: it stands for nothing, or for nothing that can be looked at.
    """
    if not input_pic:
        raise UserError("--input_pic is empty, expected a picture, a folder, a pattern, a video or a camera's number")
    root = Path(data_path) / "leftImg8bit"
    candidates = (root / input_pic, Path(input_pic))
    found = next((candidate for candidate in candidates if candidate.exists()), None)
    if found is None:
        if input_pic.isascii() and input_pic.isdigit():
            index = int(input_pic)
            return Source("camera", f"camera_{index}", [], open_capture(index), index)
        if glob.has_magic(input_pic):
            patterns = (str(Path(glob.escape(str(root))) / input_pic), input_pic)
            matches = next(filter(None, (glob.glob(pattern, recursive=True) for pattern in patterns)), [])
            return _pictures(input_pic, map(Path, matches))
        raise UserError(f"--input_pic: no picture at {candidates[0]} nor at {candidates[1]}")
    if found.is_dir():
        return _pictures(input_pic, found.rglob("*"))
    if found.suffix.lower() in VIDEOS:
        return Source("video", found.stem, [Sample(found.stem, found, None)], open_capture(found))
    sample = find_sample(found)
    return Source("picture", sample.name, [sample])


def _pictures(input_pic: str, paths: Iterable[Path]) -> Source:
    """Returns the pictures among some paths, in the order in which a person counts, each under a name of its own."""
    files = [path.absolute() for path in paths if path.is_file() and not path.name.startswith(".")]
    chosen = [path for path in files if path.suffix.lower() in PICTURES and not path.name.endswith(RESULT)]
    if not chosen:
        videos = sum(path.suffix.lower() in VIDEOS for path in files)
        raise UserError(
            f"--input_pic {input_pic}: {len(files)} files, none of them a picture ({' '.join(PICTURES)})"
            + (f"; {videos} may be videos: name one at a time" if videos else "")
        )
    chosen.sort(key=lambda path: [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", str(path))])
    return Source("pictures", "viewer_results", name_apart([find_sample(path) for path in chosen]))


def name_apart(samples: list[Sample]) -> list[Sample]:
    """Names each sample by its folder and file, below the folder that all have in common.

    The endings are left out, unless two would then have the same name: `a.png` and `a.jpg`.
    """
    base = os.path.commonpath([sample.image.parent for sample in samples])
    folders = [sample.image.parent.relative_to(base) for sample in samples]
    names = [(folder / sample.name).as_posix() for folder, sample in zip(folders, samples, strict=True)]
    if len({name.casefold() for name in names}) < len(names):
        names = [sample.image.relative_to(base).as_posix() for sample in samples]
    return [sample._replace(name=name) for name, sample in zip(names, samples, strict=True)]


def find_sample(path: Path) -> Sample:
    """Returns a picture, with its label if it lies in the train or val split of a data set in Cityscapes layout."""
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


def read_picture(path: Path) -> tuple[np.ndarray, str]:
    """Reads a picture and says what it was if it was not RGB.

    A grey picture and one with an alpha channel are converted; more than 8 bits are refused, as only who made the
    picture knows the range of its values: divided by 256, 12 of 16 bits are black.

    Returns:
        (H, W, 3) uint8 RGB; what was converted, else an empty string.

    Raises:
        DataError: the file is missing, truncated, no picture, or not of 8 bits.
    """
    try:
        image = read_image(path, cv2.IMREAD_ANYCOLOR | cv2.IMREAD_ANYDEPTH)
    except cv2.error as error:
        raise DataError(f"the picture {path} cannot be decoded ({error.err or error.code})") from None
    if image.dtype != np.uint8:
        raise DataError(
            f"the picture {path} has {8 * image.itemsize} bits a channel, expected 8: scale its values and save it anew"
        )
    if image.ndim == 2:
        return cv2.cvtColor(image, cv2.COLOR_GRAY2RGB), "grey, converted to RGB"
    alpha = "with an alpha channel, which was left out" if _has_alpha(path) else ""
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB), alpha


def _has_alpha(path: Path) -> bool:
    data = np.fromfile(path, np.uint8, 26)
    if data[:4].tobytes() == b"\x89PNG":
        return bool(data[25] & 4)  # the color type
    if data[:2].tobytes() == b"\xff\xd8":  # JPEG
        return False
    unchanged = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_UNCHANGED)
    return unchanged.ndim == 3 and unchanged.shape[2] == 4


def _read(sample: Sample, labels: bool) -> Frame | Problem:
    try:
        image, note = read_picture(sample.image)
        check_size(image.shape[:2], sample.image)
        label = read_label(sample.label, sample.label_is_train_ids) if labels and sample.label else None
        if label is not None and label.shape != image.shape[:2]:
            raise DataError(
                f"{sample.image} is {image.shape[0]}x{image.shape[1]}, its label {sample.label} "
                f"{label.shape[0]}x{label.shape[1]}; expected equal sizes"
            )
    except (DataError, UserError) as error:
        return Problem(str(error))
    return Frame(sample.name, image, label, note)


def _sized(frames: Iterator[Frame | Problem], title: object) -> Iterator[Frame | Problem]:
    for frame in frames:
        if isinstance(frame, Frame):
            check_size(frame.image.shape[:2], f"a frame of {title}")
        yield frame
