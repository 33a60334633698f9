"""The page of a report in a real browser, opened from disk: what it shows, and what a user does with it."""

from __future__ import annotations

import csv
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import pytest
from browsers import Page, contrast, luminance, open_browser
from conftest import ROOT, run_script, write_frame
from makers import read_data, read_picture, tiny_report

from frames.cityscapes import find_samples
from frames.classes import CITYSCAPES, Classes, distinct_colors, plain_labels
from frames.images import read_image
from frames.samples import read_pair
from synthetic import write_dataset

pytestmark = pytest.mark.browser
ODD_NAMES = ("a<img src=x onerror=hacked()>", 'b"quoted"#1', "c%2e%2e'", "d..")
GREY = 128


class Reports(NamedTuple):
    """Two reports of the same frames by other weights.

    Attributes:
        data: the data set.
        first: report of weights that have statistics beside them.
        second: report that is beside the first.
        scores: what --json wrote for the second.
        printed: what evaluate.py printed for the second.
    """

    data: Path
    first: Path
    second: Path
    scores: dict
    printed: str


@pytest.fixture(scope="module")
def page() -> Iterator[Page]:
    """A browser for all tests of this file."""
    with open_browser() as opened:
        yield opened


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> Reports:
    """Reports of four frames with odd names; the first is grey, its labels are road and car beside each other."""
    folder = tmp_path_factory.mktemp("reports")
    label = np.full((64, 128), 7, np.uint8)
    label[:, 64:] = 26
    write_frame(folder / "data", "val", f"{ODD_NAMES[0]}_0_0", np.full((64, 128, 3), GREY, np.uint8), label)
    write_dataset(folder / "drawn", 96, 192, train=0, val=3, test=0, seed=5)
    sizes = ((96, 192), (96, 64), (64, 160))
    for name, sample, (height, width) in zip(ODD_NAMES[1:], find_samples(folder / "drawn", "val"), sizes, strict=True):
        label = cv2.imread(str(sample.label), cv2.IMREAD_UNCHANGED)[-height:, :width]
        write_frame(folder / "data", "val", f"{name}_0_0", read_image(sample.image)[-height:, :width], label)
    shutil.copy(ROOT / "weights" / "camvid.pth", folder / "64_96_model.pth")
    epochs = (f"{epoch},{2.5 - epoch / 100},{2 - epoch / 100},{epoch / 200},0.01" for epoch in range(1, 101))
    rows = "\n".join(["epoch,train_loss,val_loss,class_miou,lr", *epochs])
    (folder / "64_96_statistics.csv").write_text(rows)
    fixed = ("--data_path", folder / "data", "--device", "cpu", "--workers", 0, "--model_weight")
    first = run_script("evaluate.py", *fixed, "64_96_model.pth", "--report", "first", cwd=folder)
    flags = ("--report", "second", "--compare", "first", "--json", "scores.json")
    second = run_script("evaluate.py", *fixed, ROOT / "weights" / "street.pth", *flags, cwd=folder)
    assert first.returncode == second.returncode == 0, first.stderr + second.stderr
    scores = json.loads((folder / "scores.json").read_text())
    return Reports(folder / "data", folder / "first", folder / "second", scores, second.stdout)


@pytest.fixture(autouse=True)
def no_errors(page: Page) -> Iterator[None]:
    """Nothing that these tests do may put an error into the console."""
    page.errors()
    yield
    assert page.errors() == []


def open_report(page: Page, folder: Path, *look: object) -> None:
    """Opens a report from disk, see Page.look, and waits until it is drawn."""
    page.look(*look)
    page.driver.get((folder / "index.html").absolute().as_uri())
    page.settle()


def frame_table(report: Path) -> list[dict[str, str]]:
    """The rows of frames.csv."""
    with open(report / "frames.csv", newline="") as file:
        return list(csv.DictReader(file))


def listed(page: Page) -> list[int]:
    """The numbers of the frames in the list, in its order, from 0."""
    return page.run("return [...document.querySelectorAll('.frame')].map((node) => Number(node.dataset.index))")


def class_names(page: Page) -> list[str]:
    """The classes of the table, in its order."""
    return page.texts("#class-table tbody button > span:last-child")


def percent(fraction: float) -> str:
    """A score as the console prints it."""
    return f"{100 * fraction:.2f}"


