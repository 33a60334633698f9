"""Draws pictures and videos beside the prediction, in the Cityscapes colors.

python viewer.py --model_weight 1024_2048_model.pth --input_pic any.jpg
python viewer.py --model_weight 1024_2048_model.pth --input_pic drive.mp4 --overlay --width 960
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from dataset import DataError, default_data_path, encode_png, train_ids_note
from inference.predictor import add_backend_flags, load_predictor
from utils import UserError, run_cli, writable_folder, write_file
from viewing.drawing import ALL_CLASSES, draw_result
from viewing.pipeline import run_stages
from viewing.sources import RESULT, Source, open_source
from viewing.video import CODECS, STDERR, Frame, Problem, VideoFile, quiet

VIDEO_WIDTH = 1280  # of videos and windows where no flag says it
PICTURE_FPS = 10.0  # of a video made of pictures
CAMERA_FPS = 25.0  # of a camera or video that does not say it
WINDOW = "Fast-SCNN"


def parse_args() -> argparse.Namespace:
    """Reads the command line; the first three flags are the original's."""
    parser = argparse.ArgumentParser(
        description="Segment pictures or a video and draw the result.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--data_path", default=default_data_path(), help="data set in Cityscapes layout")
    parser.add_argument("--model_weight", default="1024_2048_model.pth", help="weights that train.py wrote")
    parser.add_argument(
        "--input_pic",
        default="test/berlin/berlin_000000_000019_leftImg8bit.png",
        help="a picture, a folder, a quoted pattern, a video (relative to <data_path>/leftImg8bit or anywhere), or a "
        "camera's number",
    )
    parser.add_argument("--output", help="a .png or .jpg for one picture, a .webm or another video, or a folder")
    parser.add_argument("--write", action=argparse.BooleanOptionalAction, default=True, help="write the result")
    parser.add_argument(
        "--overlay",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="blend the prediction into the picture instead of drawing them side by side",
    )
    parser.add_argument(
        "--legend", action=argparse.BooleanOptionalAction, default=True, help="name the classes below the picture"
    )
    parser.add_argument("--width", type=int, help="most that the result is wide, all panels together")
    parser.add_argument("--fps", type=float, help="frames/s of the video to write")
    parser.add_argument("--codec", help="four letters, as VP90, for the video to write")
    parser.add_argument("--frames", type=int, help="stop after this many")
    parser.add_argument(
        "--show", action=argparse.BooleanOptionalAction, default=False, help="open a window; q ends the run"
    )
    add_backend_flags(parser)
    args = parser.parse_args()
    for name, low, high in (("width", 64, 16384), ("fps", 1, 240), ("frames", 1, float("inf"))):
        value = getattr(args, name)
        if value is not None and not low <= value <= high:
            raise UserError(f"--{name} is {value:g}, expected a number from {low} to {high}")
    if args.codec is not None and not (len(args.codec) == 4 and args.codec.isascii()):
        raise UserError(f"--codec is {args.codec}, expected four letters such as VP80")
    if args.output is not None and not args.write:
        raise UserError("--output was given with --no-write; leave out one of them")
    return args


class PictureFiles:
    """Pictures that are written one by one.

    Args:
        path: the folder, or the file of the only picture.
        single: it is a file.
    """

    def __init__(self, path: Path, single: bool):
        self.path, self.single = path, single

    def write(self, name: str, picture: np.ndarray) -> None:
        """Writes an (H, W, 3) BGR uint8 picture."""
        path = self.path if self.single else self.path / f"{name}{RESULT}"
        if not path.parent.is_dir():
            writable_folder(path.parent)
        if path.suffix.lower() == ".png":
            write_file(path, encode_png(picture))
        else:
            write_file(path, cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, 92])[1].tobytes())

    def __str__(self) -> str:
        return str(self.path)

    def close(self) -> None:
        """Every picture is whole already."""

    discard = close


