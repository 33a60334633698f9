"""Loading weights: what is accepted, what is refused and how."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
from conftest import assert_user_error, refused, run_script

from deploy import read_pictures
from frames.classes import CITYSCAPES
from frames.folders import find_pictures
from inference.checkpoints import initial_model, load_model
from inference.predictor import load_predictor
from model import FastSCNN
from utils import UserError, save_checkpoint


def test_own_checkpoint_and_bare_state_dict_give_the_same(weights, tmp_path) -> None:
    """A checkpoint that loads into the wrong place, or without its metadata, predicts something else."""
    model, metadata = load_model(weights)
    assert metadata["epoch"] == 3 and not model.training
    torch.save(model.state_dict(), tmp_path / "bare.pth")
    bare, nothing = load_model(tmp_path / "bare.pth")
    assert "epoch" not in nothing and nothing["align_corners"] is False
    x = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        assert torch.equal(model(x), bare(x))


def test_align_corners_travels_with_the_weights(tmp_path) -> None:
    """Weights trained one way and run the other lose accuracy without an error."""
    for align_corners in (False, True):
        state = {"model": FastSCNN().state_dict(), "metadata": {"align_corners": align_corners}}
        save_checkpoint(tmp_path / "w.pth", state)
        assert load_model(tmp_path / "w.pth")[0].align_corners is align_corners


def test_profiler_buffers_are_dropped_and_said(tmp_path, capsys) -> None:
    """thop's buffers in an old checkpoint break strict loading; dropping them silently hides a filter."""
    state = FastSCNN().state_dict()
    state |= {"classifier.conv.total_ops": torch.zeros(1), "classifier.conv.total_params": torch.zeros(1)}
    torch.save(state, tmp_path / "w.pth")
    load_model(tmp_path / "w.pth")
    said = capsys.readouterr().err
    assert "2 buffers" in said and "classifier.conv.total_ops" in said


def test_auxiliary_heads_are_loaded_when_there(tmp_path) -> None:
    """A checkpoint of a run with auxiliary losses must not count as another network."""
    model = FastSCNN(aux=True).eval()
    save_checkpoint(tmp_path / "w.pth", {"model": model.state_dict(), "metadata": {"align_corners": False}})
    loaded, _ = load_model(tmp_path / "w.pth")
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(loaded(x), model(x))


def test_a_head_of_another_size_is_reset_only_when_asked_for(tmp_path, capsys) -> None:
    """Fine-tuning that leaves a head random without a note, or never takes the weights of another data set."""
    torch.save(FastSCNN(num_classes=11).state_dict(), tmp_path / "w.pth")
    with refused("11", "19"):
        initial_model(tmp_path / "w.pth", CITYSCAPES, aux=False, reset_head=False)
    model = initial_model(tmp_path / "w.pth", CITYSCAPES, aux=False, reset_head=True)
    said = capsys.readouterr().err
    assert "2 tensors" in said and "classifier.conv.weight" in said
    saved = torch.load(tmp_path / "w.pth")
    same = [name for name, tensor in model.state_dict().items() if torch.equal(tensor, saved[name])]
    assert set(saved) - set(same) == {"classifier.conv.weight", "classifier.conv.bias"}


def test_predictor_returns_train_ids(weights) -> None:
    """Labels of another type or layout than every caller expects."""
    image = np.random.default_rng(0).integers(0, 256, (50, 70, 3), np.uint8)
    labels = load_predictor(weights)(image)
    assert labels.shape == (50, 70) and labels.dtype == np.uint8 and labels.max() < 19


def test_the_smallest_picture_is_taken(weights) -> None:
    """A limit that refuses the size that it names."""
    assert load_predictor(weights)(np.zeros((32, 32, 3), np.uint8)).shape == (32, 32)


SHAPE = (40, 48, 3)


@pytest.mark.parametrize(
    ("picture", "words"),
    [
        (np.zeros((31, 70, 3), np.uint8), "31x70|32x32"),
        (np.zeros((70, 31, 3), np.uint8), "70x31|32x32"),
        (np.zeros((0, 0, 3), np.uint8), "0x0|32x32"),
        (np.zeros(0, np.uint8), "0|uint8"),
        (np.zeros(SHAPE[:2], np.uint8), "40|48|uint8"),
        (np.zeros((40, 48, 1), np.uint8), "40|48|1|uint8"),
        (np.zeros((40, 48, 2), np.uint8), "40|48|2|uint8"),
        (np.zeros((40, 48, 4), np.uint8), "40|48|4|uint8"),
        (np.zeros((1, *SHAPE), np.uint8), "1|40|48|3|uint8"),
        (np.zeros(SHAPE, np.uint16), "uint16|uint8"),
        (np.zeros(SHAPE, np.int8), "int8|uint8"),
        (np.zeros(SHAPE, np.float32), "uint8"),
        (np.zeros(SHAPE, bool), "uint8"),
        (None, "uint8"),
    ],
)
def test_pictures_that_are_refused(weights, picture, words: str) -> None:
    """An array that is taken for something else, or an error of some inner layer."""
    with refused(*words.split("|")):
        load_predictor(weights)(picture)


