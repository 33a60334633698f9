"""What several test files need: small data sets, weights, and a way to run a script.

The docstring of a test says which fault it catches, its name what holds.
"""

from __future__ import annotations

import contextlib
import importlib
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

# Before torch is imported, here and in every script: with nets this small a second thread only waits.
os.environ["OMP_NUM_THREADS"] = "1"

import cv2
import numpy as np
import pytest
import torch
from _pytest.capture import FDCapture

from frames.classes import LABELS
from model import FastSCNN
from utils import UserError, run_cli, save_checkpoint

ROOT = Path(__file__).resolve().parent.parent


def run_process(*command: object, cwd: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Runs Python in a process of its own, as a user would; CITYSCAPES_* come from `variables` only."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("CITYSCAPES_")}
    return subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=cwd, env={**environment, **variables}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip


def call_main(script: str, *arguments: object) -> int:
    """Calls a script's main() as `python script` does, in the environment as it is; returns the exit status."""
    main = importlib.import_module(script.removesuffix(".py")).main
    sys.argv = [str(ROOT / script), *map(str, arguments)]
    try:
        run_cli(main)
    except SystemExit as end:
        return end.code
    except BaseException:
        traceback.print_exc()
    return 1


def run_script(script: str, *arguments: object, cwd: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Runs a script's main() in this process: what it prints, and the exit status that it ends with.

    A start of Python and PyTorch takes seconds, which one test for each script spends, by run_process. Streams are
    those of the file descriptors, so that what OpenCV or FFmpeg print is seen too.
    """
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    threads = cv2.getNumThreads()
    with pytest.MonkeyPatch.context() as patch, captured() as streams:
        set_environment(variables, patch.setenv, patch.delenv)
        patch.setattr(sys, "argv", [])
        patch.chdir(cwd)
        try:
            status = call_main(script, *arguments)
        finally:
            cv2.setNumThreads(threads)
            for number, handler in handlers.items():
                signal.signal(number, handler)
            output = [stream.snap() for stream in streams]
    return subprocess.CompletedProcess([script, *arguments], status, *output)


def set_environment(variables: dict[str, str], setenv: Callable, delenv: Callable) -> None:
    """Sets variables; CITYSCAPES_* come from them only."""
    for name in [name for name in os.environ if name.startswith("CITYSCAPES_")]:
        delenv(name)
    for name, value in variables.items():
        setenv(name, value)


class Started:
    """A function or script in a process of its own, to be killed or waited for.

    It is forked from a server that has imported the scripts, in milliseconds. (A fork of this process could not train:
    autograd refuses to work in a fork of a process that has used it.)

    Args:
        function: what to call, importable by name; what it returns is the exit status.
        cwd: the folder to work in.
        variables: environment variables; CITYSCAPES_* come from here only.
        first: called first, such as to set a limit.
    """

    def __init__(
        self, function: Callable, *arguments: object, cwd: Path, first: Callable | None = None, **variables: str
    ):
        context = multiprocessing.get_context("forkserver")
        # What the scripts import, and what PyTorch and thop import when they are first used.
        context.set_forkserver_preload(["train", "viewer", "thop", "torch._dynamo"])
        os.environ.setdefault("PYTHONPATH", os.pathsep.join([str(ROOT), str(ROOT / "tests")]))
        self._streams = tempfile.mkdtemp()
        how = (self._streams, str(cwd), first, variables)
        self._process = context.Process(target=_in_child, args=(*how, function, arguments))
        self._process.start()

    @property
    def returncode(self) -> int | None:
        """The exit status, minus the number of the signal that ended it, or None while it runs."""
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        """Sends a signal."""
        os.kill(self._process.pid, number)

    @property
    def stdout(self) -> str:
        """What it has printed so far."""
        path = Path(self._streams, "1")
        return path.read_text() if path.exists() else ""

    def result(self) -> subprocess.CompletedProcess[str]:
        """Waits for the end and returns it as run_script does."""
        return subprocess.CompletedProcess([], *self.wait())

    def wait(self, timeout: float = 240) -> tuple[int, str, str]:
        """Waits for the end; returns the exit status, stdout and stderr."""
        self._process.join(timeout)
        if self._process.exitcode is None:
            self._process.kill()
            self._process.join()
        output = [Path(self._streams, name).read_text() for name in "12"]
        shutil.rmtree(self._streams)
        return self._process.exitcode, *output


def _in_child(
    streams: str, cwd: str, first: Callable | None, variables: dict[str, str], function: Callable, arguments: tuple
) -> None:
    for number, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(Path(streams, str(number)), os.O_CREAT | os.O_WRONLY | os.O_APPEND), number)
        setattr(sys, name, open(number, "w", buffering=1, closefd=False))  # noqa: SIM115
    multiprocessing.set_start_method("fork", force=True)  # loader workers start as in a script, not by the server
    signal.signal(signal.SIGINT, signal.default_int_handler)
    set_environment(variables, os.environ.__setitem__, os.environ.__delitem__)
    os.chdir(cwd)
    if first:
        first()
    try:
        status = function(*arguments) or 0
    except BaseException:
        traceback.print_exc()
        status = 1
    sys.stdout.flush()
    os._exit(status)


def start_script(script: str, *arguments: object, **how: object) -> Started:
    """Starts a script's main() in a process of its own; see Started."""
    return Started(call_main, script, *arguments, **how)


@contextlib.contextmanager
def captured() -> Iterator[list[FDCapture]]:
    """Redirects stdout and stderr, as pytest's own capture does, which goes on when the block is left."""
    captures = [FDCapture(1), FDCapture(2)]
    for capture in captures:
        capture.start()
    try:
        yield captures
    finally:
        for capture in captures:
            capture.done()


@contextlib.contextmanager
def refused(*nouns: object) -> Iterator[pytest.ExceptionInfo]:
    """The block ends in a user error: one line that names the file, the flag, the value; never its prose."""
    with pytest.raises(UserError) as caught:
        yield caught
    message = str(caught.value)
    assert message and "\n" not in message, message
    for noun in nouns:
        assert str(noun) in message, (noun, message)


def assert_user_error(result: subprocess.CompletedProcess[str], *nouns: object) -> None:
    """One line on stderr that names the file, the flag, the value; exit status 2, no traceback."""
    assert result.returncode == 2, (result.returncode, result.stdout, result.stderr)
    lines = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and "Traceback" not in result.stderr, result.stderr
    for noun in nouns:
        assert str(noun) in lines[0], (noun, lines[0])


def write_frame(
    root: Path, split: str, name: str, image: np.ndarray, label: np.ndarray | None, kind: str = "labelIds"
) -> tuple[Path, Path]:
    """Writes one frame, RGB picture and label file, in Cityscapes layout."""
    city = name.split("_")[0]
    image_path = root / "leftImg8bit" / split / city / f"{name}_leftImg8bit.png"
    label_path = root / "gtFine" / split / city / f"{name}_gtFine_{kind}.png"
    for path in (image_path, label_path):
        path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(image_path), image[..., ::-1])
    if label is not None:
        cv2.imwrite(str(label_path), label)
    return image_path, label_path


def random_frame(rng: np.random.Generator, height: int = 64, width: int = 96) -> tuple[np.ndarray, np.ndarray]:
    """A picture of noise and blocks of label ids."""
    ids = np.array([label.id for label in LABELS], np.uint8)
    blocks = ids[rng.integers(len(ids), size=(height // 16 + 1, width // 16 + 1))]
    label = np.kron(blocks, np.ones((16, 16), np.uint8))[:height, :width]
    return rng.integers(0, 256, (height, width, 3), np.uint8), np.ascontiguousarray(label)


@pytest.fixture
def frames(tmp_path: Path) -> Path:
    """A data set of noise, made by hand: three training, two validation and one test frame of 64x96."""
    rng = np.random.default_rng(0)
    root = tmp_path / "frames"
    for split, count in (("train", 3), ("val", 2), ("test", 1)):
        for index in range(count):
            name = f"{split}stadt_000000_{index:06d}"
            image, label = random_frame(rng)
            write_frame(root, split, name, image, label)
            # The official script wants instance ids beside the label ids.
            instances = root / "gtFine" / split / f"{split}stadt" / f"{name}_gtFine_instanceIds.png"
            cv2.imwrite(str(instances), label.astype(np.uint16))
    return root


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A weight file of an untrained network whose predictions have several classes."""
    torch.manual_seed(0)
    model = FastSCNN()
    with torch.no_grad():  # BN statistics of noise: an untrained network in eval mode predicts one class otherwise
        for _ in range(3):
            model(torch.randn(4, 3, 64, 96))
    path = tmp_path_factory.mktemp("weights") / "64_96_model.pth"
    save_checkpoint(path, {"model": model.state_dict(), "metadata": {"align_corners": False, "epoch": 3}})
    return path
