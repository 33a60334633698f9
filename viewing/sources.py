"""Inputs of the viewer: a picture, a folder or pattern of pictures, a video file, a camera."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from dataset import DataError, Sample, frame_name, read_image, read_label, same_size
from inference.predictor import check_size
from utils import UserError
from viewing.video import Frame, Problem, open_capture, read_frames

PICTURES = (".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
VIDEOS = (".avi", ".gif", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm", ".wmv")
WRITTEN_PICTURES = (".png", ".jpg", ".jpeg")  # what --output may end with
RESULT = "_result.png"  # ending of the viewer's own pictures, which are not input


class Source(NamedTuple):
    """The input that --input_pic names."""

    result: str  # where the result goes without --output
    samples: list[Sample]  # one for each picture, one without a label for a video file, none for a camera
    single: bool = False  # one picture, named by its file
    capture: cv2.VideoCapture | None = None
    camera: int | None = None

    @property
    def moving(self) -> bool:
        """Whether it is a video or a camera."""
        return self.capture is not None

    def frames(self, labels: bool = True) -> Iterator[Frame | Problem]:
        """Reads the frames; with `labels`, also the ground truth where there is one."""
        if self.moving:
            return read_frames(self.capture, self.samples[0].image if self.camera is None else self.camera)
        return (_read(sample, labels) for sample in self.samples)


def open_source(data_path: str, input_pic: str) -> Source:
    """Opens what --input_pic names, below <data_path>/leftImg8bit or anywhere; UserError if there is nothing to see."""
    if not input_pic:
        raise UserError("--input_pic is empty, expected a picture, a folder, a pattern, a video or a camera's number")
    root = Path(data_path) / "leftImg8bit"
    found = root / input_pic if (root / input_pic).exists() else Path(input_pic)
    if not found.exists():
        if input_pic.isascii() and input_pic.isdigit():
            camera = int(input_pic)
            return Source(f"camera_{camera}_result.webm", [], capture=open_capture(camera), camera=camera)
        if glob.has_magic(input_pic):
            below = glob.glob(str(Path(glob.escape(str(root))) / input_pic), recursive=True)
            return _pictures(input_pic, map(Path, below or glob.glob(input_pic, recursive=True)))
        raise UserError(f"--input_pic: no picture at {root / input_pic} nor at {found}")
    if found.is_dir():
        return _pictures(input_pic, found.rglob("*"))
    if found.suffix.lower() in VIDEOS:
        return Source(f"{found.stem}_result.webm", [Sample(found.stem, found, None)], capture=open_capture(found))
    sample = find_sample(found)
    return Source(sample.name + RESULT, [sample], single=True)


def _pictures(input_pic: str, paths: Iterable[Path]) -> Source:
    files = [path.absolute() for path in paths if path.is_file() and not path.name.startswith(".")]
    chosen = [path for path in files if path.suffix.lower() in PICTURES and not path.name.endswith(RESULT)]
    if not chosen:
        videos = sum(path.suffix.lower() in VIDEOS for path in files)
        hint = f"; {videos} may be videos: name one at a time" if videos else ""
        endings = " ".join(PICTURES)
        raise UserError(f"--input_pic {input_pic}: {len(files)} files, none of them a picture ({endings}){hint}")
    # In natural order: frame 2 before frame 10.
    chosen.sort(key=lambda path: [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", str(path))])
    return Source("viewer_results", name_apart([find_sample(path) for path in chosen]))


def name_apart(samples: list[Sample]) -> list[Sample]:
    """Returns the samples named by their paths below the folder that all have in common."""
    base = os.path.commonpath([sample.image.parent for sample in samples])
    files = [sample.image.relative_to(base) for sample in samples]
    names = [(file.parent / sample.name).as_posix() for file, sample in zip(files, samples, strict=True)]
    if len({name.casefold() for name in names}) < len(names):  # a.png and a.jpg: keep the endings
        names = [file.as_posix() for file in files]
    return [sample._replace(name=name) for name, sample in zip(names, samples, strict=True)]


def find_sample(path: Path) -> Sample:
    """Returns a picture, with its label if it lies in the train or val split of a data set in Cityscapes layout."""
    name = frame_name(path.name)
    if name is None:
        return Sample(path.stem, path, None)
    city = path.absolute().parent
    split = city.parent
    if split.parent.name == "leftImg8bit" and split.name != "test":
        labels = split.parent.parent / "gtFine" / split.name / city.name
        for suffix, is_train_ids in (("labelIds", False), ("labelTrainIds", True)):
            label = labels / f"{name}_gtFine_{suffix}.png"
            if label.is_file():
                return Sample(name, path, label, is_train_ids)
    return Sample(name, path, None)


def read_picture(path: Path) -> tuple[np.ndarray, str]:
    """Returns a picture as (H, W, 3) uint8 RGB, and a note if it was converted; DataError if it cannot be read."""
    try:
        image = read_image(path, cv2.IMREAD_ANYCOLOR | cv2.IMREAD_ANYDEPTH)
    except cv2.error as error:
        raise DataError(f"the picture {path} cannot be decoded ({error.err or error.code})") from None
    if image.dtype != np.uint8:  # of an unknown range: divided by 256, 12 bits stored as 16 are black
        bits = 8 * image.itemsize
        raise DataError(f"the picture {path} has {bits} bits a channel, expected 8: scale its values and save it anew")
    if image.ndim == 2:
        return cv2.cvtColor(image, cv2.COLOR_GRAY2RGB), "grey, converted to RGB"
    alpha = "with an alpha channel, which was left out" if _has_alpha(path) else ""
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB), alpha


def _has_alpha(path: Path) -> bool:
    head = np.fromfile(path, np.uint8, 26)
    if head[:4].tobytes() == b"\x89PNG":
        return bool(head[25] & 4)  # the color type
    if head[:2].tobytes() == b"\xff\xd8":  # JPEG
        return False
    unchanged = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_UNCHANGED)
    return unchanged.ndim == 3 and unchanged.shape[2] == 4


def _read(sample: Sample, labels: bool) -> Frame | Problem:
    label = None
    try:
        image, note = read_picture(sample.image)
        check_size(image.shape[:2], sample.image)
        if labels and sample.label:
            label = read_label(sample.label, sample.label_is_train_ids)
            same_size(sample, image.shape[:2], label.shape)
    except (DataError, UserError) as error:
        return Problem(str(error))
    return Frame(sample.name, image, label, note)
