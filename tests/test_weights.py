"""Weight files of others: wrapped, of other programs, not finite, oddly named."""

from __future__ import annotations

import pickle
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import assert_user_error, refused, run_script
from makers import original_network
from torch import nn

from frames.classes import CITYSCAPES
from inference.checkpoints import initial_model, load_model
from model import FastSCNN
from utils import UserError


def _ema(state: dict, other: dict) -> dict:
    model = FastSCNN()
    model.load_state_dict(state)
    averaged = torch.optim.swa_utils.AveragedModel(model)
    averaged.update_parameters(model)
    return {"state_dict": other, "state_dict_ema": averaged.state_dict(), "epoch": 3}


def _prefixed(prefix: str, state: dict) -> dict:
    return {prefix + name: tensor for name, tensor in state.items()}


# How other trainers save the first of two state dicts, and what is said about it.
WRAPPED: dict[str, tuple[Callable[[dict, dict], dict], str]] = {
    "DataParallel": (lambda state, _: _prefixed("module.", state), "names taken without 'module.'"),
    "compiled": (lambda state, _: _prefixed("_orig_mod.", state), "names taken without '_orig_mod.'"),
    "both": (lambda state, _: _prefixed("module._orig_mod.", state), "names taken without 'module._orig_mod.'"),
    "both, nested": (lambda state, _: {"net": _prefixed("_orig_mod.module.", state), "acc": 1.0}, "taken from 'net'"),
    "one layer compiled": (
        lambda state, _: {name.replace("bottleneck2.0", "bottleneck2._orig_mod.0"): state[name] for name in state},
        "'module.' and '_orig_mod.' taken out of names",
    ),
    "state_dict": (lambda state, _: {"state_dict": state, "epoch": 3}, "weights taken from 'state_dict'"),
    "model_state_dict": (lambda state, _: {"model_state_dict": OrderedDict(state)}, "taken from 'model_state_dict'"),
    "model": (lambda state, _: {"model": state, "optimizer": {"state": {0: {"x": torch.ones(1)}}}}, "from 'model'"),
    "weights": (lambda state, _: {"checkpoint": {"weights": state}}, "weights taken from 'checkpoint.weights'"),
    "beside other values": (lambda state, _: {"epoch": 3, **state}, "left out 1 other entries (first: epoch)"),
    "Lightning": (
        lambda state, _: {
            "state_dict": {**_prefixed("model.", state), "criterion.weight": torch.ones(19)},
            "pytorch-lightning_version": "2.5",
            "callbacks": {},
            "optimizer_states": [],
        },
        "weights taken from 'state_dict'; names taken without 'model.'; left out 1 other entries (first: criter",
    ),
    "EMA": (_ema, "from 'state_dict_ema'; names taken without 'module.'; not taken from 'state_dict'; left out 1"),
    "no counters": (
        lambda state, _: {name: state[name] for name in state if not name.endswith("num_batches_tracked")},
        "44 num_batches_tracked are missing",
    ),
}


@pytest.mark.parametrize("wrapped", WRAPPED)
def test_wrapped_weights_are_the_bare_ones(wrapped: str, weights, tmp_path, capsys) -> None:
    """'266 missing, 266 unknown' for the same network, or other weights than those that the file is about."""
    bare = load_model(weights)[0]
    wrap, said = WRAPPED[wrapped]
    torch.save(wrap(bare.state_dict(), FastSCNN().state_dict()), tmp_path / "w.pth")
    model, metadata = load_model(tmp_path / "w.pth")
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"{tmp_path / 'w.pth'}: ") and said in line, line
    assert metadata == {"align_corners": False, "input_scale": 1.0, "input_side": 0, "classes": CITYSCAPES}
    for state in (
        model.state_dict(),
        initial_model(tmp_path / "w.pth", CITYSCAPES, aux=False, reset_head=False).state_dict(),
    ):
        assert all(
            torch.equal(state[name], tensor) for name, tensor in bare.state_dict().items() if "num_b" not in name
        )


def test_own_checkpoints_say_nothing_and_keep_their_metadata(weights, tmp_path, capsys) -> None:
    """Metadata that are lost where a network was saved in another way, or a line about what is as it should be."""
    assert load_model(weights)[1]["epoch"] == 3 and capsys.readouterr().err == ""
    checkpoint = torch.load(weights)
    metadata = {**checkpoint["metadata"], "align_corners": True}
    torch.save({"model": _prefixed("module.", checkpoint["model"]), "metadata": metadata}, tmp_path / "w.pth")
    model, found = load_model(tmp_path / "w.pth")
    assert model.align_corners and found["epoch"] == 3
    assert capsys.readouterr().err == f"{tmp_path / 'w.pth'}: names taken without 'module.'\n"


