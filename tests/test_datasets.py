"""The descriptions in datasets/, and those in docs/datasets.md, on drawn trees of the layouts that they describe."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import pytest
import yaml
from conftest import ROOT, run_script
from PIL import Image

from frames.classes import CITYSCAPES, IGNORE_INDEX
from frames.description import open_data
from frames.samples import read_pair

FILES = sorted((ROOT / "datasets").glob("*.yaml"))
STEP = ("--crop_h", 32, "--crop_w", 64, "--batch_size", 2, "--epochs", 1, "--workers", 0, "--device", "cpu")
VOID = IGNORE_INDEX


class Tree(NamedTuple):
    """What a data set looks like on disk: pictures and labels, and what some values in the labels mean.

    Attributes:
        train: pictures, each with its label.
        val: a picture with its label.
        test: pictures; their labels are not read.
        beside: files that are neither.
        expected: values or colors, and their train id.
        palette: labels are palette PNGs.
    """

    train: tuple[tuple[str, str], ...]
    val: tuple[str, str]
    test: tuple[str, ...]
    expected: dict
    beside: tuple[str, ...] = ()
    palette: bool = False


def cityscapes(frame: str, kind: str = "labelIds", ending: str = "png") -> tuple[str, str]:
    """Picture and label of a frame in the layout of Cityscapes and IDD."""
    return f"leftImg8bit/{frame}_leftImg8bit.{ending}", f"gtFine/{frame}_gtFine_{kind}.png"


def acdc(frame: str) -> tuple[str, str]:
    """Picture and label of a frame of ACDC."""
    return f"rgb_anon/{frame}_rgb_anon.png", f"gt/{frame}_gt_labelIds.png"


def folders(frame: str, picture: str, label: str, ending: str = ".png") -> tuple[str, str]:
    """Picture and label in two folders, with the same name."""
    return f"{picture}/{frame}{ending}", f"{label}/{frame}.png"


def camvid_full(frame: str) -> tuple[str, str]:
    """Picture and label of a frame of CamVid as it is published."""
    return f"701_StillsRaw_full/{frame}.png", f"LabeledApproved_full/{frame}_L.png"


# Values that a shift by one, a swap of two classes or another table would get wrong.
CITYSCAPES_IDS = {0: VOID, 7: 0, 8: 1, 9: VOID, 11: 2, 17: 5, 18: VOID, 19: 6, 24: 11, 29: VOID, 31: 16, 33: 18}
# The ends of the parts of CamVid's sequences that belong to a split: each pattern has to match a frame.
CAMVID_TRAIN = ("0001TP_006690", "0001TP_008010", "0001TP_008520", "0006R0_f00930")
CAMVID_TEST = ("0001TP_008550", "0001TP_008610", "0001TP_009000", "0001TP_010380", "Seq05VD_f00000")
TREES = {
    "cityscapes": Tree(
        (cityscapes("train/aachen/aachen_000000_000019"), cityscapes("train/ulm/ulm_000093_000019")),
        cityscapes("val/munster/munster_000000_000019"),
        cityscapes("test/berlin/berlin_000000_000019")[:1],
        CITYSCAPES_IDS,
        beside=("gtFine/train/ulm/ulm_000093_000019_gtFine_color.png",),
    ),
    "camvid": Tree(
        (folders("0001TP_006690", "train", "trainannot"), folders("0016E5_00901", "train", "trainannot")),
        folders("0016E5_07959", "val", "valannot"),
        folders("Seq05VD_f00000", "test", "testannot")[:1],
        {0: 0, 3: 3, 8: 8, 10: 10, 11: VOID},
    ),
    "camvid_unions": Tree(
        (cityscapes("train/camvid/camvid_0001TP_006690"), cityscapes("train/camvid/camvid_0016E5_00901")),
        cityscapes("val/camvid/camvid_0016E5_07959"),
        (),
        CITYSCAPES_IDS,
        beside=("gtFine/train/camvid/camvid_0001TP_006690_gtFine_color.png",),
    ),
    "camvid_full": Tree(
        tuple(map(camvid_full, (*CAMVID_TRAIN, "0016E5_00390", "0016E5_00901"))),
        camvid_full("0016E5_08159"),
        tuple(camvid_full(frame)[0] for frame in CAMVID_TEST),
        {(0, 0, 0): VOID, (26, 26, 26): VOID, (64, 128, 64): 0, (64, 0, 128): 5, (0, 0, 192): 19, (64, 192, 0): 30},
    ),
    "bdd100k": Tree(
        tuple(
            folders(f"{frame}-1a2b3c4d", "images/10k/train", "labels/sem_seg/masks/train", ".jpg")
            for frame in ("0004a4c0", "00054602")
        ),
        folders("7d06fefd-f7be05a6", "images/10k/val", "labels/sem_seg/masks/val", ".jpg"),
        ("images/10k/test/ac6d4f42-00000000.jpg",),
        {0: 0, 18: 18, 255: VOID},
        beside=("images/100k/train/0000f77c-6257be58.jpg", "labels/sem_seg/colormaps/train/0004a4c0-1a2b3c4d.png"),
    ),
    "idd": Tree(
        (cityscapes("train/0/005506", "labelids"), cityscapes("train/201/frame0029", "labelids", "jpg")),
        cityscapes("val/119/903127", "labelids"),
        cityscapes("test/7/000000")[:1],
        {0: 0, 1: VOID, 3: 1, 5: 9, 8: 12, 9: 17, 11: VOID, 12: 13, 17: 16, 20: 3, 26: 5, 27: VOID, 33: 10, 35: VOID},
        beside=("gtFine/train/0/005506_gtFine_labellevel3Ids.png",),
    ),
    "kitti_semantics": Tree(
        tuple(folders(f"{frame}_10", "training/image_2", "training/semantic") for frame in ("000000", "000159")),
        folders("000160_10", "training/image_2", "training/semantic"),
        ("testing/image_2/000000_10.png",),
        CITYSCAPES_IDS,
        beside=("training/instance/000000_10.png", "training/semantic_rgb/000000_10.png"),
    ),
    "acdc": Tree(
        (acdc("fog/train/GOPR0475/GOPR0475_frame_000041"), acdc("snow/train/GP010122/GP010122_frame_000001")),
        acdc("night/val/GOPR0356/GOPR0356_frame_000321"),
        acdc("rain/test/GOPR0572/GOPR0572_frame_000145")[:1],
        CITYSCAPES_IDS,
        beside=("gt/fog/train/GOPR0475/GOPR0475_frame_000041_gt_labelColor.png",),
    ),
    "mapillary_vistas": Tree(
        tuple(folders(frame, "training/images", "training/v1.2/labels", ".jpg") for frame in ("__CRyFzo", "-6-WLs7O6")),
        folders("0035fkbjWljhaftpVM37-g", "validation/images", "validation/v1.2/labels", ".jpg"),
        ("testing/images/__-cdxNSX2.jpg",),
        {0: VOID, 2: 1, 3: 4, 13: 0, 17: 2, 19: 11, 20: 12, 27: 10, 45: 5, 46: 7, 48: 6, 52: 18, 55: 13, 65: VOID},
        beside=("training/v2.0/labels/__CRyFzo.png",),
        palette=True,
    ),
    "gta5": Tree(
        (folders("00001", "images", "labels"), folders("19999", "images", "labels")),
        folders("20000", "images", "labels"),
        (),
        {**CITYSCAPES_IDS, 34: VOID},
        palette=True,
    ),
}


def drawn_values(content: dict, tree: Tree) -> list:
    """All values, or colors, that a description knows, and those that are expected."""
    if colors := content.get("label_colors"):
        return sorted({tuple(color) for several in colors.values() for color in several} | {*tree.expected})
    values = {*range(len(content["names"])), *content.get("label_mapping", ()), *tree.expected, VOID}
    return sorted(value for value in values if value >= 0)


def draw(tree: Tree, root: Path, content: dict) -> dict[Path, np.ndarray]:
    """Draws a tree of noise, all values in each label; returns for each picture which of them is where."""
    rng = np.random.default_rng(0)
    values = drawn_values(content, tree)
    places = {}
    for picture, label in (*tree.train, tree.val):
        index = rng.permutation(np.arange(64 * 96) % len(values)).reshape(64, 96)
        places[root / picture] = index
        write_label(root / label, np.array(values, np.uint8)[index], tree.palette)
    for picture in (*(picture for picture, _ in (*tree.train, tree.val)), *tree.test, *tree.beside):
        (root / picture).parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(root / picture), rng.integers(0, 256, (64, 96, 3), np.uint8))
    return places


def write_label(path: Path, label: np.ndarray, palette: bool) -> None:
    """Writes (H, W) values, in a palette PNG or not, or (H, W, 3) RGB."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(label)
    if palette:
        image.putpalette([(7 * value) % 256 for value in range(768)])
    image.save(path)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_described_set_is_found_and_read(file: Path, tmp_path: Path) -> None:
    """A frame that is not found or is in the wrong split, or a value that means another class."""
    assert_read(file, TREES[file.stem], tmp_path)


