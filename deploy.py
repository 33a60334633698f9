"""From a checkpoint file to the fastest predictor: loading and checking, one `Predictor` for every engine, export.

python deploy.py --model_weight weights/camvid.pth --format openvino --precision bf16
"""

from __future__ import annotations

import argparse
import hashlib
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor

from dataset import NUM_CLASSES, DataError, read_image
from inference.backends import PRECISIONS, Network, check_precision, describe, package, torch_network
from inference.export import AGREEMENT, FORMATS, agreement, export, open_exported, write_onnx
from model import MIN_SIZE, FastSCNN, convert_original, drop_profiler_buffers, is_original
from synthetic import draw_scene
from utils import UserError, choose_device, keep_freed_memory, load_checkpoint, run_cli, writable_folder

AUX_HEADS = ("aux_shallow.", "aux_context.")
CLASS_SCORES = ("classifier.conv.", "aux_shallow.classes.", "aux_context.classes.")


def load_state(path: str | Path) -> tuple[dict[str, Tensor], dict]:
    """Loads weights from what train.py wrote, from a bare state dict, or from the original repository's weights.

    Returns:
        The state dict under our names, and the metadata of the file: align_corners and input_scale at least.

    Raises:
        UserError: the file is missing, damaged, or holds code.
    """
    checkpoint = load_checkpoint(path)
    metadata = {"align_corners": False, "input_scale": 1.0}
    if isinstance(checkpoint.get("model"), dict) and isinstance(checkpoint.get("metadata"), dict):
        state, metadata = checkpoint["model"], {**metadata, **checkpoint["metadata"]}
    else:
        state = checkpoint
    state, dropped = drop_profiler_buffers(state)
    if dropped:
        _say(f"{path}: left out {len(dropped)} buffers of the profiler thop (total_ops, total_params)")
    if is_original(state):
        _say(f"{path}: weights of the original repository, converted (align_corners=True, as they were trained)")
        state, metadata["align_corners"] = convert_original(state), True
    return state, metadata


def build_model(state: dict[str, Tensor], metadata: dict, aux: bool | None = None) -> FastSCNN:
    """Returns the network that weights belong to, without loading them; aux None: heads if the weights have them."""
    if aux is None:
        aux = any(name.startswith(AUX_HEADS) for name in state)
    return FastSCNN(
        NUM_CLASSES, align_corners=metadata["align_corners"], aux=aux, input_scale=float(metadata["input_scale"])
    )


def load_model(path: str | Path) -> tuple[FastSCNN, dict]:
    """Loads a network for inference.

    Returns:
        The network in eval mode on the CPU, and the metadata of the file.

    Raises:
        UserError: as load_state, and where the weights belong to another network.
    """
    state, metadata = load_state(path)
    model = build_model(state, metadata)
    check_state(path, state, model.state_dict())
    model.load_state_dict(state)
    return model.eval(), metadata


def initial_model(path: str | Path, aux: bool, reset_head: bool) -> FastSCNN:
    """Returns a network for fine-tuning; what is not taken from the file is random, and said.

    Args:
        path: the weights.
        aux: give it auxiliary heads, from the file if it has them.
        reset_head: leave out class scores of another size than NUM_CLASSES.

    Raises:
        UserError: as load_model.
    """
    state, metadata = load_state(path)
    model = build_model(state, {**metadata, "input_scale": 1.0}, aux)
    wanted = model.state_dict()
    unused = [name for name in state if name.startswith(AUX_HEADS) and name not in wanted]
    fresh = [name for name in wanted if name.startswith(AUX_HEADS) and name not in state]
    if reset_head:
        heads = [name for name in wanted if name.startswith(CLASS_SCORES)]
        fresh += [name for name in heads if name in state and state[name].shape != wanted[name].shape]
    for what, names in (("left out", unused), ("random, not from the file", fresh)):
        if names:
            _say(f"{path}: {len(names)} tensors {what} ({names[0]} ...)")
    merged = {name: tensor for name, tensor in state.items() if name not in unused}
    merged |= {name: wanted[name] for name in fresh}
    check_state(path, merged, wanted)
    model.load_state_dict(merged)
    return model


