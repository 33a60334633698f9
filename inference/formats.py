"""What a weight file is by its content, whatever its name says, and how to get from there to one that can be read."""

from __future__ import annotations

import re
import zipfile
from pathlib import Path

from utils import UserError

METADATA = "fast_scnn"  # the key of our metadata, one JSON text, in files that others can read
_UNPACK = "unpack it"
_OTHER = "get or save the weights as a state_dict() of PyTorch"
_SCRIPT = "import torch; torch.save(torch.jit.load({0!r}, 'cpu').state_dict(), {1!r})"
SAFETENSORS_BEGINNING = rb".{8}\{\s*\""  # the length of a JSON object, and the object
# Source: the formats' own descriptions. The beginning of a file as a pattern, what it is, what to do.
_BEGINNINGS = (
    (rb"version https:..git-lfs", "a Git LFS pointer in place of the file", "run git lfs pull"),
    (rb"\s*<(!doctype html|html)", "an HTML page in place of the file", "download it again, by the link to the file"),
    (rb"\s*<.*<net\b", "an OpenVINO file", "let its name end with .xml, its .bin beside it"),
    (rb"\x08[\x03-\x20][\x12\x1a\x22\x28\x32\x3a\x42]", "an ONNX file", "let its name end with .onnx"),
    (SAFETENSORS_BEGINNING, "a safetensors file", "let its name end with .safetensors"),
    (rb".{257}ustar", "a tar archive", _UNPACK),
    (rb"\x1f\x8b", "packed by gzip", _UNPACK),
    (rb"BZh", "packed by bzip2", _UNPACK),
    (rb"\xfd7zXZ", "packed by xz", _UNPACK),
    (rb"\x28\xb5\x2f\xfd", "packed by zstd", _UNPACK),
    (rb"7z\xbc\xaf", "a 7z archive", _UNPACK),
    (rb"Rar!", "a RAR archive", _UNPACK),
    (rb"\x89HDF", "an HDF5 file, as Keras writes", _OTHER),
    (rb"\x08\x01\x12|\x0a.{1,4}\x0a[\x01-\x7f][A-Za-z].*\x12", "a TensorFlow model", _OTHER),
    (rb".{4}TFL3", "a TensorFlow Lite model", _OTHER),
    (rb"GGUF", "a GGUF file", _OTHER),
    (rb"\x93NUMPY", "a NumPy array", _OTHER),
    (rb"\x89PNG|\xff\xd8\xff", "a picture", "name the weights"),
    (rb"\x80[\x03-\x05]", "a Python pickle, which could execute code", _OTHER),
    (rb"\x80\x02", "a PyTorch file", "let its name end with .pth"),
)
# The same for ZIP archives, by the names of their members.
_MEMBERS = (
    (r"/(constants\.pkl|code/.*)", "a TorchScript archive (torch.jit)", f"convert it in Python: {_SCRIPT}"),
    (r"/data\.pkl", "a PyTorch file", "let its name end with .pth"),
    (r"model\.weights\.h5|saved_model\.pb", "a model of Keras or TensorFlow", _OTHER),
    (r"\.npy$", "a NumPy archive", _OTHER),
    (r"", "a ZIP archive", _UNPACK),
)


def foreign_file(path: str | Path, expected: str) -> UserError | None:
    """Returns the error that a file is not what is expected but something else, or None if it is not known.

    Args:
        path: a file that could not be read.
        expected: "a PyTorch file", "an ONNX file" or "an OpenVINO file".
    """
    path = Path(path)
    try:
        with open(path, "rb") as file:
            head = file.read(4096)
        found = _in_archive(path) if zipfile.is_zipfile(path) and head.startswith(b"PK") else _by_beginning(head)
    except (OSError, ValueError, zipfile.BadZipFile):
        return None
    if found is None or found[0] == expected:
        return None
    what, advice = found
    advice = advice.format(str(path), str(path.with_suffix(".converted.pth")))
    return UserError(f"{path} is {what}, expected {expected}: {advice}")


def _in_archive(path: Path) -> tuple[str, str]:
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    return next(row[1:] for row in _MEMBERS if not row[0] or any(re.search(row[0], name) for name in names))


def _by_beginning(head: bytes) -> tuple[str, str] | None:
    for pattern, *found in _BEGINNINGS:
        if re.match(pattern, head, re.DOTALL | re.IGNORECASE):
            return tuple(found)
    text = head.decode("ascii").strip()
    if text and all(c.isprintable() or c.isspace() for c in text):
        return f"a text ({text.splitlines()[0][:60]!r} ...)", "get it again"
    return None
