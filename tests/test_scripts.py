"""Every script in a process of its own: it starts from any folder, on any platform, and refuses in one line."""

from __future__ import annotations

import os

import pytest
from conftest import ROOT, assert_user_error, run_process, start_script

WRONG = {
    "train.py": (("--data_path", "none"), "no data set at none"),
    "evaluate.py": (("--data_path", "none"), "no data set at none"),
    "viewer.py": (("--input_pic", "none.png"), "no picture at"),
    "deploy.py": (("--model_weight", "none.pth"), "no weight file at none.pth"),
    "synthetic.py": (("--height", 1), "--height is 1"),
    "benchmark.py": (("--repeats", 1), "--repeats is 1"),
}


@pytest.mark.parametrize("script", WRONG)
def test_a_mistake_is_one_line_on_stderr_and_status_2(script: str, tmp_path) -> None:
    """A traceback, a status of success, or a script that only starts in its own folder."""
    flags, words = WRONG[script]
    result = run_process(ROOT / script, *flags, cwd=tmp_path)
    assert_user_error(result, words)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("script", WRONG)
def test_help_is_printed_everywhere(script: str, tmp_path) -> None:
    """A traceback without fcntl and resource, which Windows lacks, or on a terminal that has no letter but ASCII."""
    start = (
        "import runpy, sys\n"
        "sys.modules.update(fcntl=None, resource=None)\n"
        f"sys.argv = [{script!r}, '--help']\n"
        f"sys.path.insert(0, {str(ROOT)!r})\n"
        f"runpy.run_path({str(ROOT / script)!r}, run_name='__main__')\n"
    )
    result = run_process("-c", start, cwd=tmp_path, PYTHONIOENCODING="ascii")
    assert result.returncode == 0 and f"usage: {script}" in result.stdout, result.stderr


def _close_the_readers_end() -> None:
    ends = os.pipe()
    os.close(ends[0])
    for number in (1, 2):
        os.dup2(ends[1], number)


def _fill_the_disk() -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    for number in (1, 2):
        os.dup2(full, number)


def _close_streams() -> None:
    for number in range(3):
        os.close(number)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
@pytest.mark.parametrize("spoil", [_close_the_readers_end, _fill_the_disk, _close_streams])
def test_training_goes_on_without_anyone_to_read_its_output(spoil, frames, tmp_path) -> None:
    """`train.py | head -1` that ends with its second line, and an epoch that is lost to a full log disk."""
    flags = ["--crop_h", 64, "--crop_w", 96, "--batch_size", 2, "--epochs", 1, "--workers", 1, "--output_dir", "run"]
    started = start_script("train.py", "--data_path", frames, *flags, cwd=tmp_path, first=spoil)
    assert started.wait()[0] == 0
    names = {"64_96_model.pth", "64_96_last.pth", "64_96_statistics.csv", "curves.png", "confusion.png"}
    assert names <= {path.name for path in (tmp_path / "run").iterdir()}
    assert len(list((tmp_path / "run" / "results").iterdir())) == 2