def check_state(path: str | Path, found: dict, expected: dict[str, Tensor]) -> None:
    """Compares a state dict with what a network wants.

    Raises:
        UserError: names or shapes differ; the message counts them and names the first.
    """
    missing = [name for name in expected if name not in found]
    foreign = [name for name in found if name not in expected]
    other = [
        f"{name} {tuple(getattr(found[name], 'shape', ()))} instead of {tuple(tensor.shape)}"
        for name, tensor in expected.items()
        if name in found and getattr(found[name], "shape", None) != tensor.shape
    ]
    differences = [
        f"{len(names)} {what} (first: {names[0]})"
        for what, names in (("missing", missing), ("unknown", foreign), ("of another shape", other))
        if names
    ]
    if differences:
        raise UserError(
            f"{path} belongs to another network: of {len(expected)} tensors expected and {len(found)} found, "
            f"{', '.join(differences)}; expected Fast-SCNN with {NUM_CLASSES} classes"
        )


def check_size(size: Sequence[int], name: object = "the picture") -> None:
    """Refuses a picture, given as (height, width), that is smaller than the network can take.

    Raises:
        UserError: names it.
    """
    if min(size) < MIN_SIZE:
        raise UserError(
            f"{name} is {size[0]}x{size[1]} (height x width), expected at least {MIN_SIZE}x{MIN_SIZE}: enlarge it"
        )


class Predictor:
    """Turns pictures into train ids: (H, W, 3) RGB uint8 in, (H, W) uint8 out.

    Any memory layout is taken. Another number of channels, another type and a size under 32x32 are refused, not
    converted: only who made the picture knows what its values mean. sources.read_picture converts files.

    Args:
        network: on whatever engine.
    """

    def __init__(self, network: Network):
        self.network = network

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """Returns the labels of one picture.

        Raises:
            UserError: it is no picture, or smaller than the network can take.
        """
        if not isinstance(image, np.ndarray):
            raise UserError(f"the picture is a {type(image).__name__}, expected a uint8 array (cv2.imread gives None)")
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
            raise UserError(
                f"the picture is a {image.dtype} array of shape {image.shape}, expected uint8 RGB, (height, width, 3)"
            )
        check_size(image.shape[:2])
        image = np.require(image, requirements="CW")  # torch warns of memory that it could not write to
        return self.network.labels(torch.from_numpy(image)[None])[0].cpu().numpy()


def load_network(
    path: str | Path, device: str = "auto", backend: str | None = None, precision: str | None = None
) -> tuple[Network, dict]:
    """Opens a checkpoint or an exported file on an engine.

    The process keeps freed memory from then on; see utils.keep_freed_memory.

    Args:
        path: a checkpoint, or what deploy.py exported.
        device: for PyTorch; the other engines run on the CPU.
        backend: a key of PRECISIONS; None: PyTorch for a checkpoint, otherwise what the file's ending says.
        precision: None: that of the file, fp32 for a checkpoint.

    Returns:
        The network, and the metadata of the file.

    Raises:
        UserError: as load_model; the file, the backend, the precision and the device do not go together.
    """
    if backend:
        check_precision(backend, precision or "fp32")
    keep_freed_memory()
    exported = Path(path).suffix in FORMATS.values()
    if (exported or backend in FORMATS) and device not in ("auto", "cpu"):
        raise UserError(f"--device {device} was given, but {backend or Path(path).suffix} runs on the CPU: use auto")
    if exported:
        if not Path(path).is_file():
            raise UserError(f"no file at {path}; export one with deploy.py")
        return open_exported(path, backend, precision)
    model, metadata = load_model(path)
    if backend not in FORMATS:
        compiled = backend == "torch-compile"
        return torch_network(model, choose_device(device), precision or "fp32", compiled), metadata
    if precision == "int8":
        raise UserError(
            f"int8 has to be calibrated: python deploy.py --model_weight {path} --precision int8 --pictures F"
        )
    package({"onnx": "onnxruntime"}.get(backend, backend), backend)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "network.onnx"
        write_onnx(model, describe(model, "", "fp32", None), file)
        return open_exported(file, backend, precision)[0], metadata


