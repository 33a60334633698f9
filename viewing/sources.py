"""Inputs of the viewer: a picture, a folder or pattern of pictures, a video file, a camera."""

from __future__ import annotations

import fnmatch
import glob
import itertools
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from frames.folders import RESULT, _below, _choose, files_below, is_data
from frames.images import PICTURES, irregular, is_picture, read_image, read_label
from frames.samples import DataSet, Sample, same_size
from utils import UserError
from viewing.files import animation, phone_picture_advice
from viewing.video import Frame, Problem, open_capture, read_frames

VIDEOS = (".avi", ".gif", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm", ".wmv")
WRITTEN_PICTURES = (".png", ".jpg", ".jpeg")  # what --output may end with


class Source(NamedTuple):
    """The input that --input_pic names."""

    result: str  # where the result goes without --output
    samples: list[Sample]  # one for each picture, one without a label for a video file, none for a camera
    single: bool = False  # one picture, named by its file
    capture: cv2.VideoCapture | None = None
    camera: int | None = None
    left_out: str = ""  # what a folder or pattern holds besides pictures

    @property
    def moving(self) -> bool:
        """Whether it is a video or a camera."""
        return self.capture is not None

    def frames(self, labels: bool = True) -> Iterator[Frame | Problem]:
        """Reads the frames; with `labels`, also the ground truth where there is one."""
        if self.moving:
            return read_frames(self.capture, self.samples[0].image if self.camera is None else self.camera)
        return (_read(sample, labels) for sample in self.samples)


def open_source(data: DataSet, input_pic: str) -> Source:
    """Opens what --input_pic names, below the data set's pictures or anywhere; UserError if there is nothing to see."""
    if not input_pic:
        raise UserError("--input_pic is empty, expected a picture, a folder, a pattern, a video or a camera's number")
    root = data.pictures
    places = (root / input_pic, Path(input_pic))
    found = next((path for path in places if os.path.exists(path)), None)
    found = found or next((path for path in places if os.path.lexists(path)), None)
    if found is None:
        if input_pic.isascii() and input_pic.isdigit():
            camera = int(input_pic)
            return Source(f"camera_{camera}_result.webm", [], capture=open_capture(camera), camera=camera)
        if glob.has_magic(input_pic):
            return _pictures(data, input_pic, list(_expand(root, input_pic)) or _expand(Path(), input_pic))
        raise UserError(f"--input_pic: no picture at {root / input_pic} nor at {places[1]}")
    if found.is_dir():
        return _pictures(data, input_pic, _below(found))
    return _open_file(data, found)


def _open_file(data: DataSet, path: Path) -> Source:
    """Opens a picture or a video, judged by what is in it; UserError if it is neither."""
    if wrong := irregular(path):
        hint = "; a camera is named by its number, 0 for the first" if "device" in wrong else ""
        raise UserError(f"--input_pic: {path} {wrong}{hint}")
    sample = data.sample(path)
    picture = Source(sample.name + RESULT, [sample], single=True)
    readable = is_picture(path)
    if readable and animation(path) not in ("GIF", "PNG"):  # FFmpeg plays no WebP
        return picture
    if advice := phone_picture_advice(path):
        raise UserError(f"--input_pic: {path} {advice}")
    try:
        return Source(f"{path.stem}_result.webm", [Sample(path.stem, path, None)], capture=open_capture(path))
    except UserError:
        if readable or path.suffix.lower() in PICTURES:  # what is wrong with the picture is said when it is read
            return picture
        raise


def _pictures(data: DataSet, input_pic: str, paths: Iterable[Path]) -> Source:
    chosen, left_out = _choose(paths := list(paths))
    if not chosen:
        videos = sum(path.suffix.lower() in VIDEOS for path in paths)
        hint = f"; {videos} may be videos: name one at a time" if videos else ""
        counted = left_out and f"; {left_out}"
        raise UserError(
            f"--input_pic {input_pic}: {len(paths)} files, none of them a picture ({' '.join(PICTURES)} or another "
            f"format that OpenCV reads){hint}{counted}"
        )
    return Source("viewer_results", name_apart([data.sample(path) for path in chosen]), left_out=left_out)


def _expand(base: Path, pattern: str) -> Iterator[Path]:
    """Yields what matches a pattern below a folder; each folder is read once, also where symbolic links lead to it.

    Hidden names and what is_data excludes are left out, unless the pattern names them.
    """
    parts = Path(pattern).parts
    plain = list(itertools.takewhile(lambda part: not glob.has_magic(part), parts))
    start, rest = base.joinpath(*plain), parts[len(plain) :]
    near = list(itertools.takewhile("**".__ne__, rest))
    found = map(Path, glob.glob(os.path.join(glob.escape(str(start)), *near)))
    named = (path for path in found if _is_named(path.parts[-len(near) :] if near else (), near))
    far = rest[len(near) :]
    if far:
        below = (path for folder in named if folder.is_dir() for path in files_below(folder))
        named = (path for path in below if _matches(path.relative_to(start).parts[len(near) :], far))
    seen = set()
    for path in sorted(named):
        if (place := (path.parent.resolve(), path.name)) not in seen:
            seen.add(place)
            yield path


def _is_named(parts: Sequence[str], patterns: Sequence[str]) -> bool:
    pairs = zip(parts, patterns, strict=True)
    return all(is_data(part) or pattern.startswith(".") or not glob.has_magic(pattern) for part, pattern in pairs)


def _matches(parts: Sequence[str], patterns: Sequence[str]) -> bool:
    if not patterns:
        return not parts
    if patterns[0] == "**":
        return any(_matches(parts[skip:], patterns[1:]) for skip in range(len(parts) + 1))
    return bool(parts) and fnmatch.fnmatch(parts[0], patterns[0]) and _matches(parts[1:], patterns[1:])


def name_apart(samples: list[Sample]) -> list[Sample]:
    """Returns the samples named by their paths below the folder that all have in common."""
    base = os.path.commonpath([sample.image.parent for sample in samples])
    files = [sample.image.relative_to(base) for sample in samples]
    names = [(file.parent / sample.name).as_posix() for file, sample in zip(files, samples, strict=True)]
    if len({name.casefold() for name in names}) < len(names):  # a.png and a.jpg: keep the endings
        names = [file.as_posix() for file in files]
    return [sample._replace(name=name) for name, sample in zip(names, samples, strict=True)]


def read_picture(path: Path) -> tuple[np.ndarray, str]:
    """Returns a picture as (H, W, 3) uint8 RGB, and a note if it was converted; UserError if it cannot be read."""
    if wrong := irregular(path):
        raise UserError(f"the picture {path} {wrong}")
    try:
        image = read_image(path, cv2.IMREAD_ANYCOLOR)
    except UserError:
        if advice := phone_picture_advice(path):
            raise UserError(f"the picture {path} {advice}") from None
        raise
    notes = ["animated, its first picture was taken"] if animation(path) else []
    if image.ndim == 2:
        return cv2.cvtColor(image, cv2.COLOR_GRAY2RGB), "; ".join(["grey, converted to RGB", *notes])
    if _has_alpha(path):
        notes.append("with an alpha channel, which was left out")
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB), "; ".join(notes)


def _has_alpha(path: Path) -> bool:
    head = np.fromfile(path, np.uint8, 26)
    if head[:4].tobytes() == b"\x89PNG":
        return bool(head[25] & 4)  # the color type
    if head[:2].tobytes() == b"\xff\xd8":  # JPEG
        return False
    unchanged = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_UNCHANGED)
    return unchanged.ndim == 3 and unchanged.shape[2] == 4 and bool((unchanged[..., 3] < 255).any())


def _read(sample: Sample, labels: bool) -> Frame | Problem:
    label = None
    try:
        image, note = read_picture(sample.image)
        if labels and sample.label:
            label = read_label(sample.label, sample.labels)
            same_size(sample, image.shape[:2], label.shape)
    except UserError as error:
        return Problem(str(error))
    return Frame(sample.name, image, label, note)