@pytest.mark.filterwarnings("error")
def test_pictures_of_any_memory_layout_are_taken(weights) -> None:
    """Channels reversed by a stride, a crop, a transposed or read-only array: other pixels, or a warning on stderr."""
    predict = load_predictor(weights)
    picture = np.random.default_rng(0).integers(0, 256, SHAPE, np.uint8)
    expected = predict(picture)
    wide = np.zeros((80, 96, 3), np.uint8)
    wide[::2, ::2] = picture
    read_only = picture.copy()
    read_only.flags.writeable = False
    for same in (picture[..., ::-1].copy()[..., ::-1], np.asfortranarray(picture), wide[::2, ::2], read_only):
        np.testing.assert_array_equal(predict(same), expected)
    np.testing.assert_array_equal(picture, read_only)


def test_pictures_for_calibration_come_from_the_whole_folder(tmp_path) -> None:
    """The first city of the alphabet alone, or more pictures than there is time for."""
    for index in range(12):
        cv2.imwrite(str(tmp_path / f"{index:02d}.png"), np.full((2, 2, 3), index, np.uint8))
    found, _ = find_pictures(tmp_path)
    assert [int(picture.max()) for picture in read_pictures(found, 4)] == [0, 3, 6, 9]
    assert len(read_pictures(found, 5)) == 4 and len(read_pictures(found, 100)) == 12


class Payload:
    """A pickle that writes a file when it is loaded."""

    def __init__(self, path: str):
        self.path = path

    def __reduce__(self):
        return (open, (self.path, "w"))


def _missing(path):
    return "no weight file"


def _truncated(path):
    torch.save(FastSCNN().state_dict(), path)
    path.write_bytes(path.read_bytes()[:100_000])
    return "get it again"


def _empty(path):
    path.write_bytes(b"")
    return "again"


def _text(path):
    path.write_text("<html>not found</html>")
    return "again"


def _code(path):
    torch.save({"model": FastSCNN().state_dict(), "evil": Payload(str(path.with_name("executed")))}, path)
    return "could execute code"


def _whole_module(path):
    torch.save(FastSCNN(), path)
    return "could execute code"


def _other_network(path):
    torch.save({"backbone.weight": torch.zeros(2), "backbone.bias": torch.zeros(2)}, path)
    return "2 unknown (first: backbone.weight)"


def _missing_key(path):
    state = FastSCNN().state_dict()
    del state["classifier.conv.bias"]
    torch.save(state, path)
    return "1 missing (first: classifier.conv.bias)"


def _tensor(path):
    torch.save(torch.zeros(3), path)
    return "expected a checkpoint"


BAD_WEIGHTS = [_missing, _truncated, _empty, _text, _code, _whole_module, _other_network, _missing_key, _tensor]


@pytest.mark.parametrize("spoil", BAD_WEIGHTS, ids=lambda function: function.__name__.strip("_"))
def test_bad_weights_are_refused(tmp_path, spoil) -> None:
    """'Loaded 0 parameters' and a random network, code that runs on loading, a traceback of the zip reader."""
    path = tmp_path / "weights.pth"
    words = spoil(path)
    with pytest.raises(UserError) as error:
        load_model(path)
    assert words in str(error.value) and str(path) in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("script", ["evaluate.py", "viewer.py"])
def test_scripts_refuse_bad_weights_in_one_line(script: str, frames, tmp_path) -> None:
    """The scripts must pass the message on as one line with status 2, and leave nothing half written."""
    _code(tmp_path / "evil.pth")
    flags = ["--data_path", frames, "--model_weight", tmp_path / "evil.pth"]
    if script == "viewer.py":
        flags += ["--input_pic", "val/valstadt/valstadt_000000_000000_leftImg8bit.png"]
    assert_user_error(run_script(script, *flags, cwd=tmp_path), "evil.pth")
    assert not (tmp_path / "executed").exists() and not list(tmp_path.glob("*.png"))
