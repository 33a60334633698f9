"""Draws pictures and videos next to their predictions.

python viewer.py --model_weight 1024_2048_model.pth --input_pic any.jpg
python viewer.py --model_weight 1024_2048_model.pth --input_pic drive.mp4 --overlay --width 960
"""

from __future__ import annotations

import argparse
import errno
import os
import re
import subprocess
import sys
import time
from argparse import BooleanOptionalAction
from collections.abc import Iterable, Iterator
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from frames.cityscapes import train_ids_note
from frames.description import add_data_flags, open_data
from frames.folders import RESULT
from frames.images import encode_png
from inference.predictor import Predictor, add_backend_flags, check_side, load_predictor
from utils import StopSignal, UserError, file_key, refuse_input, run_cli, writable_folder, write_file
from viewing.drawing import draw_result
from viewing.pipeline import run_stages
from viewing.sources import WRITTEN_PICTURES, Source, open_source
from viewing.video import CODECS, STDERR, Frame, Problem, VideoFile, frame_count, frame_rate, quiet

TITLE = "Fast-SCNN"  # of the window
SCREEN_WIDTH = 1280  # maximum of a new window, and of videos without --width
PICTURE_FPS = 10.0  # of a video made of pictures
# A name that the system refuses, or what has it already, is no reason to end a run; a full disk is.
_NAMES = ("EACCES", "EEXIST", "EILSEQ", "EINVAL", "EISDIR", "ELOOP", "ENAMETOOLONG", "ENOTDIR", "ENOTEMPTY", "EPERM")
_NAME_ERRORS = {getattr(errno, name) for name in _NAMES}


def build_parser() -> argparse.ArgumentParser:
    """Returns the parser; its first three flags are the original's."""
    parser = argparse.ArgumentParser(
        description="Segment pictures, a video or a camera and draw the result.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add_data_flags(parser)
    parser.add_argument("--model_weight", default="1024_2048_model.pth", help="from train.py, or exported by deploy.py")
    parser.add_argument(
        "--input_pic",
        default="test/berlin/berlin_000000_000019_leftImg8bit.png",
        help="picture, folder, quoted pattern or video, below the data set's pictures or anywhere, or camera number",
    )
    parser.add_argument("--output", help="a .png or .jpg for one picture, a .webm or another video, or a folder")
    parser.add_argument("--write", action=BooleanOptionalAction, default=True, help="write the result")
    parser.add_argument("--overlay", action=BooleanOptionalAction, default=False, help="draw classes over the picture")
    parser.add_argument("--legend", action=BooleanOptionalAction, default=True, help="name the classes below it")
    parser.add_argument("--width", type=int, help="maximum width of the result, all panels included")
    parser.add_argument("--fps", type=float, help="frames/s of the written video")
    parser.add_argument("--codec", help="codec of the written video, four letters such as VP90")
    parser.add_argument("--frames", type=int, help="stop after this many frames")
    parser.add_argument("--show", action=BooleanOptionalAction, default=False, help="open a window; q ends the run")
    add_backend_flags(parser)
    return parser


def parse_args() -> argparse.Namespace:
    """Reads and checks the command line."""
    args = build_parser().parse_args()
    for name, low, high in (("width", 64, 16384), ("fps", 1, 240), ("frames", 1, float("inf"))):
        value = getattr(args, name)
        if value is not None and not low <= value <= high:
            raise UserError(f"--{name} is {value:g}, expected a number from {low} to {high}")
    check_side(args.input_side)
    if args.codec is not None and not (len(args.codec) == 4 and args.codec.isascii()):
        raise UserError(f"--codec is {args.codec}, expected four letters such as VP80")
    if args.output is not None and not args.write:
        raise UserError("--output was given with --no-write; leave out one of them")
    return args


def inputs_of(source: Source, weights: str) -> list[Path]:
    """Returns every file that is read: pictures or video, labels, weights."""
    paths = [Path(weights), *(path for sample in source.samples for path in (sample.image, sample.label))]
    return list(filter(None, paths))


def open_output(
    source: Source, output: str | None, fps: float | None, codec: str | None, weights: str = ""
) -> Path | VideoFile:
    """Returns the picture, folder or video to write; UserError if it does not fit the input or cannot be written."""
    name = source.result if output is None else output
    path = Path(name)
    try:
        os.lstat(path)
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENOTDIR):
            raise UserError(f"cannot write {path} ({error.strerror}); name another file with --output") from None
    is_folder = path.is_dir() or not path.suffix or name.endswith(("/", os.sep))
    suffix = "" if is_folder else path.suffix.lower()
    if suffix in WRITTEN_PICTURES and not source.single:
        raise UserError(f"--output is {path}, one picture, but the input may hold several: name a folder or a video")
    if suffix not in ("", *WRITTEN_PICTURES, *CODECS):
        raise UserError(
            f"--output is {path}, expected a name that ends with .png or .jpg (one picture), {', '.join(CODECS)} "
            "(a video) or a slash (a folder)"
        )
    if not is_folder:
        refuse_input(path, "--output", inputs_of(source, weights))
    if suffix not in CODECS and (fps or codec):
        raise UserError(f"--fps and --codec are for videos, but {path} is not one; name a .webm file with --output")
    root = writable_folder(path if is_folder else path.absolute().parent)
    if suffix in CODECS:
        return VideoFile(path, fps or (frame_rate(source.capture) if source.moving else PICTURE_FPS), codec)
    results = os.environ.get("CITYSCAPES_RESULTS")
    if results and suffix in ("", ".png") and Path(os.path.realpath(root)).is_relative_to(os.path.realpath(results)):
        raise UserError(
            f"{path} would lie in $CITYSCAPES_RESULTS, where the official evaluation takes it for a prediction; "
            "name a place elsewhere with --output"
        )
    return path


