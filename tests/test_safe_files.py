"""Files that hold no code: safetensors, and PyTorch's with NumPy's scalars beside the weights."""

from __future__ import annotations

import os
import pickle
import sys
import zipfile

import numpy as np
import torch
from conftest import assert_user_error, refused, run_script
from makers import as_published, published_network
from test_published import TRAMAC

from inference.checkpoints import load_model, load_state
from inference.predictor import load_engine
from inference.weight_files import METADATA
from model import FastSCNN
from utils import load_checkpoint


def test_numpys_scalars_are_read_as_plain_values(tmp_path) -> None:
    """A score beside weights for which the whole file is refused, in the spelling of NumPy 1 or 2."""
    values = [np.dtype(code).type(1) for code in "?bhilBHILefd"] + [
        np.str_("é"),
        np.bytes_(b"b"),
        np.array(2, ">i4")[()],
    ]
    torch.save({"meta": values, "state_dict": {"x": torch.ones(1)}}, tmp_path / "2.pth")
    with zipfile.ZipFile(tmp_path / "2.pth") as new, zipfile.ZipFile(tmp_path / "1.pth", "w") as old:
        for name in new.namelist():
            old.writestr(name, new.read(name).replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))
    for name in ("1.pth", "2.pth"):
        meta = load_checkpoint(tmp_path / name)["meta"]
        assert meta == values and {type(value) for value in meta} == {bool, int, float, str, bytes}


class Call:
    """Pickles as a call."""

    def __init__(self, *call: object):
        self.call = call

    def __reduce__(self):
        return self.call


class SizedDType:
    """A dtype whose state claims another size of its texts; NumPy's own unpickling ends the process."""

    def __reduce__(self):
        return np.dtype, ("U1", False, True), (3, "<", None, None, None, 3, 4, 8)


def test_nothing_else_becomes_loadable(tmp_path) -> None:
    """Code in `meta` that runs, or a process that a wrong size ends, for the sake of a few numbers."""
    run = Call(os.system, (f"touch {tmp_path / 'executed'}",))
    for bad in (
        run,
        np.ones(2),
        np.dtype("O"),
        np.datetime64("2020"),
        np.zeros((), "i4,O")[()],
        Call(np.dtype, ("O",)),
    ):
        torch.save({"meta": bad, "state_dict": {}}, tmp_path / "w.pth")
        with refused("w.pth"):
            load_checkpoint(tmp_path / "w.pth")
    assert not (tmp_path / "executed").exists()
    scalar = np.float64().__reduce__()[0]
    torch.save({"meta": Call(scalar, (SizedDType(), b"AAAAAAAA"))}, tmp_path / "w.pth", pickle_module=pickle)
    with refused("w.pth"):
        load_checkpoint(tmp_path / "w.pth")


def test_safetensors_are_read_from_anybody(tmp_path, capsys) -> None:
    """A published network, or bare weights of ours, that PyTorch's own files alone may hold."""
    from safetensors.torch import save_file

    save_file(
        as_published(published_network(TRAMAC), TRAMAC), tmp_path / "theirs.bin", {"format": "pt"}
    )  # by content, whatever the name
    model, _ = load_model(tmp_path / "theirs.bin")
    assert model.variant == TRAMAC.variant and "weights of Tramac" in capsys.readouterr().err
    save_file({f"module.{name}": t for name, t in FastSCNN().state_dict().items()}, tmp_path / "bare.safetensors")
    assert load_state(tmp_path / "bare.safetensors")[1] == {"align_corners": False, "input_scale": 1.0, "input_side": 0}
    assert "module" in capsys.readouterr().err


def test_bad_safetensors_are_one_line(weights, tmp_path) -> None:
    """A traceback of the reader, another network from metadata that nobody checked, or 'no PyTorch file'."""
    from safetensors.torch import save, save_file

    state = load_model(weights)[0].state_dict()
    good = save(state)
    for name, content, words in (
        ("half", good[: len(good) // 2], "safetensors"),
        ("header", good[:100], "safetensors"),
        ("few", good[:6], ""),
        ("text", save(state, {METADATA: "{"}), "safetensors"),
        ("list", save(state, {METADATA: "[1]"}), ""),
        ("scale", save(state, {METADATA: '{"input_scale": "big"}'}), "input_scale|big|0"),
        ("side", save(state, {METADATA: '{"input_side": -1}'}), "input_side|1|0|8192"),
        ("half", save(state, {METADATA: '{"input_side": 640.5}'}), "input_side|640.5|0|8192"),
        ("corners", save(state, {METADATA: '{"align_corners": 1}'}), "align_corners|1"),
        ("variant", save(state, {METADATA: '{"variant": {"width": 2}, "align_corners": true}'}), ""),
        ("names", save({"fc.weight": torch.ones(2)}), "1"),
    ):
        path = tmp_path / f"{name}.safetensors"
        path.write_bytes(content)
        with refused(*words.split("|")) as error:
            load_model(path)
        assert str(path) in str(error.value) and "\n" not in str(error.value)
    save_file(state, tmp_path / "n.onnx")
    with refused("safetensors", "ONNX"):
        load_engine(tmp_path / "n.onnx")


def test_the_package_of_safetensors_is_named(weights, tmp_path, monkeypatch) -> None:
    """An import error, for a package that only these files need."""
    from safetensors.torch import save_file

    save_file(load_model(weights)[0].state_dict(), tmp_path / "w.safetensors")
    for module in [name for name in sys.modules if name.split(".")[0] == "safetensors"]:
        monkeypatch.setitem(sys.modules, module, None)
    words = "safetensors|requirements-deploy.txt"
    with refused(*words.split("|")):
        load_model(tmp_path / "w.safetensors")
    flags = ("--model_weight", weights, "--format", "safetensors")
    assert_user_error(run_script("deploy.py", *flags, "--output", "n.safetensors", cwd=tmp_path), *words.split("|"))
    assert not (tmp_path / "n.safetensors").exists() and load_model(weights)


def test_written_safetensors_say_all_that_the_checkpoint_said(weights, tmp_path) -> None:
    """An epoch, classes, an input_scale or an input_side that is lost on the way, or weights that are not the same."""
    checkpoint = torch.load(weights)
    checkpoint["metadata"] |= {"input_scale": 1.5, "input_side": 96, "train_split": "train+val"}
    torch.save(checkpoint, tmp_path / "w.pth")
    result = run_script("deploy.py", "--model_weight", "w.pth", "--format", "safetensors", cwd=tmp_path)
    assert result.returncode == 0 and "333x417: 100.000 %" in result.stdout, result.stderr
    (model, before), (again, after) = (load_model(tmp_path / name) for name in ("w.pth", "w.safetensors"))
    assert before.items() <= after.items() and after["agreement"] == 1
    for name, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor)
    flags = ("--model_weight", "w.pth", "--format", "safetensors", "--precision", "bf16")
    assert_user_error(run_script("deploy.py", *flags, cwd=tmp_path), "--precision", "bf16", "fp32")