def test_numbers_are_those_of_console_and_json(page, reports) -> None:
    """A page whose last digit differs from the table beside it, or that computes its own averages."""
    open_report(page, reports.second)
    scores, present = reports.scores, [name for name, iou in reports.scores["classScores"].items() if iou is not None]
    shown = dict(zip(page.texts("#means dt"), page.texts("#means .number"), strict=True))
    assert shown["class mIoU"] == percent(scores["averageScoreClasses"])
    assert shown["category mIoU"] == percent(scores["averageScoreCategories"])
    assert shown["pixel accuracy"] == percent(scores["pixel_accuracy"])
    names = [re.sub(" only predicted$", "", name) for name in class_names(page)]
    assert sorted(names) == sorted(present)
    rows = dict(zip(names, zip(page.texts(".value"), page.texts("td.share"), strict=True), strict=True))
    printed = dict(re.findall(r"^(\S.*?)  +([\d.]+ +[\d.]+)$", reports.printed, re.MULTILINE))
    assert {name: list(row) for name, row in rows.items()} == {name: printed[name].split() for name in present}
    page.run("byId('order').value = 'name'; listFrames();")
    by_name = frame_table(reports.second)
    assert [text.split(" %")[0] for text in page.texts(".score")] == [
        percent(float(row["mean_iou"])) for row in by_name
    ]


def test_percent_rounds_as_python(page, reports) -> None:
    """Halves, of which JavaScript takes the larger and Python the even one."""
    open_report(page, reports.first)
    values = [*(k / 800 for k in range(801)), *np.random.default_rng(0).random(500).tolist(), 0.0, 1.0]
    assert page.run("return arguments[0].map(percent)", values) == [percent(value) for value in values]


def test_names_are_text(page, reports) -> None:
    """A file name that becomes markup, and runs, in the browser of whoever opens the report."""
    open_report(page, reports.first)
    page.run("window.hacked = () => { window.ran = true; }")
    page.find(".open").click()
    page.settle()
    names = [f"{name}_0_0" for name in ODD_NAMES]
    assert sorted(page.texts(".open .name")) == sorted(names)
    assert not page.run("return Boolean(window.ran)") and page.texts("main img[onerror], dialog img[onerror]") == []
    assert page.run("return [...document.images].every((image) => /pictures\\/\\d{4}_[a-z]+\\.webp$/.test(image.src))")


def test_classes_sort_by_each_column(page, reports) -> None:
    """A head that sorts text as numbers, or puts classes without a number first."""
    open_report(page, reports.second)
    iou = reports.scores["classScores"]
    strip = [re.sub(" only predicted$", "", name) for name in class_names(page)]
    assert strip == sorted(strip, key=lambda name: iou[name])
    page.find("th.name button").click()
    names = class_names(page)
    assert names == sorted(names) and page.find("th.name").get_attribute("aria-sort") == "ascending"
    page.find("th.name button").click()
    assert class_names(page) == names[::-1]
    page.find("th.pixels button").click()
    shares = [float(text) for text in page.texts("td.share")]
    assert shares == sorted(shares, reverse=True) and shares[0] > 0


def test_a_class_filters_the_frames_that_lose_it(page, reports) -> None:
    """Frames without that error, an order by something else, a filter that stays."""
    open_report(page, reports.first)
    car = CITYSCAPES.names.index("car")
    wrong = {}
    for index, frame in enumerate(read_data(reports.first)["frames"]):
        pairs = np.array(frame["confusion"]).reshape(-1, 3)
        lost = (pairs[:, 0] != pairs[:, 1]) & (pairs[:, :2] == car).any(1)
        wrong[index] = int(pairs[lost, 2].sum())
    expected = sorted((index for index in wrong if wrong[index]), key=lambda index: -wrong[index])
    page.find(f"#class-table button[data-class='{car}']").click()
    assert listed(page) == expected and len(expected) >= 2
    assert f"{wrong[expected[0]]:,}" in page.texts(".score")[0]
    assert page.find(f"#class-table button[data-class='{car}']").get_attribute("aria-pressed") == "true"
    page.find("#clear").click()
    assert sorted(listed(page)) == [0, 1, 2, 3] and page.texts("tr.chosen") == []


@pytest.mark.parametrize("chosen", ["#class-table tbody button", "#words button", "#matrix"])
def test_keys_go_on_where_the_page_goes(page, reports, chosen) -> None:
    """A filter whose frames are thirty presses of Tab away, or a focus that is nowhere once it is taken off."""
    open_report(page, reports.first)
    page.run("document.querySelector(arguments[0]).focus()", chosen)
    page.press(*["ARROW_RIGHT"] * 2 * (chosen == "#matrix"), "ENTER")
    focus = "return document.activeElement.matches(':focus-visible') && document.activeElement.id"
    assert page.run(focus) == "clear" and page.run("return filter.kind") != "none"
    page.press("ENTER")
    assert page.run(focus) == "order" and page.run("return filter.kind") == "none"


