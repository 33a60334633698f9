"""The network on every engine, exported files, and what is refused."""

from __future__ import annotations

import copy
import json
import os
import re
import shutil
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from conftest import ROOT, assert_user_error, refused, run_process, run_script
from hypothesis import given, settings
from hypothesis import strategies as st
from makers import normalise, random_statistics
from torch import nn

from deploy import read_pictures
from frames.classes import CITYSCAPES
from frames.folders import find_pictures
from inference.checkpoints import load_model
from inference.engine import FORMATS, PRECISIONS, export_metadata
from inference.export import AGREEMENT, agreement, exported_aside, write_onnx
from inference.folded import FoldedNetwork, fold_batch_norm
from inference.openvino_engine import openvino_engine
from inference.predictor import load_engine, load_predictor
from inference.torch_engine import torch_engine
from inference.weight_files import METADATA
from model import FastSCNN
from street.scene import draw_scene
from utils import UserError

WEIGHTS = ROOT / "weights" / "street.pth"
SIZES = ((96, 160), (97, 131), (64, 256))  # none of them is the size that a dynamic file is traced at


@pytest.fixture(scope="module")
def model() -> FastSCNN:
    """The shipped network."""
    return load_model(WEIGHTS)[0]


@pytest.fixture(scope="module")
def pictures() -> list[np.ndarray]:
    """Drawn scenes of three sizes."""
    return [draw_scene(seed, height, width)[0] for seed, (height, width) in enumerate(SIZES)]


@pytest.fixture(scope="module")
def exported(model, tmp_path_factory) -> Path:
    """A dynamic ONNX file."""
    path = tmp_path_factory.mktemp("exported") / "network.onnx"
    write_onnx(model, export_metadata(model, "0" * 64, "fp32", None), path)
    return path


@pytest.fixture(scope="module")
def pair(model, tmp_path_factory) -> Path:
    """OpenVINO's two files, for one size."""
    path = tmp_path_factory.mktemp("pair") / "n.xml"
    with exported_aside(model, export_metadata(model, "", "fp16", (96, 160)), path, "openvino", []):
        assert not path.exists()
    assert sorted(file.name for file in path.parent.iterdir()) == ["n.bin", "n.xml"]
    return path


