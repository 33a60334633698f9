"""The site of a network: a static folder whose page runs an exported ONNX file in the browser."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path

from utils import UserError
from web.folder import FolderAside, first_foreign

PAGE = Path(__file__).resolve().parent / "page"
PAGE_FILES = ("index.html", "style.css", "app.js", "pictures.js", "view.js", "worker.js", "label_head.js", "serve.py")
NETWORK, DESCRIPTION = "network.onnx", "network.json"
# ONNX Runtime Web, the only version that the page is tested with.
RUNTIME_VERSION = "1.30.0"
RUNTIME_PACKAGE = f"onnxruntime-web@{RUNTIME_VERSION}"
RUNTIME = "runtime"
# What the page loads for WebGPU (the first half) and without it. The package has no licence file; the page brings one.
RUNTIME_FILES = (
    "ort.webgpu.min.mjs",
    "ort-wasm-simd-threaded.asyncify.mjs",
    "ort-wasm-simd-threaded.asyncify.wasm",
    "ort.wasm.min.mjs",
    "ort-wasm-simd-threaded.mjs",
    "ort-wasm-simd-threaded.wasm",
)
RUNTIME_LICENCE = "LICENSE"
CDN = f"https://cdn.jsdelivr.net/npm/{RUNTIME_PACKAGE}/dist/"
SITE_FILES = frozenset(
    (*PAGE_FILES, NETWORK, DESCRIPTION, *(f"{RUNTIME}/{name}" for name in (*RUNTIME_FILES, RUNTIME_LICENCE)))
)


def find_runtime(folder: str | Path) -> Path:
    """Returns where the files of ONNX Runtime Web lie in its unpacked npm package.

    Args:
        folder: the package: what `npm pack` packs as `package`, and `npm install` puts into `node_modules`.

    Raises:
        UserError: it is another package, or another version, or a file is missing.
    """
    folder = Path(folder)
    get = f"npm pack {RUNTIME_PACKAGE}, unpack it and name its folder package"
    try:
        about = json.loads((folder / "package.json").read_bytes())
        found = f"{about['name']}@{about['version']}"
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f"--runtime: {folder} has no package.json of {RUNTIME_PACKAGE}; {get}") from None
    if found != RUNTIME_PACKAGE:
        raise UserError(f"--runtime: {folder} is {found}, expected {RUNTIME_PACKAGE}; {get}")
    missing = [name for name in RUNTIME_FILES if not (folder / "dist" / name).is_file()]
    if missing:
        raise UserError(f"--runtime: {folder} has no dist/{missing[0]}; {get}")
    return folder / "dist"


def open_site(output: str | Path) -> FolderAside:
    """Returns the folder of a site, to be given to site_aside.

    Raises:
        UserError: it cannot be written, or is neither empty nor an earlier site.
    """
    return FolderAside(output, "--output", "site", _foreign)


def _foreign(folder: Path) -> str | None:
    """Returns the first file of a folder that no site has; any, if it is no site."""
    is_site = (folder / DESCRIPTION).is_file()
    return first_foreign(folder, lambda name: is_site and name in SITE_FILES)


@contextlib.contextmanager
def site_aside(site: FolderAside, weights: str, metadata: dict, runtime: Path | None) -> Iterator[Path]:
    """Writes a site; it takes its place when the block is left, which has to write the network.

    Args:
        site: from open_site; an earlier site there is replaced as a whole.
        weights: name of the weight file, to be shown.
        metadata: of the exported file; what the block adds is written too.
        runtime: from find_runtime, to be copied; None: the page gets the runtime from CDN.

    Yields:
        The path of the ONNX file that the block has to write.

    Raises:
        UserError: a file cannot be written; an earlier site is untouched.
    """
    with site:
        yield site.make() / NETWORK
        for name in PAGE_FILES:
            site.write(name, (PAGE / name).read_bytes())
        if runtime:
            site.write(f"{RUNTIME}/{RUNTIME_LICENCE}", (PAGE.parent / "onnxruntime_license.txt").read_bytes())
            for name in RUNTIME_FILES:
                site.write(f"{RUNTIME}/{name}", (runtime / name).read_bytes())
        place = {"url": f"{RUNTIME}/" if runtime else CDN, "version": RUNTIME_VERSION}
        described = {**metadata, "weights": weights, "file": NETWORK, "runtime": place}
        site.write(DESCRIPTION, json.dumps(described, indent=1).encode())
        site.exchange()