def assert_read(file: Path, tree: Tree, root: Path) -> None:
    """Draws a tree, opens it by its description and compares frames and labels."""
    content = yaml.safe_load(file.read_text())
    values = drawn_values(content, tree)
    places = draw(tree, root, content)
    data = open_data(str(file), str(root))
    frames = {split: data.find(split) for split in data.splits}
    found = {split: {(frame.image, frame.label) for frame in frames[split]} for split in frames}
    expected = {"train": {(root / picture, root / label) for picture, label in tree.train}}
    expected["val"] = {(root / tree.val[0], root / tree.val[1])}
    if tree.test:
        expected["test"] = {(root / picture, None) for picture in tree.test}
    assert found == expected
    for frame in frames["train"] + frames["val"]:
        label = read_pair(frame)[1]
        meant = {value: np.unique(label[places[frame.image] == place]) for place, value in enumerate(values)}
        assert {value: meant[value].tolist() for value in tree.expected} == {v: [t] for v, t in tree.expected.items()}
        assert {*range(len(data.classes))} == {*np.unique(label).tolist()} - {VOID}  # no class without a value


def test_every_description_has_a_tree() -> None:
    """A description that no test opens."""
    assert sorted(TREES) == [file.stem for file in FILES]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_described_set_trains(file: Path, tmp_path: Path) -> None:
    """A description that train.py does not take."""
    draw(TREES[file.stem], tmp_path / "data", yaml.safe_load(file.read_text()))
    flags = ("--data_path", file, "--data_root", tmp_path / "data", "--output_dir", tmp_path, *STEP)
    result = run_script("train.py", *flags, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "32_64_model.pth").exists()
    assert "warning" not in result.stderr and "note" not in result.stderr


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_nineteen_classes_are_those_of_cityscapes(file: Path, tmp_path: Path) -> None:
    """Weights and scores that cannot be interchanged, because a name or the order differs."""
    classes = open_data(str(file), str(tmp_path)).classes
    if len(classes) == len(CITYSCAPES):
        assert (classes.names, classes.colors) == (CITYSCAPES.names, CITYSCAPES.colors)
        assert [group for group in classes.categories if group[1]] == [g for g in CITYSCAPES.categories if g[1]]
    else:
        assert file.stem in ("camvid", "camvid_full")


