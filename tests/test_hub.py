"""torch.hub.load, from a program that has modules of the same names."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from conftest import ROOT, run_process

import hubconf
from inference.checkpoints import load_model
from street.scene import draw_scene

PROGRAM = """
import sys
import torch
import model, utils  # the caller's own, imported before ...

def load(**options):
    return torch.hub.load(sys.argv[1], "fast_scnn", source="local", **options)

image = torch.load("image.pt")
torch.save({name: load(pretrained=name)(image) for name in sys.argv[2:]}, "logits.pt")
assert load().training is False and load()(image).shape == (1, 19, 64, 96)

import frames, inference.checkpoints  # ... and after it
names = ("model", "utils", "frames", "inference", "inference.checkpoints")
assert {sys.modules[name].OWNER for name in names} == {"caller"}
assert sys.modules["model"] is model and sys.modules["utils"] is utils
"""


def test_hub_does_not_mix_up_modules(tmp_path: Path) -> None:
    """Weights loaded into, or by, the caller's `model` and `utils`; a caller who then finds ours in their place."""
    for folder in ("inference", "frames"):
        (tmp_path / folder).mkdir()
    for name in ("model", "utils", "frames/__init__", "inference/__init__", "inference/checkpoints"):
        (tmp_path / f"{name}.py").write_text('OWNER = "caller"\n')
    (tmp_path / "program.py").write_text(PROGRAM)
    mean, std = torch.tensor((0.485, 0.456, 0.406)), torch.tensor((0.229, 0.224, 0.225))
    scene = torch.from_numpy(draw_scene(0, 64, 96)[0])
    image = ((scene / 255 - mean) / std).permute(2, 0, 1)[None]
    torch.save(image, tmp_path / "image.pt")
    names = sorted(path.stem for path in (ROOT / "weights").glob("*.pth"))

    result = run_process("program.py", ROOT, *names, cwd=tmp_path)

    assert result.returncode == 0, result.stderr
    logits = torch.load(tmp_path / "logits.pt")
    assert list(logits) == names
    for name in names:
        with torch.no_grad():
            assert torch.equal(logits[name], load_model(ROOT / "weights" / f"{name}.pth")[0](image)), name


@pytest.mark.parametrize("name", ["camvit", "../weights/camvid", "", True])
def test_hub_lists_the_shipped_weights(name: object) -> None:
    """A misspelt name that gives a random network, or an error that does not say which names there are."""
    with pytest.raises(ValueError, match=r"camvid, street"):
        hubconf.fast_scnn(name)


def test_hub_offers_only_the_network() -> None:
    """An import that torch.hub.list() names as a model."""
    offered = [name for name, value in vars(hubconf).items() if callable(value) and not name.startswith("_")]
    assert offered == ["fast_scnn"]