def open_output(source: Source, output: str | None, fps: float | None, codec: str | None) -> PictureFiles | VideoFile:
    """Finds out where the result goes: one picture, a folder of pictures or a video.

    Raises:
        UserError: the name fits neither, the official evaluation would take the pictures for predictions, a folder
            cannot be written to, or this machine cannot write such a video.
    """
    if output is None:
        endings = {"picture": RESULT, "pictures": "", "video": "_result.webm", "camera": "_result.webm"}
        output = source.name + endings[source.kind]
        path, folder = Path(output), source.kind == "pictures"
    else:
        path = Path(output)
        folder = path.is_dir() or not path.suffix or output.endswith(("/", os.sep))
    suffix = "" if folder else path.suffix.lower()
    if suffix in (".png", ".jpg", ".jpeg") and source.kind != "picture":
        raise UserError(f"--output is {path}, one picture, but the input may hold several: name a folder or a video")
    if not folder and suffix not in (".png", ".jpg", ".jpeg", *CODECS):
        raise UserError(
            f"--output is {path}, expected a name that ends with .png or .jpg (one picture), {', '.join(CODECS)} "
            "(a video) or a slash (a folder)"
        )
    if path.exists() and any(sample.image.samefile(path) for sample in source.samples):
        raise UserError(f"--output is {path}, which is the input; name another file")
    if suffix in CODECS:
        writable_folder(path.absolute().parent)
        given = PICTURE_FPS if source.kind in ("picture", "pictures") else source.fps or CAMERA_FPS
        return VideoFile(path, fps or given, codec)
    if fps or codec:
        raise UserError(f"--fps and --codec are for videos, but {path} is none; name a .webm file with --output")
    root = writable_folder(path if folder else path.absolute().parent)
    results = os.environ.get("CITYSCAPES_RESULTS")
    if results and (folder or suffix == ".png") and root.resolve().is_relative_to(Path(results).resolve()):
        raise UserError(
            f"{path} would lie in $CITYSCAPES_RESULTS, where the official evaluation takes it for a prediction; "
            "name a place elsewhere with --output"
        )
    return PictureFiles(path, not folder)


def check_display() -> None:
    """Opens a window in another process, because a library without a display ends the process.

    Raises:
        UserError: it could not be opened.
    """
    script = "import cv2; cv2.namedWindow('probe'); cv2.waitKey(1)"
    if subprocess.run([sys.executable, "-c", script], capture_output=True).returncode:
        raise UserError(
            "--show found no display to open a window on (or OpenCV was built without windows); leave it out and look "
            "at the file that is written"
        )


def first(frames: Iterable[Frame | Problem], count: int | None) -> Iterator[Frame | Problem]:
    """Gives items up to that many frames."""
    for frame in frames:
        yield frame
        if count is not None and isinstance(frame, Frame):
            count -= 1
            if not count:
                return


