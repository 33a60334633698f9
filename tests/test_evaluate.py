"""The reported number against the official script, and the files that it reads."""

from __future__ import annotations

import json
import math
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from conftest import ROOT, assert_user_error, refused, run_script, write_frame
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from runs import assert_equal_scores, official_scores
from torch.nn import functional as F

from evaluation.evaluate import confusion_matrix, evaluate
from evaluation.prediction_files import PredictionWriter
from evaluation.scores import Scores
from frames.cityscapes import find_samples
from frames.classes import CITYSCAPES, LABELS
from frames.samples import Sample, read_at_width, read_pair
from inference.engine import Engine

VALID_IDS = [label.id for label in LABELS if label.train_id != 255]


@pytest.fixture(params=range(4))
def label_maps(request, tmp_path) -> tuple[Path, dict[str, np.ndarray]]:
    """Ground truth on disk and predictions in memory; some classes are absent, some only predicted."""
    rng = np.random.default_rng(request.param)
    in_truth = rng.choice([label.id for label in LABELS], size=9, replace=False)
    in_truth[0] = rng.choice(VALID_IDS)  # at least one class that counts
    predicted = rng.choice(VALID_IDS, size=8, replace=False)
    predictions = {}
    for index in range(3):
        name = f"valstadt_000000_{index:06d}"
        truth = rng.choice(in_truth, size=(40, 56)).astype(np.uint8)
        _, label = write_frame(tmp_path / "data", "val", name, np.zeros((40, 56, 3), np.uint8), truth)
        cv2.imwrite(str(label).replace("labelIds", "instanceIds"), truth.astype(np.uint16))
        guess = rng.choice(predicted, size=truth.shape)
        right = np.isin(truth, predicted) & (rng.random(truth.shape) < 0.6)
        ids = np.where(right, truth, guess)
        predictions[name] = np.searchsorted(VALID_IDS, ids).astype(np.uint8)
    return tmp_path / "data", predictions


def test_scores_equal_the_official_script(label_maps, tmp_path) -> None:
    """Averages over the wrong classes, category IoU from class IoU, ignored pixels counted: the usual differences."""
    data, predictions = label_maps
    samples = find_samples(data, "val")
    writer = PredictionWriter(tmp_path / "results", samples, CITYSCAPES)
    order = iter(samples)

    def logits(images: torch.Tensor) -> torch.Tensor:  # highest for the class that is to be predicted
        train_ids = torch.from_numpy(predictions[next(order).name]).long()
        return F.one_hot(train_ids, len(CITYSCAPES)).permute(2, 0, 1)[None].float()

    scores = evaluate(Engine(logits, False, "given"), samples, CITYSCAPES, outputs=[writer])
    official = official_scores(data, tmp_path / "results", tmp_path / "export")
    assert_equal_scores(scores.as_json(), official)
    counted = np.array(official["confMatrix"])[np.ix_(VALID_IDS, VALID_IDS)]
    np.testing.assert_array_equal(scores.confusion, counted)
    assert scores.pixel_accuracy == pytest.approx(np.trace(counted) / counted.sum(), abs=1e-12)


def test_absent_and_only_predicted_classes() -> None:
    """A class that is nowhere must not pull the mean down; one that is only predicted must."""
    confusion = np.zeros((len(CITYSCAPES), len(CITYSCAPES)), np.int64)
    confusion[0, 0], confusion[0, 1] = 3, 1
    scores = Scores(CITYSCAPES, confusion)
    assert scores.class_iou[0] == 0.75 and scores.class_iou[1] == 0 and np.isnan(scores.class_iou[2:]).all()
    assert scores.class_miou == 0.375 and scores.class_miou_present == 0.75
    assert scores.category_miou == 1.0  # road and sidewalk are both flat
    assert scores.as_json()["classScores"]["building"] is None
    assert "building" in scores.table() and "-" in scores.table()


def test_nothing_labelled_gives_no_number() -> None:
    """A division by zero, or a score of 0 or 1, where there was nothing to score."""
    scores = Scores(CITYSCAPES, np.zeros((len(CITYSCAPES), len(CITYSCAPES)), np.int64))
    assert math.isnan(scores.class_miou) and math.isnan(scores.pixel_accuracy)
    assert scores.as_json()["averageScoreClasses"] is None and scores.as_json()["pixel_accuracy"] is None


_train_ids = arrays(np.uint8, (6, 7), elements=st.sampled_from([*range(len(CITYSCAPES)), 255]))


