"""Files that survive, errors in one line."""

from __future__ import annotations

import argparse
import io
import os
import random
import stat
import subprocess
import sys

import pytest
import torch
from conftest import ROOT, refused

from frames.folders import files_below
from model import FastSCNN
from training.run_files import write_csv
from utils import (
    UserError,
    check_finite,
    choose_device,
    count_parameters_and_macs,
    load_checkpoint,
    message_of,
    run_cli,
    save_checkpoint,
    steady_streams,
    unfinished_path,
    writable_folder,
    write_file,
)

LIMITED_SAVE = """
import resource, torch
from utils import save_checkpoint, run_cli
resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))
run_cli(lambda: save_checkpoint("w.pth", {"x": torch.zeros(100000)}))
"""


def test_full_disk_leaves_the_previous_checkpoint(tmp_path) -> None:
    """torch.save under a file-size limit leaves a partial file under the final name: the run's only state is gone."""
    save_checkpoint(tmp_path / "w.pth", {"x": torch.ones(3)})
    environment = {"PYTHONPATH": str(ROOT), "PATH": ""}
    result = subprocess.run(
        [sys.executable, "-c", LIMITED_SAVE], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert result.returncode == 2 and result.stderr.startswith("error: cannot write w.pth (File too large)")
    assert "previous file is untouched" in result.stderr and "Traceback" not in result.stderr
    assert torch.equal(load_checkpoint(tmp_path / "w.pth")["x"], torch.ones(3))
    assert [path.name for path in tmp_path.iterdir()] == ["w.pth"]  # nothing half written lies about


def test_interrupted_write_leaves_the_previous_file(tmp_path, monkeypatch) -> None:
    """A process that dies between writing and renaming must leave the old content under the name."""
    path = tmp_path / "file"
    write_file(path, b"old")
    monkeypatch.setattr("utils.os.replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        write_file(path, b"new")
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def test_a_checkpoint_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch) -> None:
    """A power cut that keeps the new name and loses the content behind it: an empty file in place of the state."""
    done: list[object] = []
    fsync, replace = os.fsync, os.replace

    def note_fsync(number: int) -> None:
        status = os.fstat(number)
        done.append("folder" if stat.S_ISDIR(status.st_mode) else status.st_size)
        fsync(number)

    monkeypatch.setattr("utils.os.fsync", note_fsync)
    monkeypatch.setattr("utils.os.replace", lambda *names: (done.append("rename"), replace(*names)))
    save_checkpoint(tmp_path / "w.pth", {"x": torch.ones(3)})
    assert done == [(tmp_path / "w.pth").stat().st_size, "rename", "folder"]


def test_ctrl_c_is_one_line_and_the_shells_status(capsys) -> None:
    """A traceback for a key that was pressed on purpose; a script around it that takes it for a success."""

    def main() -> None:
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as ended:
        run_cli(main)
    assert ended.value.code == 130 and capsys.readouterr().err == "interrupted\n"


def test_folder_below_a_file_cannot_be_written(tmp_path) -> None:
    """An output folder that cannot be made is found out after the first epoch."""
    (tmp_path / "file").write_text("x")
    with refused(tmp_path / "file" / "folder"):
        writable_folder(tmp_path / "file" / "folder")


def test_message_of_a_worker_is_its_last_line() -> None:
    """An error in a loader worker arrives wrapped in that worker's traceback."""
    wrapped = "Caught UserError in DataLoader worker process 0.\nOriginal Traceback:\n  x\nutils.UserError: bad.png\n"
    assert message_of(UserError(wrapped)) == "bad.png"
    assert message_of(UserError("plain")) == "plain"
    assert message_of(UserError(wrapped.replace("bad.png", "two\nlines: x.png"))) == r"two\nlines: x.png"


def test_names_with_line_ends_are_one_line() -> None:
    """Of a path with a line end only the part behind it is printed: another file."""
    assert (
        message_of(UserError("no weight file at a\nb\x1b[0m\udcff.pth")) == r"no weight file at a\nb\x1b[0m\udcff.pth"
    )


STREAMS = {
    "closed pipe": "{program} | true; exit ${{PIPESTATUS[0]}}",
    "closed pipe of both": "{program} 2>&1 | true; exit ${{PIPESTATUS[0]}}",
    "no stdout": "{program} >&-",
    "no stderr": "{program} 2>&-",
    "no stream at all": "{program} <&- >&- 2>&-",
    "full disk": "{program} >/dev/full 2>/dev/full",
}
PROGRAM = """
import os, subprocess, sys, time
from utils import steady_streams
time.sleep(0.1)  # the reader of a pipe has left
with steady_streams():
    with open("work", "w") as file:
        print("x" * 100_000, flush=True)
        print("x", file=sys.stderr)
        try:
            os.write(1, b"of a C library")
        except OSError:
            pass
        subprocess.run("echo x; echo x >&2", shell=True)
        print("not flushed")
        file.write("done")
sys.exit(3)
"""


@pytest.mark.skipif(os.name != "posix", reason="shells of Unix")
@pytest.mark.parametrize("streams", STREAMS)
def test_work_is_done_whatever_becomes_of_the_output(streams: str, tmp_path) -> None:
    """A run of days that ends as nobody reads what it prints; a data file that gets stdout's number, and its text."""
    program = f"'{sys.executable}' -c '{PROGRAM}'"
    command = ["bash", "-c", STREAMS[streams].format(program=program)]
    result = subprocess.run(command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True)
    assert result.returncode == 3 and b"Traceback" not in result.stderr, result.stderr
    assert (tmp_path / "work").read_text() == "done"


@pytest.mark.parametrize(
    ("encoding", "errors", "printed"),
    [
        ("ascii", "strict", rb"Lov\xe1sz \u4f60 \udcff"),
        ("utf-8", "strict", b"Lov\xc3\xa1sz \xe4\xbd\xa0 \\udcff"),
        ("ascii", "surrogateescape", rb"Lov\xe1sz \u4f60 \udcff"),
        ("utf-8", "surrogateescape", b"Lov\xc3\xa1sz \xe4\xbd\xa0 \xff"),  # the C locale: names as they came
    ],
)
def test_what_a_terminal_cannot_show_is_escaped(encoding, errors, printed, tmp_path, monkeypatch) -> None:
    """A traceback for a path or a name, where the terminal's encoding lacks a character."""
    with open(tmp_path / "out", "w", encoding=encoding, errors=errors) as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        with pytest.raises(SystemExit) as ended:
            run_cli(lambda: print("Lovász 你 \udcff"))
        assert ended.value.code is None and sys.stdout is stream
    assert (tmp_path / "out").read_bytes() == printed + b"\n"


def test_streams_in_memory_stay(monkeypatch) -> None:
    """A notebook or a test whose own stream is passed over."""
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stdout", stream)
    with steady_streams():
        print("x")
    assert stream.getvalue() == "x\n"


def test_long_names_are_written(tmp_path) -> None:
    """A temporary name that is too long where the file's own is not, or that the next run does not find."""
    for name in ("a" * 255, "é" * 127):
        write_file(tmp_path / name, b"x")
        assert (tmp_path / name).read_bytes() == b"x"
    unfinished_path(tmp_path / ("64_96_" + "a" * 249)).write_text("x")
    assert len(list(tmp_path.glob(".64_96_*.tmp"))) == 1


@pytest.mark.parametrize("name", ["folder", "a" * 256, "a\0b", "none/file"])
def test_names_that_cannot_be_written_are_refused(name: str, tmp_path) -> None:
    """A traceback; or a folder that is moved to the name of the previous file."""
    (tmp_path / "folder").mkdir()
    with refused(tmp_path):
        write_file(tmp_path / name, b"x", previous=tmp_path / "previous")
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]
    with refused():
        writable_folder(tmp_path / "a\0b")


