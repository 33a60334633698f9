"""The report of scores on disk: what its files say, and what is refused. test_report_page.py looks at the page."""

from __future__ import annotations

import base64
import csv
import functools
import json
import math
import os
import resource
import shutil
import signal
import time
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import assert_user_error, refused, run_script, start_script
from makers import ABOUT, read_data, read_picture, tiny_report
from runs import FLAGS as TRAIN_FLAGS
from tiny_sets import describe, put

from evaluation.evaluate import evaluate
from evaluation.scores import ScoredFrame, Scores
from frames.cityscapes import find_samples
from frames.classes import CITYSCAPES, Classes, LabelFormat, distinct_colors, plain_labels
from frames.samples import Sample, read_pair
from inference.predictor import load_engine
from training.losses import summed_cross_entropy
from utils import UserError
from web.other_report import PREFIX
from web.pictures import draw_pictures, picture_size
from web.report import PAGE, Report
from web.report_data import as_text


def score(frames: Path, weights: Path, report: Path, *flags: object, cwd: Path):
    """Runs evaluate.py with a report."""
    fixed = ("--data_path", frames, "--model_weight", weights, "--device", "cpu", "--workers", 0)
    return run_script("evaluate.py", *fixed, "--report", report, *flags, cwd=cwd)


def change(report: Path, edit: Callable[[dict], object]) -> None:
    """Changes the data of a report in place."""
    data = read_data(report)
    edit(data)
    (report / "data.js").write_bytes(PREFIX + json.dumps(data).encode() + b";\n")