def test_words_and_matrix_say_the_confusions(page, reports) -> None:
    """Rows and columns exchanged, shares of the wrong total, a list that begins with the smallest."""
    open_report(page, reports.first)
    data = read_data(reports.first)
    pairs = np.array(data["confusion"]).reshape(-1, 3)
    total, errors = pairs[:, 2].sum(), pairs[pairs[:, 0] != pairs[:, 1]]
    truth, prediction, pixels = errors[errors[:, 2].argmax()]
    row = pairs[pairs[:, 0] == truth, 2].sum()
    names = CITYSCAPES.names
    first = page.texts("#words li")[0]
    assert first.startswith(f"{names[truth]} taken for {names[prediction]}")
    assert f"{100 * pixels / total:.1f}" in first
    at = page.run(
        "const box = byId('matrix').getBoundingClientRect();"
        "const place = (list, id, side) => matrix.margin + (list.indexOf(id) + 0.5) * matrix.cell - side / 2;"
        "byId('confusions').scrollIntoView();"
        "return [place(matrix.columns, arguments[1], box.width), place(matrix.rows, arguments[0], box.height)]",
        int(truth),
        int(prediction),
    )
    page.point("#matrix", *at)
    words = page.find("#matrix-text").text
    assert words.startswith(
        f"{names[truth]} taken for {names[prediction]}: {100 * pixels / row:.2f} % of {names[truth]}"
    )
    assert words.endswith(f"{100 * pixels / total:.2f} % of all pixels, {pixels:,} pixels")
    before = page.run("return matrix.at")
    page.run("byId('matrix').focus()")
    page.press("ARROW_DOWN")
    assert page.run("return matrix.at") != before and page.find("#matrix-text").text != words
    page.find("#words button").click()
    frames = [np.array(frame["confusion"]).reshape(-1, 3) for frame in data["frames"]]
    has = [index for index, found in enumerate(frames) if ([truth, prediction] == found[:, :2]).all(1).any()]
    assert sorted(listed(page)) == has


def test_frames_order_and_search(page, reports) -> None:
    """A list that begins with the best frame, or a search that also finds others."""
    open_report(page, reports.first)
    rows = frame_table(reports.first)
    worst = sorted(range(4), key=lambda index: float(rows[index]["mean_iou"]))
    assert listed(page) == worst
    orders = {"best": worst[::-1], "name": [0, 1, 2, 3]}
    orders["wrong"] = sorted(range(4), key=lambda index: -int(rows[index]["wrong_pixels"]))
    for order, expected in orders.items():
        page.run("byId('order').value = arguments[0]; byId('order').dispatchEvent(new Event('change'));", order)
        assert listed(page) == expected, order
    page.find("#search").send_keys("QUOTED")
    assert listed(page) == [1] and page.find("#found").text == "1 of 4 frames"


def test_keys_lead_through_frames_and_views(page, reports) -> None:
    """Arrow keys that scroll, that leave the filtered list, or that do not work in the slider."""
    open_report(page, reports.first)
    worst = listed(page)
    page.find(".open").click()
    at = "return viewer.index"
    assert page.run(at) == worst[0]
    page.press("ARROW_RIGHT", "ARROW_RIGHT", "ARROW_LEFT")
    assert page.run(at) == worst[1] and "2 of 4" in page.find("#viewer-title").text
    page.find("#next").click()
    page.press(*["ARROW_RIGHT"] * 9)
    assert page.run(at) == worst[3] and not page.find("#next").is_enabled()
    page.run("byId('slider').focus()")
    page.press("ARROW_LEFT")
    assert page.run(at) == worst[3] and page.find("#slider").get_attribute("value") == "49"
    page.press("4")
    assert page.texts("#views [aria-pressed=true]") == ["Ground truth"]
    assert page.run("return getComputedStyle(byId('slider')).display") == "none"
    page.press("ESCAPE")
    assert not page.run("return byId('viewer').open")