@pytest.fixture
def traced_once(exported, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exports of the same weights take the dynamic ONNX file that is there, instead of seconds of tracing for each."""
    import onnx

    def copy_onnx(model: FastSCNN, metadata: dict, path: Path) -> None:
        proto = onnx.load(exported)
        proto.metadata_props[0].value = json.dumps(metadata)
        onnx.save(proto, path)

    for module in ("export", "predictor"):
        monkeypatch.setattr(f"inference.{module}.write_onnx", copy_onnx)


def test_folding_leaves_the_function_and_the_model_alone() -> None:
    """A batch normalisation that is folded into another convolution, or folding that changes the model itself."""
    model, x = random_statistics(FastSCNN(5)), torch.randn(1, 3, 70, 90)
    with torch.no_grad():
        before = model(x)
        folded = fold_batch_norm(model)
        assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
        torch.testing.assert_close(folded(x), before, atol=1e-4, rtol=1e-4)
        assert torch.equal(model(x), before)


@settings(max_examples=25, deadline=None)
@given(st.integers(32, 140), st.integers(32, 140), st.integers(1, 60), st.sampled_from([1, 2]))
def test_strips_are_the_whole(height: int, width: int, cells: int, batch: int) -> None:
    """A row at the edge of a strip that sees padding where its neighbour is, or a last row that is left out."""
    torch.manual_seed(0)
    whole, sizes = random_statistics(FastSCNN(5)), set()
    x = torch.randint(0, 256, (batch, height, width, 3), dtype=torch.uint8)
    split = FoldedNetwork(whole, strips=True)
    split.model.learning_to_downsample.register_forward_hook(lambda *call: sizes.add(call[2].shape[2]))
    with torch.no_grad(), pytest.MonkeyPatch.context() as patch:
        patch.setattr("inference.folded.STRIP", cells)
        torch.testing.assert_close(split(x), FoldedNetwork(whole)(x))
    assert max(sizes) <= max(1, 8 * cells // width) + 1


@pytest.mark.parametrize(("scale", "align_corners"), [(1.0, False), (1.5, True)])
def test_pictures_are_normalised_inside(scale: float, align_corners: bool) -> None:
    """A deployed network that wants normalised input, or forgets input_scale or align_corners."""
    model = random_statistics(FastSCNN(align_corners=align_corners, input_scale=scale))
    images = torch.randint(0, 256, (2, 70, 90, 3), dtype=torch.uint8)
    with torch.no_grad():
        torch.testing.assert_close(
            FoldedNetwork(model)(images), model.logits(model.resize(normalise(images)))[0], atol=1e-3, rtol=1e-4
        )


@pytest.mark.parametrize("align_corners", [False, True])
def test_labels_are_enlarged_as_the_weights_were_trained(align_corners: bool, model, pictures) -> None:
    """Weights of the original whose labels are shifted by up to half a cell, without an error."""
    model = copy.deepcopy(model)
    model.align_corners = align_corners
    images = torch.from_numpy(pictures[1])[None]
    network = torch_engine(model, torch.device("cpu"), "fp32")
    with torch.no_grad():
        expected = model(normalise(images)).argmax(1)
    assert len(expected.unique()) > 2 and (network.labels(images) == expected).float().mean() > 0.999


@pytest.mark.parametrize(("backend", "precision"), [("torch", "fp32"), ("torch", "bf16"), ("openvino", "bf16")])
def test_labels_of_a_checkpoint_agree(backend: str, precision: str, model, traced_once) -> None:
    """An engine or a precision that predicts something else."""
    network = load_engine(WEIGHTS, "auto", backend, precision)[0]
    assert network.name == f"{backend} {precision}, input_side 1024"
    street = cv2.imread(str(ROOT / "docs" / "street_input.jpg"))[..., ::-1].copy()
    assert agreement(model, network, [street]) >= {"fp32": 1.0, "bf16": 0.99}[precision]


@pytest.mark.parametrize("backend", ["onnx", "openvino"])
def test_dynamic_file_is_right_at_every_size(backend: str, exported, model, pictures) -> None:
    """A pooling matrix that was traced as a constant gives wrong logits at every other size, without an error."""
    network, metadata = load_engine(exported, "auto", backend)
    assert metadata["classes"].names[0] == "road" and metadata["palette"][0] == list(CITYSCAPES.colors[0])
    for picture in pictures:
        batch = torch.from_numpy(picture)[None]
        with torch.no_grad():
            expected = model.logits(model.resize(normalise(batch)))[0]
        torch.testing.assert_close(network.logits(batch), expected, atol=2e-3, rtol=1e-3)
    assert agreement(model, network, pictures) >= 0.9999


def test_results_are_not_overwritten_by_the_next_picture(exported, pictures) -> None:
    """OpenVINO's output is memory of its own, which the next picture fills."""
    network, _ = openvino_engine(exported)
    first, second = (torch.from_numpy(pictures[0])[None].roll(i, 2) for i in (0, 40))
    logits = network.logits(first)
    kept = logits.clone()
    network.logits(second)
    assert torch.equal(logits, kept)


@pytest.mark.parametrize(
    ("backend", "options"),
    [("onnx", {"input_scale": 1.5}), ("onnx", {"input_side": 512}), ("openvino", {"input_side": 128})],
)
def test_exported_enlargement(backend, options, tmp_path, pictures) -> None:
    """The size of a dynamic file depends on the picture's; the example that is traced is itself 512 wide."""
    torch.manual_seed(0)
    model = random_statistics(FastSCNN(**options))
    write_onnx(model, export_metadata(model, "", "fp32", None), tmp_path / "n.onnx")
    network, metadata = load_engine(tmp_path / "n.onnx", backend=backend)
    assert options.items() <= metadata.items()
    for picture in [*pictures, pictures[0].transpose(1, 0, 2).copy()]:
        batch = torch.from_numpy(picture)[None]
        with torch.no_grad():
            expected = model.logits(model.resize(normalise(batch)))[0]
        torch.testing.assert_close(network.logits(batch), expected, atol=5e-3, rtol=1e-3)


def test_a_file_of_one_size_refuses_others(pair, pictures) -> None:
    """A picture that is resized in silence, or an error of some inner layer."""
    predict = load_predictor(pair)
    assert predict(pictures[0]).shape == (96, 160)
    with refused("96x160", "97x131"):
        predict(pictures[1])


def test_a_file_is_opened_only_as_what_it_is(pair, exported) -> None:
    """A precision or an engine that a file does not have, and an answer in another one."""
    with refused("fp16", "int8"):
        load_engine(pair, precision="int8")
    with refused("fp32", "int8"):
        load_engine(exported, precision="int8")
    for path, backend in ((pair, "onnx"), (pair, "torch"), (exported, "torch-graph")):
        with refused(backend):
            load_engine(path, "auto", backend)


@pytest.mark.parametrize("format", FORMATS)
def test_what_disagrees_is_not_kept(format: str, tmp_path, traced_once, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that failed its check and is deployed all the same, or an earlier one that is lost to the failure."""
    monkeypatch.setitem(AGREEMENT, "fp32", 1.1)
    names = ["n.onnx"] if format == "onnx" else ["n.bin", "n.xml"]
    for name in names:
        (tmp_path / name).write_text("earlier")
    flags = ["--model_weight", WEIGHTS, "--format", format, "--height", 64, "--width", 96, "--output", names[-1]]
    result = run_script("deploy.py", *flags, cwd=tmp_path)
    assert_user_error(result, format, "fp32", "100.00", "110")
    assert result.stdout.count("64x96: ") == 1
    assert {file.name: file.read_text() for file in tmp_path.iterdir()} == dict.fromkeys(names, "earlier")


def test_the_weights_are_in_place_before_the_file_that_is_opened(model, tmp_path, traced_once, monkeypatch) -> None:
    """A new .xml on old weights, for whoever opens it between the two renames."""
    renamed = []
    replace = os.replace
    metadata = export_metadata(model, "", "fp32", (64, 96))
    with exported_aside(model, metadata, tmp_path / "n.xml", "openvino", []):
        assert not list(tmp_path.iterdir())
        monkeypatch.setattr("utils.os.replace", lambda old, new: (renamed.append(Path(new)), replace(old, new)))
    assert renamed == [tmp_path / "n.bin", tmp_path / "n.xml"]


def test_foreign_and_damaged_files_are_refused(tmp_path, exported) -> None:
    """Another network's file whose output is taken for logits of our classes."""
    import onnx

    proto = onnx.load(exported)
    (entry,) = proto.metadata_props
    metadata = json.loads(entry.value)
    for name, value, message in (("none", None, ""), ("other", json.dumps({**metadata, "classes": ["a", "b"]}), "")):
        del proto.metadata_props[:]
        if value:
            proto.metadata_props.append(onnx.StringStringEntryProto(key=METADATA, value=value))
        onnx.save(proto, tmp_path / f"{name}.onnx")
        for backend in ("onnx", "openvino"):
            with refused(*message.split("|")):
                load_engine(tmp_path / f"{name}.onnx", "auto", backend)
    (tmp_path / "half.onnx").write_bytes(exported.read_bytes()[:100_000])
    for backend in ("onnx", "openvino"):
        with refused("half.onnx"):
            load_engine(tmp_path / "half.onnx", "auto", backend)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--backend", "tensorrt"), "tensorrt"),
        (("--backend", "onnx", "--precision", "bf16"), "onnx|bf16|fp32|int8"),
        (("--backend", "openvino", "--precision", "int8"), ""),
        (("--backend", "openvino", "--device", "cuda"), "openvino"),
        (("--backend", "torch-graph", "--device", "cpu"), "torch-graph"),
        (("--precision", "fp8"), ""),
    ],
)
def test_backends_that_do_not_exist(flags, message: str, tmp_path) -> None:
    """A name that is not known, a combination that does not exist, or another backend than the one asked for."""
    picture = ["--model_weight", WEIGHTS, "--input_pic", ROOT / "docs" / "network.png"]
    assert_user_error(run_script("viewer.py", *picture, *flags, cwd=tmp_path), *message.split("|"))