class Window:
    """A window that shows the latest picture. Any thread may set `latest`; the methods belong to the main thread."""

    def __init__(self) -> None:
        self.latest: np.ndarray | None = None  # (H, W, 3) BGR, until it is shown
        self.opened = False
        self.closed = False  # by the user

    def refresh(self, wait_ms: int = 1) -> None:
        """Shows the latest picture, and checks whether the user closed the window or pressed q or escape."""
        picture = self.latest
        if picture is not None:
            self.latest = None
            if not self.opened:
                with quiet():
                    cv2.namedWindow(TITLE, cv2.WINDOW_NORMAL | cv2.WINDOW_KEEPRATIO | cv2.WINDOW_GUI_NORMAL)
                width = min(SCREEN_WIDTH, picture.shape[1])
                cv2.resizeWindow(TITLE, width, picture.shape[0] * width // picture.shape[1])
                self.opened = True
            cv2.imshow(TITLE, picture)
        key = cv2.waitKey(wait_ms) & 0xFF
        gone = self.opened and cv2.getWindowProperty(TITLE, cv2.WND_PROP_VISIBLE) < 1
        self.closed = self.closed or gone or key in (ord("q"), 27)  # 27: escape

    def linger(self, stop: StopSignal) -> None:
        """Keeps the window until it is closed or a signal comes."""
        while not (stop or self.closed):
            self.refresh(wait_ms=100)


def check_display() -> None:
    """Raises UserError if no window opens, tried in another process: without a display, OpenCV ends the process."""
    script = "import cv2; cv2.namedWindow('probe'); cv2.waitKey(1)"
    if subprocess.run([sys.executable, "-c", script], capture_output=True).returncode:
        raise UserError("--show found no display, or OpenCV has no windows; leave it out and look at the written file")


class Viewer:
    """Predicts, draws and writes every frame of a source: `segment`, `draw` and `write` are stages of a pipeline."""

    def __init__(self, args: argparse.Namespace, source: Source, output: Path | VideoFile | None, predict: Predictor):
        self.args = args
        self.source = source
        self.output = output
        self.predict = predict
        self.window = Window()
        self.stop = StopSignal()
        self.frames = 0  # that were predicted
        self.labelled = 0  # of these, with ground truth
        self.skipped = 0
        self.unwritten = 0  # of the frames: no file could be written
        self.inputs = set(map(file_key, inputs_of(source, args.model_weight))) - {None}
        self.files = {sample.name: sample.image for sample in source.samples}
        self.problems: list[str] = []
        self.notes: dict[str, list[str]] = {}  # what was converted, in which pictures
        # The frames of a video have one size: the same panels, and a legend of all classes.
        moving = not isinstance(output, Path)
        self.labels = not args.overlay and (not moving or all(sample.label for sample in source.samples))
        self.width = args.width or (SCREEN_WIDTH if moving else None)
        self.legend = (tuple(range(len(predict.classes))) if moving else None) if args.legend else ()
        count = frame_count(source.capture) if source.moving else len(source.samples)
        total = min(filter(None, (count, args.frames)), default=None)
        self.bar = tqdm(total=total, unit=" frames", leave=False, disable=source.single or None)

    def report_problem(self, text: str, skipped: bool = True) -> None:
        """Prints a problem, unless it is about the only picture: then it becomes the error that ends the run."""
        self.problems.append(text)
        if not self.source.single:
            with STDERR:
                tqdm.write(f"skipped: {text}" if skipped else text, file=sys.stderr)

    def segment(self, item: Frame | Problem) -> tuple[Frame, np.ndarray] | None:
        """Predicts a frame, or reports a problem. Runs in the main thread, to which the window belongs."""
        if isinstance(item, Problem):
            self.skipped += item.frames
            self.report_problem(item.text, bool(item.frames))
            return None
        try:
            prediction = self.predict(item.image)
        except (UserError, MemoryError, RuntimeError) as error:
            if not isinstance(error, UserError) and not out_of_memory(error):
                raise
            size = "x".join(map(str, item.image.shape[:2]))
            reason = error if isinstance(error, UserError) else f"there is no memory for {size} pixels: make it smaller"
            if self.source.moving and not self.frames:  # the others are of the same size
                raise UserError(f"{item.name}: {reason}") from None
            self.skipped += 1
            self.report_problem(f"{self.files.get(item.name, item.name)}: {reason}")
            return None
        self.frames += 1
        if item.label is not None:
            self.labelled += 1
        if item.note:
            self.notes.setdefault(item.note, []).append(item.name)
        self.bar.update()
        if self.args.show:
            self.window.refresh()
        return item, prediction

    def draw(self, item: tuple[Frame, np.ndarray]) -> tuple[str, np.ndarray]:
        """Draws a frame; returns its name and the picture in BGR."""
        frame, prediction = item
        panels = frame.image, frame.label, prediction
        drawn = draw_result(*panels, self.predict.classes, self.args.overlay, self.width, self.legend)
        picture = cv2.cvtColor(drawn, cv2.COLOR_RGB2BGR)
        self.window.latest = picture
        return frame.name, picture

    def write(self, item: tuple[str, np.ndarray]) -> None:
        """Writes a drawn picture: to the video, the only file, or a file of its name."""
        name, picture = item
        if isinstance(self.output, VideoFile):
            self.output.write(picture)
            return
        path = self.output / f"{name}{RESULT}" if self.output.is_dir() else self.output
        try:
            if path != self.output and file_key(path) in self.inputs:
                raise UserError(f"{path} is a file that is read: it is not replaced")
            if not os.path.isdir(path.parent):
                writable_folder(path.parent)
            write_file(path, encode(picture, path.suffix.lower()))
        except UserError as error:
            cause = error.__context__
            refused = isinstance(cause, OSError)
            if path == self.output or (refused and cause.errno not in _NAME_ERRORS):
                raise
            self.unwritten += 1
            self.report_problem(
                f"cannot write {path} ({cause.strerror}); rename the picture" if refused else str(error)
            )

    def ended(self) -> bool:
        """Whether the user ended the run, by a signal or at the window."""
        return bool(self.stop) or self.window.closed

    def run(self) -> tuple[float, list[float]]:
        """Processes every frame; returns the seconds of the run, and those that each stage was busy."""
        video = self.output if isinstance(self.output, VideoFile) else None
        stages = [self.draw, self.write] if self.output else [self.draw]
        start = time.perf_counter()
        try:
            frames = take(self.source.frames(self.labels), self.args.frames)
            busy = run_stages(frames, self.segment, stages, self.ended)
            elapsed = time.perf_counter() - start
            if not (self.frames - self.unwritten or self.ended()):
                reason = self.problems[-1] if self.problems else f"{self.args.input_pic} holds no frame"
                skipped = self.skipped + self.unwritten
                unused = f"; none of {skipped} frames could be used" if skipped > 1 else ""
                raise UserError(reason + unused)
            if video and self.frames:
                video.close()
        finally:
            self.bar.close()
            if video:
                video.discard()
        return elapsed, busy

    def report(self, elapsed: float, busy: list[float]) -> None:
        """Prints what was converted, written and skipped, and the time per stage."""
        for note, names in self.notes.items():
            where = names[0] if len(names) == 1 else f"{len(names)} pictures (the first: {names[0]})"
            print(f"{where}: {note}")
        frames, skipped = self.frames - self.unwritten, self.skipped + self.unwritten
        if not frames:
            return
        some = "" if self.labelled == self.frames else " where there is one"
        truth = f"ground truth{some} | " if self.labelled else ""
        panels = "overlay" if self.args.overlay else f"input | {truth}prediction"
        print(f"{self.output or 'nothing written'}: {panels}")
        if not self.source.single:
            stages = zip(("decode", "predict", "draw", "write"), busy, strict=False)
            costs = ", ".join(f"{stage} {1e3 * seconds / frames:.1f}" for stage, seconds in stages)
            lost = f", {skipped} skipped" if skipped else ""
            print(f"{frames} frames{lost}, {frames / elapsed:.1f} frames/s; {costs} ms a frame")


def encode(picture: np.ndarray, ending: str) -> bytes:
    """Returns the content of a .png or .jpg file of an (H, W, 3) BGR picture; UserError if it is too large for one."""
    try:
        if ending == ".png":
            return encode_png(picture)
        return cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, 92])[1].tobytes()
    except cv2.error:
        h, w = picture.shape[:2]
        raise UserError(
            f"a drawing of {h}x{w} does not fit into a {ending} file; make it smaller with --width"
        ) from None