def load_predictor(
    path: str | Path, device: str = "auto", backend: str | None = None, precision: str | None = None
) -> Predictor:
    """Opens a checkpoint or an exported file; see load_network."""
    return Predictor(load_network(path, device, backend, precision)[0])


def add_backend_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags that choose an engine, for every script that predicts."""
    parser.add_argument("--backend", help=f"{', '.join(PRECISIONS)}; by the ending of the weights if not given")
    parser.add_argument("--precision", help="fp32, bf16, fp16 or int8; that of the weights if not given")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps")


def read_pictures(folder: str | None, count: int = 32) -> list[np.ndarray]:
    """Reads pictures to calibrate and to check with: spread over a folder, or drawn ones where none is named.

    Raises:
        UserError: there is none.
    """
    if folder is None:
        return [draw_scene(seed, 512, 1024)[0] for seed in range(4)]
    found = sorted(path for path in Path(folder).rglob("*") if path.suffix.lower() in (".png", ".jpg", ".jpeg"))
    if not found:
        raise UserError(f"--pictures: no .png or .jpg in {folder}; name a folder of street pictures")
    return [read_image(path) for path in found[:: max(1, len(found) // count)][:count]]


def parse_args() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description="Export a checkpoint, and check what was written.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--model_weight", default="1024_2048_model.pth", help="weights that train.py wrote")
    parser.add_argument("--format", default="onnx", choices=FORMATS, help="what to write")
    parser.add_argument("--height", type=int, default=1024, help="picture height")
    parser.add_argument("--width", type=int, default=2048, help="picture width")
    parser.add_argument("--dynamic", action=argparse.BooleanOptionalAction, default=False, help="for any size")
    parser.add_argument("--precision", default="fp32", help="fp32, bf16, fp16 or int8, where the format has it")
    parser.add_argument("--pictures", metavar="FOLDER", help="to calibrate int8 and to check with; else drawn ones")
    parser.add_argument("--output", help="file to write (default: beside the weights)")
    args = parser.parse_args()
    check_size((args.height, args.width), "--height, --width")
    check_precision(args.format, args.precision)
    if args.precision == "int8" and not args.pictures:
        raise UserError("int8 has to be calibrated: name a folder of street pictures with --pictures")
    ending = FORMATS[args.format]
    if args.output and Path(args.output).suffix != ending:
        raise UserError(f"--output is {args.output}, expected a name that ends with {ending} for {args.format}")
    return args


def main() -> int:
    """Exports a checkpoint; what does not agree with PyTorch is not kept."""
    args = parse_args()
    model, _ = load_model(args.model_weight)
    pictures = read_pictures(args.pictures)
    output = Path(args.output) if args.output else Path(args.model_weight).with_suffix(FORMATS[args.format])
    writable_folder(output.absolute().parent)
    source = hashlib.sha256(Path(args.model_weight).read_bytes()).hexdigest()
    size = None if args.dynamic else (args.height, args.width)
    # Of a dynamic file, two sizes are not the one it was traced at.
    sizes = [(256, 512), (360, 480), (333, 417)] if args.dynamic else [size]

    def scaled(height: int, width: int) -> list[np.ndarray]:
        return [cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA) for picture in pictures]

    def check(network: Network) -> None:
        least = AGREEMENT[args.precision]
        for height, width in sizes:
            share = agreement(model, network, scaled(height, width))
            print(
                f"{height}x{width}: {100 * share:.3f} % of the pixels have PyTorch's label (at least {100 * least:g} %)"
            )
            if share < least:
                raise UserError(
                    f"{network.name} agrees with PyTorch on {100 * share:.2f} % of the pixels, expected at least "
                    f"{100 * least:g} %: nothing was written; take another precision"
                )

    export(model, describe(model, source, args.precision, size), output, args.format, pictures, check)
    files = [output, output.with_suffix(".bin")] if args.format == "openvino" else [output]
    print(f"{', '.join(map(str, files))}: {args.precision}, {'any size' if args.dynamic else f'{size[0]}x{size[1]}'}")
    return 0


def _say(message: str) -> None:
    print(message, file=sys.stderr)


if __name__ == "__main__":
    run_cli(main, DataError)
