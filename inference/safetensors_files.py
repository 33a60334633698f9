"""Weights as safetensors files, which hold tensors and texts only; the package is imported where one is met."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import ModuleType

from torch import Tensor

from inference.formats import METADATA, SAFETENSORS_BEGINNING
from utils import UserError, write_file


def is_safetensors(path: str | Path) -> bool:
    """Returns whether a file begins as a safetensors file does, whatever its name."""
    try:
        with open(path, "rb") as file:
            return re.match(SAFETENSORS_BEGINNING, file.read(64), re.DOTALL) is not None
    except (OSError, ValueError):
        return False


def read_safetensors(path: str | Path) -> dict:
    """Returns a safetensors file as load_checkpoint does a PyTorch file: with our metadata, or as a bare state dict.

    Raises:
        UserError: the package is missing, or the file cannot be read or is damaged.
    """
    package = _package(path)
    try:
        content = Path(path).read_bytes()
        tensors = package.torch.load(content)
        length = int.from_bytes(content[:8], "little")
        texts = json.loads(content[8 : 8 + length]).get("__metadata__", {})
        metadata = json.loads(texts[METADATA]) if METADATA in texts else None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); check the file and its permissions") from None
    # Types and sizes that the header only claims make the package raise several.
    except (package.SafetensorError, ValueError, KeyError, TypeError, RuntimeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:120]
        raise UserError(f"{path} is a damaged safetensors file ({reason}); get it again") from None
    if metadata is None:
        return tensors
    if not isinstance(metadata, dict):
        raise UserError(f"{path}: its metadata {METADATA} are a {type(metadata).__name__}, expected a JSON object")
    return {"model": tensors, "metadata": metadata}


def write_safetensors(path: str | Path, state: dict[str, Tensor], metadata: dict) -> None:
    """Writes a state dict with metadata, which are plain values.

    Raises:
        UserError: the package is missing, or the file cannot be written.
    """
    package = _package(path)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    write_file(path, package.torch.save(tensors, {METADATA: json.dumps(metadata)}))


def _package(path: str | Path) -> ModuleType:
    try:
        import safetensors
        import safetensors.torch
    except ImportError:
        raise UserError(
            f"{path} is a safetensors file, which needs the package safetensors: pip install -r requirements-deploy.txt"
        ) from None
    return safetensors