def out_of_memory(error: Exception) -> bool:
    """Returns whether an error says that memory is lacking, which PyTorch and the engines say in RuntimeErrors."""
    return isinstance(error, MemoryError) or bool(re.search(r"(out of|enough|allocate) memory", str(error)))


def take(items: Iterable[Frame | Problem], count: int | None) -> Iterator[Frame | Problem]:
    """Yields items until `count` frames have passed; None: all."""
    frames = 0
    for item in items:
        yield item
        frames += isinstance(item, Frame)
        if frames == count:
            return


def main() -> int:
    """Segments the input, and writes and shows the result."""
    args = parse_args()
    data = open_data(args.data_path, args.data_root)
    source = open_source(data, args.input_pic)
    if source.left_out:
        print(source.left_out, file=sys.stderr)
    output = open_output(source, args.output, args.fps, args.codec, args.model_weight) if args.write else None
    if args.show:
        check_display()
    cv2.setNumThreads(1)  # the stages run at the same time
    predict = load_predictor(args.model_weight, args.device, args.backend, args.precision, args.input_side)
    if predict.classes.names != data.classes.names and any(sample.label for sample in source.samples):
        print("ground truth is not drawn: weights and data set have different classes", file=sys.stderr)
        source = source._replace(samples=[sample._replace(label=None) for sample in source.samples])
    viewer = Viewer(args, source, output, predict)
    note = train_ids_note(source.samples)
    if note and viewer.labels:
        print(note)
    viewer.stop.listen()
    elapsed, busy = viewer.run()
    viewer.report(elapsed, busy)
    if viewer.stop:
        kept = "; what was made until then is kept" if viewer.frames else ""
        print(f"interrupted{kept}", file=sys.stderr)
        return viewer.stop.status
    if args.show and not source.moving:
        viewer.window.linger(viewer.stop)
    return 0


if __name__ == "__main__":
    run_cli(main)