def test_the_slider_divides_ground_truth_from_prediction(page, reports) -> None:
    """Sides exchanged, labels of another frame, colors that are not those of the legend."""
    open_report(page, reports.first)
    page.run("openViewer(0)")
    colors = {}
    for place, (kind, view) in enumerate((("truth", 3), ("prediction", 4))):
        page.run("showView(arguments[0])", view)
        looks = page.pixels("#stage")
        picture = read_picture(reports.first, 1, kind)
        middle = [(0.25, 0.25), (0.25, 0.75)]  # of the height and the width
        colors[place] = [picture[int(y * picture.shape[0]), int(x * picture.shape[1]), :3] for y, x in middle]
        for (y, x), color in zip(middle, colors[place], strict=True):
            np.testing.assert_array_equal(looks[int(y * looks.shape[0]), int(x * looks.shape[1])], color)
    assert not np.array_equal(colors[0][0], colors[1][0]) and not np.array_equal(colors[0][1], colors[1][1])
    page.run("showView(0)")
    for at, sides in ((100, (0, 0)), (0, (1, 1)), (50, (0, 1))):
        page.run("byId('slider').value = arguments[0]; byId('slider').dispatchEvent(new Event('input'));", at)
        looks = page.pixels("#stage")
        for x, side, number in ((0.25, sides[0], 0), (0.75, sides[1], 1)):
            pixel = looks[int(0.25 * looks.shape[0]), int(x * looks.shape[1])].astype(float)
            expected = 0.62 * colors[side][number] + 0.38 * GREY
            assert np.abs(pixel - expected).max() <= 4, (at, x, pixel, expected)


def test_errors_in_the_list_have_the_colors_of_the_legend(page, reports) -> None:
    """A faint picture over the errors that are said to lie on it, which makes their colors those of no class."""
    open_report(page, reports.first)
    selector = ".frame[data-index='0'] .stack.errors"
    page.run("document.querySelector(arguments[0]).scrollIntoView({ block: 'center' })", selector)
    page.run("document.querySelectorAll('.stack img').forEach((image) => { image.loading = 'eager'; })")
    page.driver.execute_async_script(
        "Promise.all([...document.images].map((image) => image.decode())).then(arguments[0])"
    )
    looks = page.pixels(selector)
    errors = read_picture(reports.first, 1, "errors")
    opaque = errors[..., 3] > 0 if errors.shape[2] == 4 else np.full(errors.shape[:2], True)  # every pixel is wrong
    # Inside a block of one color, away from the edges that a browser blends.
    kernel = np.ones((9, 9), np.uint8)
    same = (cv2.dilate(errors, kernel) == cv2.erode(errors, kernel)).all(-1) & opaque
    rows, columns = np.nonzero(same)
    assert len(rows) > 100
    scale = np.array(looks.shape[:2]) / errors.shape[:2]
    found = looks[((rows + 0.5) * scale[0]).astype(int), ((columns + 0.5) * scale[1]).astype(int)]
    np.testing.assert_array_equal(found, errors[rows, columns, :3])


def test_the_pointer_reads_the_classes(page, reports) -> None:
    """Classes that only colors tell apart, or the name of a class beside the one that is pointed at."""
    open_report(page, reports.second)
    page.run("openViewer(0)")
    page.settle()
    samples = find_samples(reports.data, "val")
    _, truth = read_pair(samples[0])
    predictions = [read_picture(reports.second, 1, kind) for kind in ("prediction", "other_prediction")]
    page.driver.execute_async_script("unpackLabels(0).then(arguments[0])")
    stage = page.find("#stage")
    for x in (0.3, 0.8):
        offset = (x - 0.5) * stage.rect["width"], -0.1 * stage.rect["height"]
        page.point("#stage", *offset)
        row, column = 2 * int(0.4 * 32), 2 * int(x * 64)
        ids = [CITYSCAPES.colors.index(tuple(picture[row, column].tolist())) for picture in predictions]
        expected = ["ground truth " + CITYSCAPES.names[truth[row, column]]]
        for label, train_id in zip(("prediction", "other"), ids, strict=True):
            wrong = " wrong" if train_id != truth[row, column] else ""
            expected.append(f"{label} {CITYSCAPES.names[train_id]}{wrong}")
        assert page.texts("#pointed > span") == expected


def test_differences_to_another_report(page, reports) -> None:
    """A gain that is shown as a loss, or pictures that lie in the other folder."""
    open_report(page, reports.second)
    ours, theirs = read_data(reports.second), read_data(reports.first)
    change = 100 * (ours["scores"]["pixel_accuracy"] - theirs["scores"]["pixel_accuracy"])
    shown = page.texts("#means > div:last-child .versus")[0]
    assert f"{100 * theirs['scores']['pixel_accuracy']:.2f} %" in shown
    assert shown.endswith(f"{'▲' if change > 0 else '▼'} {abs(change):.2f}")
    kind = page.find("#means > div:last-child .difference").get_attribute("className")
    assert kind.split() == ["difference", "better" if change > 0 else "worse"]
    # Beside a network that predicts absent classes, whose mean over all classes is lower for that alone.
    shown = page.run(
        "report.scores.class_miou = report.scores.class_miou_present;"
        "report.other.scores.class_miou = report.other.scores.class_miou_present / 2;"
        "return shownMeans().map(([key]) => key);"
    )
    assert "class_miou_present" in shown
    changes = [a["iou"] - b["iou"] for a, b in zip(ours["frames"], theirs["frames"], strict=True)]
    for order, sign in (("lost", 1), ("gained", -1)):
        page.run("byId('order').value = arguments[0]; listFrames();", order)
        assert listed(page) == sorted(range(4), key=lambda index: sign * changes[index])
    page.run("openViewer(0); showView(5); byId('slider').value = 100; slide();")
    looks = page.pixels("#stage")
    color = read_picture(reports.first, 1, "prediction")[48, 96]
    pixel = looks[int(0.75 * looks.shape[0]), int(0.75 * looks.shape[1])]
    assert np.abs(pixel - (0.62 * color + 0.38 * GREY)).max() <= 4
    assert page.run("return [...document.images].every((image) => image.src.includes('/second/pictures/'))")
    assert page.texts(".tag") == ["64_96_model.pth", "street.pth"]