@pytest.mark.parametrize("name", ["folder", "a" * 256, "a\0b"])
def test_names_that_are_no_weights_are_refused(name: str, tmp_path) -> None:
    """A traceback of the file system."""
    (tmp_path / "folder").mkdir()
    with refused():
        load_checkpoint(tmp_path / name)


def test_damaged_checkpoints_are_refused(tmp_path) -> None:
    """IndexError, struct.error, AssertionError: what the readers of pickle and zip files raise for damaged ones."""
    whole = io.BytesIO()
    state = {"a": torch.ones(2, dtype=torch.float16), "b": torch.ones(2)}
    torch.save(state, whole, _use_new_zipfile_serialization=False)
    numbers = random.Random(0)
    path, refused = tmp_path / "w.pth", set()
    for _ in range(400):
        damaged = bytearray(whole.getvalue())
        damaged[numbers.randrange(2, len(damaged))] = numbers.randrange(256)
        path.write_bytes(damaged)
        try:
            load_checkpoint(path)
        except UserError as error:
            refused.add(str(error).split("(")[1][:12])
    assert len(refused) > 5


def test_objects_in_a_checkpoint_are_named(tmp_path) -> None:
    """A refusal that leaves people to guess what is wrong with their file."""
    save_checkpoint(tmp_path / "w.pth", {"args": argparse.Namespace(lr=1)})
    with refused("w.pth", "argparse.Namespace"):
        load_checkpoint(tmp_path / "w.pth")