def test_wrapped_weights_of_the_original_repository(tmp_path, capsys) -> None:
    """Original names behind a prefix that nobody converts, or that lose align_corners."""
    state = original_network().state_dict()
    torch.save(state, tmp_path / "bare.pth")
    old = {name: tensor for name, tensor in state.items() if "num_batches" not in name}
    torch.save({"state_dict": _prefixed("module.", old)}, tmp_path / "wrapped.pth")
    bare, wrapped = (load_model(tmp_path / name)[0] for name in ("bare.pth", "wrapped.pth"))
    assert wrapped.align_corners and "module" in capsys.readouterr().err
    for one, other in zip(bare.state_dict().items(), wrapped.state_dict().items(), strict=True):
        assert one[0] == other[0] and torch.equal(one[1], other[1])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_any_precision_are_read(dtype: torch.dtype, tmp_path) -> None:
    """Half precision in which an identity batch normalisation of converted weights would be rounded."""
    state = {name: t.to(dtype) if t.is_floating_point() else t for name, t in original_network().state_dict().items()}
    torch.save(state, tmp_path / "w.pth")
    model, _ = load_model(tmp_path / "w.pth")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    identity = model.feature_fusion.low_conv[1]
    assert torch.allclose(
        identity.weight / (identity.running_var + identity.eps).sqrt(), torch.ones(1), rtol=0, atol=1e-6
    )


def test_wrapped_weights_of_another_network_are_counted_without_the_wrapper(tmp_path) -> None:
    """A refusal that counts every name as unknown as of a prefix, or the things beside the network."""
    state = FastSCNN().state_dict()
    del state["classifier.conv.bias"]
    torch.save({"state_dict": _prefixed("module.", {**state, "extra": torch.ones(1)}), "epoch": 3}, tmp_path / "w.pth")
    with refused("266", "1"):
        load_model(tmp_path / "w.pth")
    torch.save({"model": {"fc.weight": torch.ones(2)}, "epoch": 3, 4: {5: 6}}, tmp_path / "w.pth")
    with refused("1", "266"):
        load_model(tmp_path / "w.pth")


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_weights_that_are_not_finite_are_refused(value: float, weights, frames, tmp_path) -> None:
    """A score, or '100 % of the labels agree', of a network of NaN."""
    checkpoint = torch.load(weights)
    checkpoint["model"]["feature_fusion.low_conv.1.running_var"][5] = value
    torch.save(checkpoint, tmp_path / "w.pth")
    words = "1|128|feature_fusion|low_conv|running_var"
    for load in (load_model, lambda path: initial_model(path, CITYSCAPES, aux=False, reset_head=False)):
        with refused(*words.split("|")):
            load(tmp_path / "w.pth")
    flags = ["--data_path", frames, "--model_weight", "w.pth"]
    assert_user_error(run_script("evaluate.py", *flags, cwd=tmp_path), "w.pth", *words.split("|"))
    assert_user_error(
        run_script("deploy.py", *flags[2:], "--output", "n.onnx", cwd=tmp_path), "w.pth", *words.split("|")
    )
    assert [path.name for path in tmp_path.glob("n.*")] == []


def _content(content: bytes) -> Callable[[Path], None]:
    return lambda path: path.write_bytes(content)


# Files that people take for weights, and what they are.
FOREIGN: dict[str, tuple[Callable[[Path], None], str]] = {
    "lfs.pth": (_content(b"version https:" + b"//git-lfs.github.com/spec/v1\noid sha256:0\n"), "git lfs pull"),
    "page.pth": (_content(b"\n <!DOCTYPE html><html>quota exceeded"), "HTML"),
    "script.pth": (lambda path: torch.jit.script(nn.Linear(2, 2)).save(path), "TorchScript"),
    "network.pth": (_content(b"\x08\x0a\x12\x07pytorch\x1a\x032.1"), "ONNX"),
    "network.bin": (_content(b'<?xml version="1.0"?>\n<net name="x" version="11">'), "OpenVINO"),
    "w.pkl": (lambda path: path.write_bytes(pickle.dumps({"a": 1})), "pickle"),
    "keras.h5": (_content(b"\x89HDF\r\n\x1a\n\0\0"), "PyTorch"),  # any other file
}


@pytest.mark.parametrize("name", FOREIGN)
def test_other_files_are_named(name: str, tmp_path, capsys) -> None:
    """'Damaged: get it again' for a whole file of another program, which is no better the next time."""
    write, noun = FOREIGN[name]
    write(tmp_path / name)
    with refused(tmp_path / name, noun):
        load_model(tmp_path / name)
    assert capsys.readouterr().err == ""


def test_advice_for_a_torchscript_archive_helps(weights, tmp_path) -> None:
    """Advice that does not work."""
    bare = load_model(weights)[0]
    torch.jit.trace(bare, torch.zeros(1, 3, 64, 64), check_trace=False).save(tmp_path / "a.pth")
    with pytest.raises(UserError) as error:
        load_model(tmp_path / "a.pth")
    exec(str(error.value).split("in Python: ")[1])
    converted, _ = load_model(tmp_path / "a.converted.pth")
    assert all(torch.equal(a, b) for a, b in zip(bare.parameters(), converted.parameters(), strict=True))


def test_a_name_is_only_a_name(weights, tmp_path, monkeypatch) -> None:
    """A file that is taken for an address, a pattern or another format, or is not found by its name."""
    monkeypatch.chdir(tmp_path)
    for name in ("http:" + "//x.pth", "s3:/*[0].pth", "w.PTH", "w", "-w.pth.tar", "a\nb.pth", "\udcff$1.pth"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_bytes(weights.read_bytes())
        assert load_model(name)[1]["epoch"] == 3