def test_curves_show_the_epoch_of_the_weights(page, reports) -> None:
    """Curves of another run, or of other columns than their names say."""
    open_report(page, reports.first)
    epoch = read_data(reports.first)["about"]["epoch"]
    first = page.texts("#curves .readout")[0]
    assert first == f"epoch {epoch} training {2.5 - epoch / 100:.4f} validation {2 - epoch / 100:.4f}" and epoch < 100
    assert page.texts("#curves figcaption") == ["Loss", "Validation scores, %", "Learning rate"]
    assert len(page.run("return document.querySelector('#curves polyline').getAttribute('points')").split()) == 100
    open_report(page, reports.second)
    assert not page.find("#curves").is_displayed() and not page.find("#curves-link").is_displayed()


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_it_is_legible_on_a_phone(page, reports, dark) -> None:
    """A page that scrolls sideways, text that nobody can read in the dark, pictures without words."""
    open_report(page, reports.second, 390, 844, dark)
    assert page.run("return document.documentElement.scrollWidth") <= 390
    for name in ("--ink", "--weak", "--accent", "--good", "--bad"):
        color, back = (page.run("return colorNamed(arguments[0])", wanted) for wanted in (name, "--page"))
        assert contrast(color, back) >= 4.5, name  # Source: WCAG 2.2, 1.4.3
    assert (luminance(page.run("return colorNamed('--page')")) < 0.1) == dark
    cells = page.run(
        "const range = [...Array(101).keys()].map((part) => part / 100);"
        "return ['--accent', '--bad'].flatMap((name) => range.map((part) => {"
        "  const fill = mixed(colorNamed(name), colorNamed('--page'), part);"
        "  return [fill, legibleOn(fill)];"
        "}))"
    )
    assert min(contrast(*cell) for cell in cells) >= 4.5 and len({fill for fill, _ in cells}) > 150
    assert page.run("return [...document.images].filter((image) => !image.alt).length") == 4  # under the errors
    page.run("openViewer(1)")
    page.settle()
    assert page.run("return byId('viewer').scrollWidth <= 390") and page.find("#stage").rect["width"] > 250


def test_one_frame_of_many_classes_and_one_without_labels(page, tmp_path) -> None:
    """A matrix too small for its names, a division by zero, an order that a missing score upsets."""
    names = ("<b>bold</b>", "__proto__", *(f"class number {index}" for index in range(58)))
    classes = Classes(names, distinct_colors(60), (), plain_labels(60))
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 60, (60, 80)).astype(np.uint8)
    one = tiny_report(tmp_path / "one", [truth], [np.where(rng.random(truth.shape) < 0.9, truth, 1)], classes)
    open_report(page, one)
    assert len(page.texts("#class-table tbody tr")) == 60 and "<b>bold</b>" in class_names(page)
    assert page.find("#found").text == "1 frame" and page.find("#matrix").rect["height"] > 300
    nothing = np.full_like(truth, 255)
    two = tiny_report(tmp_path / "two", [nothing, truth], [truth, truth], classes)
    open_report(page, two)
    assert page.texts(".score")[1] == "no labelled pixel" and page.texts(".score")[0].startswith("100.00 %")
    page.run("openViewer(0)")
    page.settle()
    assert "no labelled pixel" in page.find(".facts").text


def test_a_folder_without_its_data_says_so(page, reports, tmp_path) -> None:
    """An empty page where only index.html was copied."""
    shutil.copytree(reports.first, tmp_path / "r")
    (tmp_path / "r" / "data.js").write_text("")
    open_report(page, tmp_path / "r")
    assert "Copy the whole folder" in page.find("#problem").text