def test_tensors_that_are_not_finite_are_named() -> None:
    """A state of a run that diverged, from which every further epoch is lost."""
    good = torch.ones(3)
    check_finite("w.pth", {"model": {"a": good, "n": torch.tensor(1)}, "best": {"class_miou": float("-inf")}})
    bad = {"model": {"a": good}, "optimizer": {"state": [{}, {"average": torch.tensor([1.0, torch.nan])}]}}
    with refused("w.pth", "1", "2"):
        check_finite("w.pth", bad)
    with refused("1"):  # single precision cannot hold it
        check_finite("w.pth", {"x": torch.tensor([1e300], dtype=torch.float64)})


def test_unknown_device_names_the_choices() -> None:
    """A misspelt device must not fall back to another one."""
    assert choose_device("cpu").type == "cpu"
    for name in ("gpu0", "meta", "cuda:99"):
        with refused("--device", name):
            choose_device(name)


def test_profiling_leaves_the_model_as_it_was() -> None:
    """thop hangs total_ops buffers onto the model, which reach its state dict and break strict loading."""
    model = FastSCNN()
    before = list(model.state_dict())
    parameters, macs = count_parameters_and_macs(model, 128, 256)
    assert list(model.state_dict()) == before and model.training
    assert parameters == 1_137_795
    # 6.71 G at 1024x2048 for convolutions and matmuls alone; thop counts batch normalisation too. 1/64 of the area.
    assert 6.71e9 / 64 < macs < 7.3e9 / 64


def test_csv_has_one_line_a_row(tmp_path) -> None:
    """A row that is appended twice by a resumed run."""
    for _ in range(2):
        write_csv(tmp_path / "s.csv", ["a", "b"], [{"a": 1, "b": 0.5}])
    assert (tmp_path / "s.csv").read_text() == "a,b\n1,0.5\n"


def test_folders_are_searched_through_links_and_without_what_is_no_data(tmp_path) -> None:
    """A search that never ends in a loop of links, reads a folder twice, or takes `._x.png` of a Mac for a picture."""
    for name in ("b/1.png", "b/._1.png", "a.png", "@eaDir/a.png", ".hidden/a.png", "__MACOSX/x.png", "Thumbs.db"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_text("x")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "2.png").write_text("x")
    for name, target in (("c", "elsewhere"), ("d", "elsewhere"), ("b/loop", "in"), ("gone.png", "nothing")):
        (tmp_path / "in" / name).symlink_to(tmp_path / target)
    names = [path.relative_to(tmp_path / "in").as_posix() for path in files_below(tmp_path / "in")]
    assert names == ["a.png", "gone.png", "b/1.png", "c/2.png"]
    (tmp_path / ".given").mkdir()
    (tmp_path / ".given" / "3.png").write_text("x")
    assert [path.name for path in files_below(tmp_path / ".given")] == ["3.png"]
