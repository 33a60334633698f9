"""Entry point of torch.hub.

network = torch.hub.load("/path/to/this/folder", "fast_scnn", source="local", pretrained="street")
"""

from __future__ import annotations

import collections.abc
import contextlib
import pathlib
import sys

import torch

dependencies = ["torch"]

_ROOT = pathlib.Path(__file__).resolve().parent


def fast_scnn(pretrained: str | None = None) -> torch.nn.Module:
    """Fast-SCNN for the 19 classes of Cityscapes, on the CPU and in eval mode.

    The network maps (N, 3, H, W) float32 RGB images, H and W from 32 up, to LOGITS (N, 19, H, W), not labels. Images
    are normalised with the ImageNet statistics:

        mean, std = (torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
        train_ids = network((uint8_images / 255 - mean) / std).argmax(1)  # (N, H, W), 0 road ... 18 bicycle

    To save it, save its state_dict(): the module that defines its class cannot be imported by name afterwards.

    Args:
        pretrained: the name of a file in weights/ without its ending; None leaves the network untrained.

    Raises:
        ValueError: there is no such file; the message lists the names.
    """
    shipped = sorted(path.stem for path in (_ROOT / "weights").glob("*.pth"))
    if pretrained is not None and pretrained not in shipped:
        raise ValueError(f"pretrained is {pretrained!r}, expected None (untrained) or one of {', '.join(shipped)}")
    with _own_modules():
        from inference.checkpoints import load_model
        from model import FastSCNN

        return load_model(_ROOT / "weights" / f"{pretrained}.pth")[0] if pretrained else FastSCNN().eval()


@contextlib.contextmanager
def _own_modules() -> collections.abc.Iterator[None]:
    """Makes imports find this repository's modules, and afterwards the caller's again.

    The caller may have a `utils` or a `model` too, imported before this call or after it. That the files are found is
    torch.hub's work: while it calls an entry point, this folder is the first on sys.path.
    """
    ours = {path.stem for path in _ROOT.glob("*.py")} | {path.parent.name for path in _ROOT.glob("*/__init__.py")}

    def take() -> dict:
        return {name: sys.modules.pop(name) for name in list(sys.modules) if name.split(".")[0] in ours}

    theirs = take()
    try:
        yield
    finally:
        take()
        sys.modules.update(theirs)
