"""Every script in a process of its own: it starts from any folder, on any platform, and refuses in one line."""

from __future__ import annotations

import pytest
from conftest import ROOT, assert_user_error, run_process

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
def test_help_is_printed_without_modules_of_one_system(script: str, tmp_path) -> None:
    """fcntl and resource, which Windows lacks, imported where nobody asked for what needs them."""
    start = (
        "import runpy, sys\n"
        "sys.modules.update(fcntl=None, resource=None)\n"
        f"sys.argv = [{script!r}, '--help']\n"
        f"sys.path.insert(0, {str(ROOT)!r})\n"
        f"runpy.run_path({str(ROOT / script)!r}, run_name='__main__')\n"
    )
    result = run_process("-c", start, cwd=tmp_path)
    assert result.returncode == 0 and f"usage: {script}" in result.stdout, result.stderr
