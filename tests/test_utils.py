"""Files that survive, errors in one line."""

from __future__ import annotations

import os
import stat
import subprocess
import sys

import pytest
import torch
from conftest import ROOT

from dataset import DataError
from model import FastSCNN
from utils import (
    UserError,
    _message,
    choose_device,
    count_parameters_and_macs,
    files_below,
    load_checkpoint,
    run_cli,
    save_checkpoint,
    writable_folder,
    write_csv,
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
    with pytest.raises(UserError, match="cannot write to"):
        writable_folder(tmp_path / "file" / "folder")


def test_message_of_a_worker_is_its_last_line() -> None:
    """An error in a loader worker arrives wrapped in that worker's traceback."""
    wrapped = "Caught DataError in DataLoader worker process 0.\nOriginal Traceback:\n  x\ndataset.DataError: bad.png\n"
    assert _message(DataError(wrapped)) == "bad.png"
    assert _message(UserError("plain")) == "plain"


def test_unknown_device_names_the_choices() -> None:
    """A misspelt device must not fall back to another one."""
    assert choose_device("cpu").type == "cpu"
    for name in ("gpu0", "meta", "cuda:99"):
        with pytest.raises(UserError, match="expected auto, cpu, cuda"):
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