@pytest.mark.parametrize(
    ("backend", "name"), [("onnx", "onnxruntime"), ("openvino", "openvino"), ("onnx", "onnxscript")]
)
def test_missing_packages_are_named(backend: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An import error that does not say what to install."""
    monkeypatch.setitem(sys.modules, name, None)
    with refused(name, "requirements-deploy.txt"):
        load_engine(WEIGHTS, "auto", backend)


@pytest.mark.parametrize(
    ("format", "precision", "name"),
    [
        ("onnx", "fp32", "onnx"),
        ("onnx", "int8", "onnxruntime"),
        ("openvino", "fp32", "openvino"),
        ("openvino", "int8", "nncf"),
    ],
)
def test_packages_that_an_export_lacks_are_named(format, precision, name, model, tmp_path, monkeypatch) -> None:
    """A traceback after minutes of work, or half a file."""
    for module in [found for found in sys.modules if found.split(".")[0] == name] + [name]:
        monkeypatch.setitem(sys.modules, module, None)
    path = tmp_path / f"n.{'onnx' if format == 'onnx' else 'xml'}"
    monkeypatch.setattr("inference.export.write_onnx", lambda *args: pytest.fail("work before the check"))
    with (
        refused(name, "requirements-deploy.txt"),
        exported_aside(model, export_metadata(model, "", precision, (64, 96)), path, format, []),
    ):
        pass
    assert list(tmp_path.iterdir()) == []


def _no_weights(xml, weights) -> str:
    weights.unlink()
    return "has no n.bin beside it"


def _half_weights(xml, weights) -> str:
    weights.write_bytes(weights.read_bytes()[:1000])
    return "n.xml is damaged or no OpenVINO file"


def _half(xml, weights) -> str:
    xml.write_text(xml.read_text()[:900])
    return "n.xml is damaged or no OpenVINO file"


def _empty(xml, weights) -> str:
    xml.write_text("")
    return "n.xml is damaged or no OpenVINO file"


def _foreign(xml, weights) -> str:
    xml.write_text(re.sub(r"<fast_scnn[^>]*/>", "", xml.read_text()))
    return "n.xml"


def _half_the_metadata(xml, weights) -> str:
    xml.write_text(xml.read_text().replace("align_corners", "other"))
    return "n.xml"


def _other_classes(xml, weights) -> str:
    xml.write_text(xml.read_text().replace("&quot;road&quot;, ", ""))
    return "n.xml"  # there is a color more than there are names


@pytest.mark.parametrize(
    "spoil", [_no_weights, _half_weights, _half, _empty, _foreign, _half_the_metadata, _other_classes]
)
def test_openvino_pairs_that_are_refused(spoil, pair, tmp_path) -> None:
    """Half of a pair, or another network's, whose output is taken for logits of our classes."""
    xml, weights = (Path(shutil.copy(pair.with_suffix(suffix), tmp_path)) for suffix in (".xml", ".bin"))
    words = spoil(xml, weights)
    with pytest.raises(UserError) as error:
        load_engine(xml)
    assert words in str(error.value) and "\n" not in str(error.value) and "Exception" not in str(error.value)


@pytest.mark.parametrize("script", ["evaluate.py", "viewer.py"])
def test_scripts_refuse_bad_exported_files_in_one_line(script: str, pair, frames, tmp_path) -> None:
    """The scripts must pass the message on as one line with status 2."""
    xml, weights = (Path(shutil.copy(pair.with_suffix(suffix), tmp_path)) for suffix in (".xml", ".bin"))
    flags = ["--data_path", frames, "--model_weight", xml]
    if script == "viewer.py":
        flags += ["--input_pic", "val/valstadt/valstadt_000000_000000_leftImg8bit.png"]
    words = _other_classes(xml, weights)
    assert_user_error(run_script(script, *flags, cwd=tmp_path), words)
    (tmp_path / "n.onnx").write_bytes(b"no file of ONNX")
    flags[3] = tmp_path / "n.onnx"
    assert_user_error(run_script(script, *flags, cwd=tmp_path), "n.onnx")
    flags[3] = tmp_path / "none.onnx"
    assert_user_error(run_script(script, *flags, cwd=tmp_path), "none.onnx")


def test_export_flags_that_are_refused(tmp_path) -> None:
    """int8 without a range of its values, or a file whose ending says another format; before any work."""
    flags = ["--model_weight", WEIGHTS, "--format", "openvino"]
    int8 = [*flags, "--precision", "int8", "--dynamic", "--output", "n.xml"]
    assert_user_error(run_script("deploy.py", *int8, cwd=tmp_path))
    assert_user_error(run_script("deploy.py", *flags[:2], "--output", "n.xml", cwd=tmp_path), "onnx")
    assert list(tmp_path.iterdir()) == []


def test_command_line_calibrates_int8_at_the_size_of_the_file(tmp_path) -> None:
    """Pictures of another size than a graph of a fixed size takes."""
    (tmp_path / "pictures").mkdir()
    for seed in range(2):
        cv2.imwrite(str(tmp_path / "pictures" / f"{seed}.png"), draw_scene(seed, 128, 256)[0][..., ::-1])
    flags = ["--model_weight", WEIGHTS, "--format", "openvino", "--precision", "int8", "--height", 96, "--width", 160]
    result = run_script("deploy.py", *flags, "--pictures", "pictures", "--output", "n.xml", cwd=tmp_path)
    assert result.returncode in (0, 2), result.stderr  # drawn scenes are not what it was trained on
    assert "96x160: " in result.stdout and "99" in result.stdout
    written = [file.name for file in sorted(tmp_path.glob("n.*"))]
    if result.returncode == 0:
        assert written == ["n.bin", "n.xml"] and "n.xml, n.bin: int8, 96x160" in result.stdout
    else:
        assert written == [] and "agrees with PyTorch" in result.stderr


def test_command_line_exports_what_evaluate_reads(frames, tmp_path, traced_once) -> None:
    """The way from a checkpoint to the official numbers of its export, which accepts any size."""
    flags = ["--model_weight", WEIGHTS, "--format", "openvino", "--dynamic", "--output", "n.xml"]
    (tmp_path / "pictures").mkdir()
    cv2.imwrite(str(tmp_path / "pictures" / "0.png"), draw_scene(0, 256, 512)[0][..., ::-1])
    result = run_script("deploy.py", *flags, "--pictures", "pictures", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("100.000 % of the pixels have") == 3 and all(
        str(noun) in result.stdout for noun in ("n.xml", "n.bin", "fp32")
    )
    scored = run_script("evaluate.py", "--data_path", frames, "--model_weight", "n.xml", cwd=tmp_path)
    assert scored.returncode == 0 and all(str(noun) in scored.stdout for noun in ("openvino", "fp32")), scored.stderr


def test_exported_weights_that_are_not_finite_are_refused(exported, tmp_path) -> None:
    """NaN that OpenVINO's activations turn into 0: labels as from a whole network."""
    import onnx
    import openvino

    proto = onnx.load(exported)
    name, tensor = next((one.name, one) for one in proto.graph.initializer if len(one.dims) == 4 and one.dims[1] == 3)
    values = onnx.numpy_helper.to_array(tensor).copy()
    values[2] = np.nan
    tensor.CopyFrom(onnx.numpy_helper.from_array(values, name))
    onnx.save(proto, tmp_path / "n.onnx")
    graph = openvino.Core().read_model(tmp_path / "n.onnx")
    graph.set_rt_info(proto.metadata_props[0].value, METADATA)
    openvino.save_model(graph, tmp_path / "n.xml", compress_to_fp16=False)
    for file, backend in (("n.onnx", "onnx"), ("n.onnx", "openvino"), ("n.xml", "openvino")):
        with refused(file, "27 of 864"):
            load_engine(tmp_path / file, "auto", backend)


def test_exported_files_of_any_name_are_read(exported, pair, tmp_path, monkeypatch) -> None:
    """Endings in capitals that count as another format; names that are no UTF-8, or look like an address."""
    monkeypatch.chdir(tmp_path)
    for name in ("N.ONNX", "\udcff.onnx", "http:" + "//n.onnx", "folder.xml/*[1].onnx"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(exported, name)
        for backend in ("onnx", "openvino"):
            assert load_engine(name, "auto", backend)[0].name == f"{backend} fp32, input_side 1024"
    for xml, weights in (("N.XML", "N.BIN"), ("M.XML", "M.bin"), ("\udcff.xml", "\udcff.bin")):
        shutil.copy(pair, xml)
        shutil.copy(pair.with_suffix(".bin"), weights)
        assert load_engine(xml)[0].name == "openvino fp16, input_side 1024"


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("n.onnx", None, "ONNX"),
        ("n.xml", None, "OpenVINO"),
        ("n.onnx", b"<!doctype html>", "HTML|ONNX"),
        ("n.onnx", b'<?xml version="1.0"?><net name="x">', "OpenVINO|ONNX"),
        ("n.onnx", b"", "n.onnx|ONNX"),
        ("n.bin", b"version https:" + b"//git-lfs", "n.bin|LFS"),
    ],
)
def test_files_under_another_name_are_named(name, content, words: str, pair, tmp_path) -> None:
    """'Damaged' for a whole file of another format, or for what a download left in its place."""
    for suffix in (".xml", ".bin"):
        shutil.copy(pair.with_suffix(suffix), tmp_path / f"n{suffix}")
    (tmp_path / name).write_bytes(WEIGHTS.read_bytes() if content is None else content)
    with refused(*words.split("|")):
        load_engine(tmp_path / name.replace(".bin", ".xml"))


@pytest.mark.parametrize("format", FORMATS)
def test_an_export_that_agrees_less_can_be_accepted(format, tmp_path, traced_once, monkeypatch) -> None:
    """Another precision as the only way on, or a file that does not say how well it agrees."""
    monkeypatch.setitem(AGREEMENT, "fp32", 1.1)
    output = f"n{FORMATS[format]}"
    flags = ["--model_weight", WEIGHTS, "--format", format, "--height", 64, "--width", 96, "--output", output]
    words = "--pictures|--least_agreement|1"
    assert_user_error(run_script("deploy.py", *flags, cwd=tmp_path), *words.split("|"))
    result = run_script("deploy.py", *flags, "--least_agreement", 0.98, cwd=tmp_path)
    assert result.returncode == 0 and "98" in result.stdout, result.stderr
    network, metadata = load_engine(tmp_path / output)
    assert metadata["least_agreement"] == 0.98 and metadata["agreement"] == 1.0
    assert metadata["precision"] == "fp32" and network.labels(torch.zeros(1, 64, 96, 3, dtype=torch.uint8)).any()
    for share in (1.5, -0.1, "nan"):
        refused = run_script("deploy.py", *flags, "--least_agreement", share, cwd=tmp_path)
        assert_user_error(refused, "0", "1")


def test_inputs_are_never_replaced_by_an_export(tmp_path, monkeypatch) -> None:
    """Weights or a calibration picture that are gone: OpenVINO's second file ends with .bin, as weights may too."""
    monkeypatch.setattr("deploy.exported_aside", lambda *_: pytest.fail("work before the check"))
    (tmp_path / "pictures").mkdir()
    picture = cv2.imencode(".png", draw_scene(0, 64, 128)[0])[1].tobytes()
    (tmp_path / "pictures" / "p.onnx").write_bytes(picture)
    for name in ("w.bin", "w.onnx"):
        shutil.copy(WEIGHTS, tmp_path / name)
    (tmp_path / "link.onnx").symlink_to("w.bin")
    (tmp_path / "folder.onnx").mkdir()
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for flags, words in (
        (("--model_weight", "w.bin", "--format", "openvino"), "w.bin"),
        (("--model_weight", "w.onnx"), "w.onnx"),
        (("--model_weight", "w.bin", "--output", "link.onnx"), "link.onnx"),
        (("--model_weight", "w.bin", "--output", "pictures/p.onnx"), "pictures/p.onnx"),
        (("--model_weight", "w.bin", "--output", "folder.onnx"), "folder.onnx"),
        (("--model_weight", "w.bin", "--output", "n" * 251 + ".onnx"), "--output"),
    ):
        assert_user_error(run_script("deploy.py", *flags, "--pictures", "pictures", cwd=tmp_path), *words.split("|"))
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_an_export_of_any_name_is_written(tmp_path, traced_once) -> None:
    """A name that only Python can write, and none of the packages: after minutes of work, a traceback."""
    name = "x.onnx/" + "n" * 245 + "\udcff.XML"
    flags = ["--model_weight", WEIGHTS, "--format", "openvino", "--height", 64, "--width", 96]
    result = run_script("deploy.py", *flags, "--output", name, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert load_engine(tmp_path / name)[0].name == "openvino fp32, input_side 1024"
    assert len(list(tmp_path.rglob("*"))) == 3


def test_pictures_are_found_by_their_content(tmp_path) -> None:
    """Pictures of other formats than PNG and JPEG or behind a link that are passed over, hidden files that are read."""
    picture = draw_scene(0, 64, 128)[0]
    for name in ("in/a.bmp", "in/b.WebP", "in/.c.png", "in/@eaDir/d.png", "elsewhere/e.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(cv2.imencode(Path(name).suffix.lower(), picture)[1].tobytes())
    (tmp_path / "in" / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "in" / "notes.txt").write_text("no picture")
    found, _ = find_pictures(str(tmp_path / "in"))
    assert [path.name for path in found] == ["a.bmp", "b.WebP", "e.jpg"]
    assert [image.shape for image in read_pictures(found)] == [picture.shape] * 3
    (tmp_path / "empty").mkdir()
    flags = ["--model_weight", WEIGHTS, "--pictures", "empty"]
    assert_user_error(run_script("deploy.py", *flags, cwd=tmp_path))


def int8_tensors(path: Path) -> list[np.ndarray]:
    """The int8 weights of an exported file."""
    if path.suffix == ".onnx":
        import onnx

        found = [tensor for tensor in onnx.load(path).graph.initializer if tensor.data_type == onnx.TensorProto.INT8]
        return [onnx.numpy_helper.to_array(tensor) for tensor in found]
    import openvino

    nodes = openvino.Core().read_model(path).get_ordered_ops()
    constants = [node for node in nodes if node.get_type_name() == "Constant"]
    return [node.get_data() for node in constants if node.get_element_type() == openvino.Type.i8]


@pytest.mark.parametrize("format", ["onnx", "openvino"])
def test_int8_is_right_without_vnni_and_spares_what_matters(format, model, pictures, tmp_path, traced_once) -> None:
    """Sums that overflow on older processors: 97 % equal labels instead of 99.5; or errors in the very first layers."""
    path = tmp_path / f"network{FORMATS[format]}"
    with exported_aside(model, export_metadata(model, "", "int8", None), path, format, pictures) as network:
        assert network.name == f"{format} int8"
    weights = [tensor for tensor in int8_tensors(path) if tensor.ndim >= 4]
    shapes = {tensor.shape[:2] for tensor in weights}
    assert (384, 64) in shapes and (128, 128) in shapes  # the bottlenecks and the fusion are there,
    assert not {(32, 3), (48, 32), (64, 48), (19, 128)} & shapes  # learning to downsample and the class scores not
    assert max(int(np.abs(tensor.astype(int)).max()) for tensor in weights) <= 64


def test_every_backend_is_documented() -> None:
    """A README and documents that name other backends than the code."""
    text = "".join(path.read_text() for path in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")))
    assert all(f"`{name}`" in text for name in PRECISIONS)


def test_a_predictor_needs_no_package_for_pictures_or_plots(tmp_path) -> None:
    """`from inference.predictor import load_predictor` that loads what only the data set or the training needs."""
    script = (
        "import sys\n"
        f"sys.path.insert(0, {str(ROOT)!r})\n"
        "import numpy as np\n"
        "from inference.predictor import load_predictor\n"
        f"predict = load_predictor({str(WEIGHTS)!r}, 'cpu', 'torch')\n"
        "assert predict(np.zeros((64, 96, 3), np.uint8)).shape == (64, 96)\n"
        "print({name.split('.')[0] for name in sys.modules} & {'cityscapesscripts', 'PIL', 'matplotlib'})\n"
    )
    result = run_process("-c", script, cwd=tmp_path)
    assert result.returncode == 0 and result.stdout == "set()\n", (result.stdout, result.stderr)