class Run:
    """One run over a source: what its stages do, what they count, and what is said at the end."""

    def __init__(
        self, args: argparse.Namespace, source: Source, sink: PictureFiles | VideoFile | None, predict: Callable
    ):
        self.source, self.sink, self.predict = source, sink, predict
        self.overlay, self.limit, self.show = args.overlay, args.frames, args.show
        moving = not isinstance(sink, PictureFiles)  # frames of one size: none has a legend or panels of its own
        self.width = args.width or (VIDEO_WIDTH if moving else None)
        self.legend = () if not args.legend else ALL_CLASSES if moving else None
        self.labels = not args.overlay and (not moving or all(sample.label for sample in source.samples))
        self.frames = self.labelled = self.skipped = self.signal = 0
        self.opened = self.closed = False  # the window; closed by the user
        self.problems: list[str] = []
        self.notes: dict[str, list[str]] = {}  # what was converted, and where
        self.latest: np.ndarray | None = None  # drawn, and not in the window yet
        total = min(filter(None, (source.count, args.frames)), default=None)
        self.bar = tqdm(total=total, unit=" frames", leave=False, disable=True if source.kind == "picture" else None)

    def interrupt(self, signum: int, frame: object) -> None:
        """Takes a signal: the run ends after the frame at hand. A second one ends the process at once."""
        if self.signal:
            os._exit(128 + signum)
        self.signal = signum

    def segment(self, item: Frame | Problem) -> tuple[Frame, np.ndarray] | None:
        """Predicts a frame, or says why there is none. The window lives here, as it has to in the main thread."""
        if isinstance(item, Problem):
            self.skipped += item.frames
            self.problems.append(item.text)
            if self.source.kind != "picture":
                with STDERR:
                    tqdm.write(f"{'skipped: ' if item.frames else ''}{item.text}", file=sys.stderr)
            return None
        if item.note:
            self.notes.setdefault(item.note, []).append(item.name)
        self.frames += 1
        self.labelled += item.label is not None
        prediction = self.predict(item.image)
        self.bar.update()
        if self.show:
            self.refresh()
        return item, prediction

    def draw(self, item: tuple[Frame, np.ndarray]) -> tuple[str, np.ndarray]:
        """Draws a frame; returns its name and the picture in BGR."""
        frame, prediction = item
        drawn = draw_result(frame.image, frame.label, prediction, self.overlay, self.width, self.legend)
        picture = cv2.cvtColor(drawn, cv2.COLOR_RGB2BGR)
        self.latest = picture
        return frame.name, picture

    def write(self, item: tuple[str, np.ndarray]) -> None:
        """Hands a picture to the disk."""
        self.sink.write(*item)

    def refresh(self, wait_ms: int = 1) -> None:
        """Puts what was drawn last into the window, and looks whether it was closed."""
        if self.latest is not None:
            picture, self.latest = self.latest, None
            if not self.opened:
                with quiet():
                    cv2.namedWindow(WINDOW, cv2.WINDOW_NORMAL | cv2.WINDOW_KEEPRATIO | cv2.WINDOW_GUI_NORMAL)
                width = min(VIDEO_WIDTH, picture.shape[1])
                cv2.resizeWindow(WINDOW, width, picture.shape[0] * width // picture.shape[1])
                self.opened = True
            cv2.imshow(WINDOW, picture)
        pressed = cv2.waitKey(wait_ms) & 0xFF
        gone = self.opened and cv2.getWindowProperty(WINDOW, cv2.WND_PROP_VISIBLE) < 1
        self.closed = self.closed or gone or pressed in (ord("q"), 27)  # 27: escape

    def view(self) -> list[float]:
        """Sees to every frame; returns the seconds of the run, and those that each stage was busy.

        Raises:
            UserError: no frame could be read, or the result could not be written.
        """
        start = time.perf_counter()
        try:
            stages = [self.draw, self.write] if self.sink else [self.draw]
            frames = first(self.source.frames(self.labels), self.limit)
            seconds = run_stages(frames, self.segment, stages, lambda: bool(self.signal or self.closed))
            elapsed = time.perf_counter() - start
            if not (self.frames or self.signal or self.closed):
                reason = self.problems[-1] if self.problems else f"{self.source.name} holds no frame"
                raise UserError(reason + (f"; none of {self.skipped} frames could be used" if self.skipped > 1 else ""))
            if self.sink and self.frames:
                self.sink.close()
        except BaseException:
            if self.sink:
                self.sink.discard()
            raise
        finally:
            self.bar.close()
        return [elapsed, *seconds]

    def linger(self) -> None:
        """Keeps the last of some pictures in the window until it is closed; a video ends by itself."""
        while self.show and self.source.capture is None and not (self.signal or self.closed):
            self.refresh(wait_ms=100)

    def report(self, elapsed: float, seconds: list[float]) -> None:
        """Says what was made, what was not, and what every stage cost."""
        for note, names in self.notes.items():
            where = names[0] if len(names) == 1 else f"{len(names)} pictures (the first: {names[0]})"
            print(f"{where}: {note}")
        truth = f"ground truth{'' if self.labelled == self.frames else ' where there is one'} | "
        panels = "overlay" if self.overlay else f"input | {truth if self.labelled else ''}prediction"
        if not self.frames:
            return
        print(f"{self.sink or 'nothing written'}: {panels}")
        if self.source.kind != "picture":
            costs = [
                f"{name} {1e3 * busy / self.frames:.1f}"
                for name, busy in zip(("decode", "predict", "draw", "write"), seconds, strict=False)
            ]
            skipped = f", {self.skipped} skipped" if self.skipped else ""
            rate = self.frames / elapsed
            print(f"{self.frames} frames{skipped}, {rate:.1f} frames/s; {', '.join(costs)} ms a frame")


def main() -> int:
    """Segments what was named and saves or shows what it drew."""
    args = parse_args()
    source = open_source(args.data_path, args.input_pic)
    sink = open_output(source, args.output, args.fps, args.codec) if args.write else None
    if args.show:
        check_display()
    cv2.setNumThreads(1)  # the stages run beside each other
    run = Run(args, source, sink, load_predictor(args.model_weight, args.device, args.backend, args.precision))
    note = train_ids_note(source.samples)
    if note and run.labels:
        print(note)
    signal.signal(signal.SIGINT, run.interrupt)
    signal.signal(signal.SIGTERM, run.interrupt)
    elapsed, *seconds = run.view()
    run.report(elapsed, seconds)
    if run.signal:
        print("interrupted; what was made until then is kept" if run.frames else "interrupted", file=sys.stderr)
        return 128 + run.signal
    run.linger()
    return 0


if __name__ == "__main__":
    run_cli(main, DataError)