@settings(max_examples=60, deadline=None)
@given(_train_ids, arrays(np.uint8, (6, 7), elements=st.integers(0, len(CITYSCAPES) - 1)))
def test_confusion_matrix_counts_every_pixel_once(targets: np.ndarray, predictions: np.ndarray) -> None:
    """Rows and columns swapped, or uint8 that wraps around in the pair's index."""
    expected = np.zeros((len(CITYSCAPES), len(CITYSCAPES)), np.int64)
    for truth, guess in zip(targets.ravel(), predictions.ravel(), strict=True):
        if truth != 255:
            expected[truth, guess] += 1
    got = confusion_matrix(torch.from_numpy(targets), torch.from_numpy(predictions), 19)
    assert got.dtype == torch.int64
    np.testing.assert_array_equal(got.numpy(), expected)


def test_second_prediction_of_a_frame_is_refused(tmp_path) -> None:
    """A stale or color PNG with a frame's prefix ends the official script after hours of training."""
    samples = [Sample("a_000000_000000", Path("x"), None)]
    stale = tmp_path / "results" / "old" / "a_000000_000000_leftImg8bit.png"
    stale.parent.mkdir(parents=True)
    stale.write_bytes(b"x")
    with refused(stale, "a_000000_000000"):
        PredictionWriter(tmp_path / "results", samples, CITYSCAPES)
    stale.unlink()
    writer = PredictionWriter(tmp_path / "results", samples, CITYSCAPES, tmp_path / "results")
    writer.write(*writer.encode_labels(samples[0], np.zeros((4, 4), np.uint8)))
    PredictionWriter(tmp_path / "results", samples, CITYSCAPES, tmp_path / "results")  # our own two do not disturb