def test_cityscapes_is_described_as_it_is_built_in(tmp_path: Path) -> None:
    """The description and the folder in Cityscapes layout that do not mean the same."""
    classes = open_data(str(ROOT / "datasets" / "cityscapes.yaml"), str(tmp_path)).classes
    assert classes.categories == CITYSCAPES.categories
    assert dict(classes.labels.train_ids) | {255: 255} == dict(CITYSCAPES.labels.train_ids) | {255: 255}
    assert (classes.labels.table == CITYSCAPES.labels.table).all()
    assert (classes.labels.file_values[:19] == CITYSCAPES.labels.file_values[:19]).all()


DOCUMENTED = {  # in the order of the page
    "example": Tree(
        (folders("a", "images/train", "masks/train"), folders("b", "images/train", "masks/train")),
        folders("c", "images/val", "masks/val"),
        (),
        {0: 0, 2: 2, 255: VOID},
    ),
    "labelme": Tree(
        tuple(folders(frame, "train/JPEGImages", "train/SegmentationClass", ".jpg") for frame in "ab"),
        folders("c", "val/JPEGImages", "val/SegmentationClass", ".jpg"),
        (),
        {0: 0, 2: 2, 255: VOID},
        beside=("train/SegmentationClassVisualization/a.jpg",),
        palette=True,
    ),
    "cvat": Tree(
        tuple(folders(frame, "train/JPEGImages", "train/SegmentationClass", ".jpg") for frame in "ab"),
        folders("c", "val/JPEGImages", "val/SegmentationClass", ".jpg"),
        (),
        {(128, 64, 128): 0, (0, 0, 142): 1, (0, 0, 0): VOID},
        beside=("train/SegmentationObject/a.png",),
    ),
    "roboflow": Tree(
        (("train/a_jpg.rf.3c52.jpg", "train/a_jpg.rf.3c52_mask.png"), ("train/b.rf.1.jpg", "train/b.rf.1_mask.png")),
        ("valid/c_jpg.rf.77.jpg", "valid/c_jpg.rf.77_mask.png"),
        (),
        {0: 0, 2: 2},
    ),
}


@pytest.mark.parametrize("name", DOCUMENTED)
def test_documented_description_is_read(name: str, tmp_path: Path) -> None:
    """A description in docs/datasets.md that does not fit what the annotation tool writes."""
    blocks = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs" / "datasets.md").read_text(), re.DOTALL)
    text = dict(zip(DOCUMENTED, blocks, strict=True))[name]
    file = tmp_path / f"{name}.yaml"
    file.write_text(text)
    assert_read(file, DOCUMENTED[name], tmp_path)