def everything(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, hidden ones too, and its content."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_table_of_frames_is_that_of_the_scores(frames, weights, tmp_path) -> None:
    """A mean over the wrong classes, or numbers that are rounded on the way to a spreadsheet."""
    result = score(frames, weights, tmp_path / "r", "--json", "scores.json", cwd=tmp_path)
    assert result.returncode == 0 and str(tmp_path / "r" / "index.html") in result.stdout, result.stderr
    with open(tmp_path / "r" / "frames.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    network, _ = load_engine(weights, "cpu")
    samples = find_samples(frames, "val")
    assert [row["name"] for row in rows] == [sample.name for sample in samples] and len(rows) == 2
    for row, sample in zip(rows, samples, strict=True):
        alone = evaluate(network, [sample], CITYSCAPES)
        assert float(row["mean_iou"]) == alone.class_miou_present
        assert int(row["wrong_pixels"]) == alone.confusion.sum() - np.trace(alone.confusion)
        for name, iou in zip(CITYSCAPES.names, alone.class_iou, strict=True):
            assert row[f"IoU {name}"] == ("" if math.isnan(iou) else repr(float(iou)))
    official = json.loads((tmp_path / "scores.json").read_text())
    scores = read_data(tmp_path / "r")["scores"]
    assert scores["class_miou"] == official["averageScoreClasses"]
    assert scores["pixel_accuracy"] == official["pixel_accuracy"]
    assert scores["iou"] == [official["classScores"][name] for name in CITYSCAPES.names]


def test_a_report_changes_no_score(frames, weights, tmp_path) -> None:
    """Pixels that are counted twice, or another path to the numbers, once somebody wants to look at them."""
    network, _ = load_engine(weights, "cpu")
    samples = find_samples(frames, "val")
    plain = evaluate(network, samples, CITYSCAPES, loss=summed_cross_entropy)
    with Report(tmp_path / "r", CITYSCAPES, samples) as report:
        shown = evaluate(network, samples, CITYSCAPES, loss=summed_cross_entropy, outputs=[report])
    np.testing.assert_array_equal(plain.confusion, shown.confusion)
    assert plain.loss == shown.loss
    assert [path.name for path in tmp_path.iterdir()] == ["frames"]  # nothing is left of what was not finished


def test_pictures_hold_the_exact_labels_and_only_wrong_pixels(frames, weights, tmp_path) -> None:
    """Colors that lossy compression blends, errors where nothing is wrong, names of frames as names of files."""
    result = score(frames, weights, tmp_path / "r", "--save_dir", "p", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    for number, sample in enumerate(find_samples(frames, "val"), 1):
        _, truth = read_pair(sample)
        ids = cv2.imread(str(tmp_path / "p" / f"{sample.name}_pred_labelIds.png"), cv2.IMREAD_UNCHANGED)
        prediction = CITYSCAPES.labels.table[ids]
        np.testing.assert_array_equal(
            read_picture(tmp_path / "r", number, "prediction"), CITYSCAPES.palette[prediction]
        )
        shown = read_picture(tmp_path / "r", number, "truth")
        np.testing.assert_array_equal(shown[..., 3] > 0, truth != 255)
        np.testing.assert_array_equal(shown[truth != 255][:, :3], CITYSCAPES.palette[truth[truth != 255]])
        errors = read_picture(tmp_path / "r", number, "errors")
        wrong = (truth != 255) & (truth != prediction)
        np.testing.assert_array_equal(errors[..., 3] > 0, wrong)
        np.testing.assert_array_equal(errors[wrong][:, :3], CITYSCAPES.palette[prediction[wrong]])
        frame = read_data(tmp_path / "r")["frames"][number - 1]
        packed = np.frombuffer(zlib.decompress(base64.b64decode(frame["labels"])), np.uint8).reshape(2, 32, 48)
        np.testing.assert_array_equal(packed, [truth[::2, ::2], prediction[::2, ::2]])
    names = {path.name for path in (tmp_path / "r" / "pictures").iterdir()}
    kinds = ("input", "truth", "prediction", "errors")
    assert names == {f"{number:04d}_{kind}.webp" for number in (1, 2) for kind in kinds}


def test_large_and_long_frames_become_small_pictures() -> None:
    """A picture that is enlarged, or a side that WebP cannot hold after an hour of predictions."""
    assert picture_size((1024, 2048), 640) == (320, 640)
    assert picture_size((360, 480), 640) == (360, 480)
    assert picture_size((40_000, 100), 640) == (2560, 6)
    assert picture_size((10_000_000, 300), 4096)[0] == 16383
    assert picture_size((1, 100_000), 640) == (1, 640)


def test_reduced_labels_are_pixels_of_the_frame() -> None:
    """Classes that a smooth resize invents between two others, or errors where both pictures show the same."""
    rng = np.random.default_rng(0)
    truth, prediction = rng.choice(np.array([0, 18], np.uint8), (2, 301, 407))
    truth[:50] = 255
    image = np.zeros((301, 407, 3), np.uint8)
    pictures, packed = draw_pictures(image, truth, prediction, CITYSCAPES, np.arange(256), (74, 100))
    kinds = ("truth", "prediction", "errors")
    shown, guessed, errors = (cv2.imdecode(np.frombuffer(pictures[kind], np.uint8), -1) for kind in kinds)
    assert shown.shape == (74, 100, 4) and guessed.shape == (74, 100, 3)
    colors = {CITYSCAPES.colors[train_id][::-1] for train_id in (0, 18)}
    assert {tuple(color) for color in guessed.reshape(-1, 3).tolist()} == colors
    wrong = (shown[..., :3] != guessed).any(2) & (shown[..., 3] > 0)
    np.testing.assert_array_equal(errors[..., 3] > 0, wrong)
    labels = np.frombuffer(zlib.decompress(packed), np.uint8).reshape(2, 37, 50)
    np.testing.assert_array_equal(CITYSCAPES.palette[labels[1]][..., ::-1], guessed[::2, ::2])


def test_what_cannot_be_written_makes_room_at_once(labels, tmp_path) -> None:
    """Gigabytes of a report that will never be, beside predictions that find no space because of them."""
    samples = [Sample("frame0", Path("x"), None)]
    with Report(tmp_path / "r", CITYSCAPES, samples) as report:
        report.aside.aside.mkdir()
        (report.aside.aside / "pictures").write_text("a file where a folder should be")
        image, counts = np.zeros((40, 60, 3), np.uint8), np.zeros((19, 19), int)
        frame = ScoredFrame(0, samples[0], image, labels[0][0], labels[1][0], counts)
        report.write(*report.encode(frame))
        assert not list(tmp_path.iterdir())
        with refused("--report", tmp_path / "r"):
            report.finish(Scores(CITYSCAPES, np.zeros((19, 19), np.int64)), ABOUT)


def test_labels_of_a_union_are_no_error(tmp_path) -> None:
    """A bus that labels call a car, shown as the worst frame's largest error."""
    labels = LabelFormat(plain_labels(4).train_ids, "x", unions=((2, (2, 3)),))
    classes = Classes(("road", "walk", "car", "bus"), distinct_colors(4), (), labels)
    truth = np.repeat(np.array([[0, 2], [0, 255]], np.uint8), 20, 1).repeat(20, 0)
    prediction = np.where(truth == 2, np.uint8(3), np.uint8(0))
    prediction[0, 0] = 1
    folder = tiny_report(tmp_path / "r", [truth], [prediction], classes)
    errors = read_picture(folder, 1, "errors")
    assert np.argwhere(errors[..., 3]).tolist() == [[0, 0]]
    (frame,) = read_data(folder)["frames"]
    assert frame["iou"] == pytest.approx((799 / 800 + 1) / 2)
    assert "\n1,,frame0,40,40,1200,1," in (folder / "frames.csv").read_text()


def test_cells_are_no_formulas() -> None:
    """A file name that a spreadsheet runs."""
    assert [as_text(cell) for cell in ("=1+1", "+1", "-1", "@a", "a=1", "")] == [
        "'=1+1",
        "'+1",
        "'-1",
        "'@a",
        "a=1",
        "",
    ]


def test_only_a_report_is_replaced(frames, weights, tmp_path) -> None:
    """Somebody's folder, emptied because its name was given to --report; pictures of a longer report that stay."""
    put_text(tmp_path / "own" / "notes.txt")
    before = everything(tmp_path)
    result = score(frames, weights, tmp_path / "own", cwd=tmp_path)
    assert_user_error(result, "notes.txt")
    assert result.stdout == "" and everything(tmp_path) == before  # before the work
    assert_user_error(score(frames, weights, "", cwd=tmp_path / "own"), "notes.txt")
    assert score(frames, weights, tmp_path / "r", cwd=tmp_path).returncode == 0
    assert read_data(tmp_path / "r")["frames"][0]["shown"] == [64, 96]
    (tmp_path / "r" / "pictures" / "9999_input.webp").write_bytes(b"of a longer one")
    assert score(frames, weights, tmp_path / "r", "--report_width", 64, cwd=tmp_path).returncode == 0
    assert not (tmp_path / "r" / "pictures" / "9999_input.webp").exists()
    assert read_data(tmp_path / "r")["frames"][0]["shown"] == [43, 64]


def put_text(*paths: Path) -> None:
    """Writes a word to files."""
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("mine")


def test_a_full_disk_leaves_the_earlier_report_and_all_scores(frames, weights, tmp_path) -> None:
    """A report of yesterday that is gone, or the scores of an hour that are not printed, for want of space."""
    assert score(frames, weights, tmp_path / "r", cwd=tmp_path).returncode == 0
    before = everything(tmp_path / "r")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3_000, limits[1]))
    try:
        result = score(frames, weights, tmp_path / "r", "--json", tmp_path / "scores.json", cwd=tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert_user_error(result, "--report", tmp_path / "r")
    assert "class mIoU" in result.stdout and json.loads((tmp_path / "scores.json").read_text())
    assert everything(tmp_path / "r") == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["frames", "r", "scores.json"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_nothing_unfinished(number, frames, weights, tmp_path) -> None:
    """Hidden folders with gigabytes of pictures, one for each evaluation that a cluster stopped."""
    for path in [*frames.rglob("valstadt_000000_000000_*")]:
        for index in range(2, 500):
            os.link(path, path.with_name(path.name.replace("_000000_000000_", f"_000000_{index:06d}_")))
    fixed = ("--data_path", frames, "--model_weight", weights, "--device", "cpu", "--workers", 2)
    started = start_script("evaluate.py", *fixed, "--report", tmp_path / "r", cwd=tmp_path)
    while started.returncode is None and not list(tmp_path.glob(".r.*")):
        time.sleep(0.01)
    started.send_signal(number)
    assert started.wait()[0] == 128 + number
    assert [path.name for path in tmp_path.iterdir()] == ["frames"]


def test_flags_that_do_not_go_together_are_refused(frames, weights, tmp_path) -> None:
    """Flags without an effect, and outputs in a folder that is about to be exchanged."""
    for flags, words in (
        (("--split", "test"), ""),
        (("--report_width", "63"), "expected 64 to 4096"),
        (("--json", "r/scores.json"), "--report"),
        (("--save_dir", "r"), "--report"),
        (("--compare", "nowhere"), "data.js"),
    ):
        assert_user_error(score(frames, weights, tmp_path / "r", *flags, cwd=tmp_path), *words.split("|"))
    fixed = ("--data_path", frames, "--model_weight", weights)
    assert_user_error(run_script("evaluate.py", *fixed, "--compare", "r", cwd=tmp_path), "without --report")
    assert not (tmp_path / "r").exists()


@pytest.fixture(scope="module")
def labels() -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Ground truth and prediction of two frames."""
    rng = np.random.default_rng(0)
    truths = [rng.integers(0, 19, (40, 60)).astype(np.uint8) for _ in range(2)]
    return truths, [np.where(rng.random(truth.shape) < 0.4, np.uint8(5), truth) for truth in truths]


@functools.cache
def bomb() -> str:
    """Labels of 50 million pixels, packed."""
    return base64.b64encode(zlib.compress(bytes(50_000_000), 9)).decode()


def damage(name: str, data: dict) -> None:
    """Changes a report's data in one way that nobody should be able to."""
    frame = data["frames"][0]
    edits = {
        "classes": lambda: data["classes"]["names"].__setitem__(3, "<b>"),
        "frames": lambda: data["frames"].pop(),
        "name": lambda: frame.__setitem__("name", "other"),
        "format": lambda: data.__setitem__("format", 2),
        "negative": lambda: frame["confusion"].__setitem__(2, -1),
        "class": lambda: frame["confusion"].__setitem__(0, 19),
        "bomb": lambda: frame.__setitem__("labels", bomb()),
        "no labels": lambda: frame.__setitem__("labels", "%%%"),
        "list": lambda: data.__setitem__("frames", {"length": 2}),
    }
    edits[name]()


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("classes", "wall"),
        ("frames", "2"),
        ("name", "frame0"),
        ("format", "version"),
        ("class", "data.js"),
        ("bomb", "data.js"),
        ("no labels", "data.js"),
        ("list", "2"),
    ],
)
def test_another_report_is_not_trusted(labels, tmp_path, name, words) -> None:
    """Code or numbers of a report that somebody sent, in one's own; or a comparison of what differs anyway."""
    folder = tiny_report(tmp_path / "r", *labels)
    change(folder, functools.partial(damage, name))
    samples = [Sample(f"frame{index}", Path("x"), None) for index in range(2)]
    with pytest.raises(UserError, match="--compare") as error:
        Report(tmp_path / "new", CITYSCAPES, samples, compare=folder)
    assert words in str(error.value) and "\n" not in str(error.value)


def test_a_bomb_is_not_unpacked(labels, tmp_path) -> None:
    """Kilobytes of somebody's report that take gigabytes of memory."""
    folder = tiny_report(tmp_path / "r", *labels)
    change(folder, functools.partial(damage, "bomb"))
    samples = [Sample(f"frame{index}", Path("x"), None) for index in range(2)]
    tracemalloc.start()
    try:
        with refused("data.js"):
            Report(tmp_path / "new", CITYSCAPES, samples, compare=folder)
        assert tracemalloc.get_traced_memory()[1] < 10_000_000
    finally:
        tracemalloc.stop()


def test_files_of_another_report_are_not_trusted(labels, tmp_path) -> None:
    """A pipe that is waited for, a script behind the data, a picture that is none."""
    folder = tiny_report(tmp_path / "r", *labels)
    samples = [Sample(f"frame{index}", Path("x"), None) for index in range(2)]
    data, picture = folder / "data.js", folder / "pictures" / "0002_errors.webp"
    whole, webp = data.read_bytes(), picture.read_bytes()
    for path, content in (
        (data, whole + b"alert(1);\n"),
        (data, whole[:-40]),
        (data, b"alert(1);" + whole),
        (data, PREFIX + b"[" * 100_000 + b";\n"),
        (data, PREFIX + b'{"format": NaN};\n'),
        (data, None),
        (picture, b"<svg onload='alert(1)'/>" + bytes(50)),
        (picture, None),
    ):
        path.unlink()
        os.mkfifo(path) if content is None else path.write_bytes(content)
        with refused("--compare", folder, path.name):
            Report(tmp_path / "new", CITYSCAPES, samples, compare=folder)
        path.unlink()
        path.write_bytes(whole if path == data else webp)
    Report(tmp_path / "new", CITYSCAPES, samples, compare=folder)


def test_a_report_stands_beside_another_or_its_own_predecessor(frames, weights, tmp_path) -> None:
    """Pictures outside the folder, an earlier report that is gone before it is read, scores that are taken on trust."""
    own = tmp_path / "r"
    assert score(frames, weights, own, cwd=tmp_path).returncode == 0
    first = read_data(own)
    change(own, lambda data: data["scores"].update(class_miou=0.99))
    result = score(frames, weights, own, "--compare", own, "--width", 96, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    data = read_data(own)
    assert data["other"]["scores"] == first["scores"] == data["scores"]
    assert [frame["iou"] for frame in data["other"]["frames"]] == [frame["iou"] for frame in first["frames"]]
    for number in (1, 2):
        for kind in ("prediction", "errors"):
            copied = own / "pictures" / f"{number:04d}_other_{kind}.webp"
            assert copied.read_bytes() == (own / "pictures" / f"{number:04d}_{kind}.webp").read_bytes()
    assert "other_mean_iou" in (own / "frames.csv").read_text().splitlines()[0]


def test_other_labels_or_sizes_cost_only_the_comparison(frames, weights, tmp_path) -> None:
    """Differences that come from other ground truth; or an hour of scores without a report because of them."""
    assert score(frames, weights, tmp_path / "a", cwd=tmp_path).returncode == 0
    result = score(frames, weights, tmp_path / "b", "--compare", tmp_path / "a", "--width", 64, cwd=tmp_path)
    assert_user_error(result, "1", "64x96", "43x64")
    assert read_data(tmp_path / "b")["other"] is None
    label = sorted(frames.rglob("val/*/*labelIds.png"))[1]
    cv2.imwrite(str(label), np.full((64, 96), 7, np.uint8))
    result = score(frames, weights, tmp_path / "b", "--compare", tmp_path / "a", cwd=tmp_path)
    assert_user_error(result, "2")
    assert read_data(tmp_path / "b")["frames"][1]["confusion"][0] == 0


def test_training_ends_with_a_report_of_its_best_weights(frames, tmp_path) -> None:
    """A report of the last epoch's weights, a foreign folder that is found after days, a resumed run that complains."""
    flags = ("--data_path", frames, "--output_dir", tmp_path / "run", *TRAIN_FLAGS)
    put_text(tmp_path / "run" / "report" / "mine.txt")
    assert_user_error(run_script("train.py", *flags, "--report", cwd=tmp_path), "mine.txt")
    shutil.rmtree(tmp_path / "run")
    result = run_script("train.py", *flags, "--epochs", 2, "--report", "--train_split", "train+val", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    data = read_data(tmp_path / "run" / "report")
    with open(tmp_path / "run" / "32_64_statistics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    best = max(rows, key=lambda row: float(row["class_miou_present"]))
    assert data["about"]["epoch"] == int(best["epoch"]) and "seen in training" in data["about"]["note"]
    assert data["scores"]["class_miou"] == pytest.approx(float(best["class_miou"]), abs=1e-9)
    assert data["curves"]["file"] == "32_64_statistics.csv" and data["curves"]["epochs"] == [1, 2]
    curves = dict(data["curves"]["columns"])
    assert curves["train_loss"] == [float(row["train_loss"]) for row in rows] and "joined_miou" not in curves


def test_statistics_that_cannot_be_read_are_said(frames, weights, tmp_path) -> None:
    """A damaged CSV beside the weights that ends an evaluation, or is drawn as something else."""
    shutil.copy(weights, tmp_path / "64_96_model.pth")
    for content, words in (
        ("epoch,lr\n1,0.1\nx,0.2\n", "ValueError"),
        ("lr\n0.1\n", "KeyError"),
        ("epoch,lr\n", "0 epochs"),
        ("\0\0", "epoch"),
    ):
        (tmp_path / "64_96_statistics.csv").write_text(content)
        assert score(frames, tmp_path / "64_96_model.pth", tmp_path / "r", cwd=tmp_path).returncode == 0
        curves = read_data(tmp_path / "r")["curves"]
        assert words in curves["problem"] and curves["columns"] == []
    (tmp_path / "64_96_statistics.csv").write_text("epoch,lr,val_loss\n1,0.1,nan\n2,inf,0.5\n3\n")
    assert score(frames, tmp_path / "64_96_model.pth", tmp_path / "r", cwd=tmp_path).returncode == 0
    curves = read_data(tmp_path / "r")["curves"]
    assert curves["columns"] == [["val_loss", [None, 0.5, None]], ["lr", [0.1, None, None]]]


def test_frames_of_a_described_set_without_labelled_pixels(weights, tmp_path) -> None:
    """A division by zero for a frame whose labels are all ignored; a report of no number at all."""
    put(tmp_path, "images/a.png", "images/b.png", value=np.zeros((40, 40, 3), np.uint8))
    put(tmp_path, "masks/a.png", value=np.full((40, 40), 255, np.uint8))
    put(tmp_path, "masks/b.png", value=np.zeros((40, 40), np.uint8))
    data = describe(tmp_path, train="images", val="images", names=list(CITYSCAPES.names))
    assert score(data, weights, tmp_path / "r", cwd=tmp_path).returncode == 0
    first, second = read_data(tmp_path / "r")["frames"]
    assert first["iou"] is None and first["confusion"] == [] and second["iou"] is not None
    put(tmp_path, "masks/b.png", value=np.full((40, 40), 255, np.uint8))
    assert_user_error(score(data, weights, tmp_path / "r", cwd=tmp_path))
    assert read_data(tmp_path / "r")["frames"][1]["iou"] is not None  # the earlier one


def test_scripts_never_make_markup_of_text() -> None:
    """A class or a file named <img onerror=...> that runs in the browser of whoever opens the report."""
    scripts = sorted(PAGE.glob("*.js"))
    assert len(scripts) == 8
    for path in scripts:
        for word in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "Function(", "fetch("):
            assert word not in path.read_text(), (path.name, word)
    page = (PAGE / "index.html").read_text()
    assert "://" not in page and "module" not in page and "onclick" not in page
    assert all(f'src="{path.name}"' in page for path in scripts)