def test_command_line_agrees_with_the_official_script(frames, weights, tmp_path) -> None:
    """The JSON that users compare must be the official one, through the whole path from checkpoint to PNG."""
    flags = ["--data_path", frames, "--model_weight", weights, "--device", "cpu", "--workers", 0]
    result = run_script("evaluate.py", *flags, "--save_dir", "results", "--json", "scores.json", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert_equal_scores(scores, official_scores(frames, tmp_path / "results", tmp_path / "export"))
    assert f"{100 * scores['pixel_accuracy']:.2f} %" in result.stdout
    assert len(list((tmp_path / "results").rglob("*.png"))) == 2
    predicted = cv2.imread(str(next((tmp_path / "results").glob("*.png"))), cv2.IMREAD_UNCHANGED)
    assert predicted.shape == (64, 96) and set(np.unique(predicted)) <= set(VALID_IDS)


def test_labels_from_train_ids_are_said(frames, weights, tmp_path) -> None:
    """Scores on labels that differ from the official ones, without a word."""
    label = sorted(frames.rglob("val/valstadt/*labelIds.png"))[0]
    train_ids = CITYSCAPES.labels.table[cv2.imread(str(label), cv2.IMREAD_UNCHANGED)]
    cv2.imwrite(str(label).replace("labelIds", "labelTrainIds"), train_ids)
    flags = ["--data_path", frames, "--model_weight", weights, "--device", "cpu", "--workers", 0]
    both = run_script("evaluate.py", *flags, cwd=tmp_path)
    label.unlink()
    one = run_script("evaluate.py", *flags, cwd=tmp_path)
    assert "labelTrainIds" not in both.stdout and all(str(noun) in one.stdout for noun in ("1", "2"))
    assert both.stdout.splitlines()[1:] == one.stdout.splitlines()[2:]  # the same labels, hence the same scores


def test_outputs_that_cannot_be_written_stop_before_the_work(frames, weights, tmp_path) -> None:
    """Half an hour of predictions, then a traceback because the folder is not there."""
    (tmp_path / "file").write_text("x")
    flags = ["--data_path", frames, "--model_weight", weights, "--device", "cpu", "--workers", 0]
    for output in (["--save_dir", "file/x"], ["--json", "file/x.json"]):
        assert_user_error(run_script("evaluate.py", *flags, *output, cwd=tmp_path))


def test_test_split_is_only_predicted(frames, weights, tmp_path) -> None:
    """Scores against the dummy labels of the test split look like a result and are none."""
    flags = ["--data_path", frames, "--model_weight", weights, "--split", "test", "--device", "cpu", "--workers", 0]
    result = run_script("evaluate.py", *flags, cwd=tmp_path, CITYSCAPES_RESULTS=str(tmp_path / "submission"))
    assert result.returncode == 0 and "mIoU" not in result.stdout, result.stderr
    assert [path.name for path in (tmp_path / "submission").iterdir()] == ["teststadt_000000_000000_pred_labelIds.png"]
    assert_user_error(run_script("evaluate.py", *flags, "--json", "x.json", cwd=tmp_path), "--json")


def test_predictions_of_two_runs_are_never_mixed(tmp_path) -> None:
    """A folder with the predictions of other frames, or of an earlier run where this one was interrupted."""
    samples = [Sample(f"a_000000_00000{i}", Path("x"), None, folder="a") for i in range(2)]
    writer = PredictionWriter(tmp_path, samples, CITYSCAPES)
    for sample in samples:
        writer.write(*writer.encode_labels(sample, np.zeros((4, 4), np.uint8)))
    with refused("a_000000_000001_pred"):
        PredictionWriter(tmp_path, samples[:1], CITYSCAPES)

    def interrupted() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate(
            None,
            samples,
            CITYSCAPES,
            outputs=[PredictionWriter(tmp_path, samples, CITYSCAPES)],
            before_each=interrupted,
            read=_black,
        )
    assert not list(tmp_path.iterdir())


def _black(sample: Sample) -> tuple[np.ndarray, np.ndarray]:
    return np.zeros((64, 96, 3), np.uint8), np.zeros((64, 96), np.uint8)


def test_scores_at_another_width_are_of_resized_frames(frames, tmp_path) -> None:
    """Scores at 1024 that are those at the files' own size, or labels that a smooth resize blends."""
    weights = ROOT / "weights" / "street.pth"
    flags = ["--data_path", frames, "--model_weight", weights, "--device", "cpu", "--workers", 0]
    plain, wide = (
        run_script("evaluate.py", *flags, "--json", tmp_path / f"{name}.json", *more, cwd=tmp_path)
        for name, more in (("plain", ()), ("wide", ("--width", "192")))
    )
    assert plain.returncode == wide.returncode == 0 and "192 wide" in wide.stdout, wide.stderr
    assert (tmp_path / "plain.json").read_text() != (tmp_path / "wide.json").read_text()
    sample = find_samples(frames, "val")[0]
    image, label = read_at_width(sample, 192)
    assert image.shape == (128, 192, 3) and label.shape == (128, 192)
    original = read_pair(sample)[1]
    assert set(np.unique(label)) <= set(np.unique(original))
    np.testing.assert_array_equal(label[::2, ::2], original)
    for more, words in ((("--width", "8"), "--width|8"), (("--width", "64", "--save_dir", "p"), "without --save_dir")):
        assert_user_error(run_script("evaluate.py", *flags, *more, cwd=tmp_path), *words.split("|"))


def test_an_input_is_never_replaced(frames, weights, tmp_path) -> None:
    """Scores written over a label, or over the weights that they are of."""
    label = sorted(frames.rglob("val/valstadt/*labelIds.png"))[0]
    (tmp_path / "link").symlink_to(label)
    flags = ["--data_path", frames, "--model_weight", weights, "--device", "cpu", "--workers", 0]
    for path in (weights, label, tmp_path / "link"):
        before = path.read_bytes()
        assert_user_error(run_script("evaluate.py", *flags, "--json", path, cwd=tmp_path))
        assert path.read_bytes() == before


def test_a_name_that_the_file_system_refuses_costs_one_prediction(frames, weights, tmp_path) -> None:
    """An hour of predictions that ends at a name of 239 characters, whose prediction's would have 257."""
    for path in frames.rglob("*teststadt_000000_000000_*"):
        if "leftImg8bit" in path.name:
            path.rename(path.with_name(path.name.replace("teststadt_000000_000000", "t" * 239)))
    flags = ["--data_path", frames, "--model_weight", weights, "--device", "cpu", "--workers", 0, "--save_dir", "r"]
    write_frame(frames, "test", "a_000000_000001", np.zeros((64, 96, 3), np.uint8), None)
    flags += ["--split", "test"]
    result = run_script("evaluate.py", *flags, cwd=tmp_path)
    assert result.returncode == 1 and "left out: cannot write" in result.stderr, result.stderr
    assert [path.name for path in (tmp_path / "r").iterdir()] == ["a_000000_000001_pred_labelIds.png"]
