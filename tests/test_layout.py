"""Which pictures and labels a description finds."""

from __future__ import annotations

import pickle
import re
from pathlib import Path, PurePosixPath

import numpy as np
import pytest
from conftest import refused
from tiny_sets import NAMES, describe, opened, pairs, put

from frames.description import open_data
from frames.samples import read_pair

ONE = {"images/x.png": "masks/x.png"}


@pytest.fixture
def one(tmp_path: Path) -> Path:
    """A folder with a picture and its label."""
    put(tmp_path, "images/x.png", "masks/x.png")
    return tmp_path


@pytest.mark.parametrize(
    "entry", ["images", "./images", "../images", "images/x.png", ["images"], "images/*.png", "imag?s"]
)
def test_an_entry_is_a_folder_a_picture_a_pattern_or_a_list(entry: str | list, tmp_path: Path) -> None:
    """A form that others read is refused: a list of Roboflow begins with ../ though its folder is beside the file."""
    put(tmp_path, "images/x.png", "masks/x.png")
    assert pairs(opened(tmp_path, train=entry)) == ONE


def test_parent_folder_wins_over_the_retry_without_it(tmp_path: Path) -> None:
    """With ../ left out at once, the wrong one of two folders of the same name is read."""
    put(tmp_path, "images/x.png", "masks/x.png", "set/images/y.png", "set/masks/y.png")
    data = opened(tmp_path / "set", train="../images")
    assert [sample.image for sample in data.find("train")] == [tmp_path / "images" / "x.png"]


def test_folders_are_searched_with_the_folders_in_them(tmp_path: Path) -> None:
    """Only the top folder is read, or what a system left there is taken for a picture."""
    put(tmp_path, *(f"{kind}/a/b/x.png" for kind in ("images", "masks")), "images/@eaDir/x.png", "images/.x.png")
    (tmp_path / "images" / "notes.txt").write_text("x")
    put(tmp_path, "masks/@eaDir/x.png")
    assert len(opened(tmp_path, train="images/**/*.png").find("train")) == 1
    (sample,) = opened(tmp_path).find("train")
    assert (sample.folder, sample.name, sample.label) == ("a/b", "x", tmp_path / "masks/a/b/x.png")


def test_lines_of_a_list_are_tried_beside_it_and_under_path(tmp_path: Path) -> None:
    """Lists of Ultralytics are relative to the list with ./ and to the root without it; others the other way round."""
    put(
        tmp_path,
        "lists/images/x.png",
        "lists/masks/x.png",
        "images/y.png",
        "masks/y.png",
        "images/z.png",
        "masks/z.png",
    )
    (tmp_path / "lists" / "train.txt").write_bytes(
        b"\xef\xbb\xbf./images/x.png\r\n\r\nimages/y.png\r\n%s\r\n" % bytes(tmp_path / "images" / "z.png")
    )
    found = pairs(opened(tmp_path, train="lists/train.txt"))
    assert found == {
        f"{place}images/{n}.png": f"{place}masks/{n}.png" for place, n in (("", "y"), ("", "z"), ("lists/", "x"))
    }


def test_root_is_beside_the_file_or_in_the_working_directory(one: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`path` against one folder only, or --data_root that is not believed."""
    (one / "described" / "inner").mkdir(parents=True)
    monkeypatch.chdir(one.parent)
    for folder, path in ((one, None), (one / "described", ".."), (one / "described", one.name), (one, str(one))):
        data = opened(folder, path=path)
        assert [sample.image for sample in data.find("train")] == [one / "images" / "x.png"]
        assert data.pictures == one
    file = str(describe(one / "described", path="/nowhere", train="images", names=NAMES))
    assert len(open_data(file, one.name).find("train")) == 1
    with refused("path", "/nowhere", one / "described", one.parent, "--data_root"):
        open_data(file)


def test_validation_is_another_name_for_val(one: Path) -> None:
    """A data set whose file says `validation` has no split to score."""
    data = opened(one, validation="images")
    assert data.splits == ("train", "val") and pairs(data, "val") == ONE
    with refused("test"):
        data.find("test")


def test_test_split_has_no_labels(one: Path) -> None:
    """Pictures to predict are refused because nobody has labelled them, or dummies are scored."""
    put(one, "images/y.png")
    assert pairs(opened(one, test="images"), "test") == {"images/x.png": None, "images/y.png": None}


@pytest.mark.parametrize(
    ("masks", "suffixes", "picture", "label"),
    [
        (None, {}, "images/a/x.jpg", "masks/a/x.png"),
        ("annotations", {}, "images/train/x.jpg", "annotations/train/x.png"),
        ("../labels/sem", {}, "data/images/x.jpg", "labels/sem/x.png"),
        ("masks", {}, "images/a/images/x.jpg", "images/a/masks/x.png"),
        ({"leftImg8bit": "gtFine"}, {"_leftImg8bit.png": "_gtFine_labelIds.png"},
         "leftImg8bit/train/a/a_leftImg8bit.png", "gtFine/train/a/a_gtFine_labelIds.png"),
        ({"image_2": "semantic"}, {}, "training/image_2/x.png", "training/semantic/x.png"),
        ({"images/10k": "labels/sem_seg/masks"}, {}, "images/10k/train/x.jpg", "labels/sem_seg/masks/train/x.png"),
        ({"train": "trainannot", "val": "valannot"}, {}, "train/x.png", "trainannot/x.png"),
        ({"images": "masks", "images/a": "of_a"}, {}, "images/a/x.jpg", "of_a/x.png"),
        ({"rgb_anon": "gt"}, {"_rgb_anon.png": "_gt_labelIds.png"},
         "rgb_anon/fog/x_rgb_anon.png", "gt/fog/x_gt_labelIds.png"),
        ({"images": "images"}, {".jpg": "_mask.png"}, "images/x.jpg", "images/x_mask.png"),
    ],
)  # fmt: skip
def test_label_path_follows_masks_dir_and_label_suffix(
    masks, suffixes, picture: str, label: str, tmp_path: Path
) -> None:
    """The layouts of other data sets, each of which needs another rule."""
    put(tmp_path, picture, label)
    train = str(PurePosixPath(picture).parent)
    data = opened(tmp_path, train=train, masks_dir=masks, label_suffix=suffixes)
    assert pairs(data) == {picture: label}
    assert data.sample(tmp_path / picture).label == tmp_path / label


@pytest.mark.parametrize("ending", [".PNG", ".bmp", ".tif", ".webp", ".pgm"])
def test_labels_with_another_ending_are_found(ending: str, tmp_path: Path) -> None:
    """A label that is not .png is reported as missing."""
    put(tmp_path, "images/x.jpg", "masks/x.png")
    (tmp_path / "masks" / "x.png").rename(tmp_path / "masks" / f"x{ending}")
    put(tmp_path, "masks/x.jpg")
    assert pairs(opened(tmp_path)) == {"images/x.jpg": f"masks/x{ending}"}


def test_label_beside_its_picture_is_found_by_a_pattern(tmp_path: Path) -> None:
    """x.jpg with x.png beside it is refused as if the label were the picture."""
    put(tmp_path, "images/x.jpg", "images/x.png")
    assert pairs(opened(tmp_path, train="images/*.jpg", masks_dir="images")) == {"images/x.jpg": "images/x.png"}


def test_pictures_of_several_folders_do_not_collide(tmp_path: Path) -> None:
    """Two pictures of one name: one is lost, or its predictions are overwritten by the other's."""
    put(tmp_path, *(f"{root}/{kind}/x.jpg" for root in "ab" for kind in ["images"]))
    for value, root in enumerate("ab", 1):
        put(tmp_path, f"{root}/masks/x.png", value=value)
    samples = opened(tmp_path, train=["b/images", "a/images"]).find("train")
    assert [(sample.folder, sample.name) for sample in samples] == [("a/images", "x"), ("b/images", "x")]
    assert [read_pair(sample)[1][0, 0] for sample in samples] == [1, 2]
    assert pickle.loads(pickle.dumps(samples)) == samples


def test_a_picture_named_twice_is_read_once(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Overlapping entries count frames twice without a word."""
    put(tmp_path, "images/a/x.png", "masks/a/x.png")
    assert len(opened(tmp_path, train=["images", "images/a"]).find("train")) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "train" in line and line.endswith(": 1")


def test_labels_without_a_picture_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Half of the pictures got lost on the way, and nobody says so."""
    put(tmp_path, "images/x.png", *(f"masks/{name}.png" for name in "xyz"), "masks/.hidden.png")
    opened(tmp_path).find("train")
    assert capsys.readouterr().err.endswith("data.yaml: train: labels without a picture: 2\n")
    opened(tmp_path, train="images/x.*").find("train")  # which leaves pictures, and so labels, to other splits
    assert not capsys.readouterr().err


def test_other_files_of_a_label_folder_are_no_labels(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Cityscapes has color and instance files beside the labels: a note about 5,950 of them is noise."""
    put(tmp_path, "img/a_im.png", "gt/a_ids.png", "gt/a_color.png", "gt/b_ids.png", "img/notes.png")
    opened(tmp_path, train="img", masks_dir={"img": "gt"}, label_suffix={"_im.png": "_ids.png"}).find("train")
    first, second = capsys.readouterr().err.splitlines()
    assert "label_suffix" in first and first.endswith(": 1") and second.endswith(": 1")


def test_viewer_sample_without_a_label(one: Path) -> None:
    """A picture from anywhere cannot be looked at, because the data set has no label for it."""
    put(one, "elsewhere/y.png")
    assert opened(one).sample(one / "elsewhere" / "y.png").label is None


@pytest.mark.parametrize(
    ("files", "keys", "message"),
    [
        ([], {}, "train|images"),
        ([], {"train": "*.png"}, "train|*.png"),
        (["images/sub/"], {}, "images"),
        (["images/x.png"], {}, "images/x.png"),
        (["images/x.png", "masks/y.png"], {}, "images/x.png|masks/x.png"),
        (["pic/x.png"], {"train": "pic", "masks_dir": "m"}, "images|masks_dir"),
        (["pic/x.png"], {"train": "pic", "masks_dir": {"a": "b"}}, "a|masks_dir"),
        (["images/x.png"], {"masks_dir": "images"}, "images/x.png"),
        (["images/x.png", "images/x.jpg", "masks/x.png"], {}, "x.jpg|x.png"),
        (["images/x.png", "masks/x.jpg"], {}, "masks/x.jpg|JPEG"),
        (["images/x.png", "masks/x_m.jpg"], {"label_suffix": {".png": "_m.jpg"}}, "masks/x_m.jpg|JPEG"),
        (["images/x.png", "masks/x.txt"], {}, "masks/x.txt|YOLO"),
        (["a/images/b/x.png", "a/labels/b/x.txt"], {"train": "a"}, "labels/b/x.txt|YOLO"),
        (["pic/x.png", "pic/x.txt"], {"train": "pic"}, "pic/x.txt|YOLO"),
        (["images/x.png"], {"label_suffix": {"_a.png": "_b.png"}}, "_a.png"),
        (["list.txt"], {"train": "list.txt"}, "list.txt"),
        (["list.txt=gone.png"], {"train": "list.txt"}, "list.txt|1|gone.png"),
        (["list.txt=gone.png"], {"train": "list.txt"}, ""),
        (["list.txt=a\0b/../x.png"], {"train": "list.txt"}, "1"),
        (["list.txt=\udcff"], {"train": "list.txt"}, "8"),
        ([], {"train": "x" * 5000}, "train"),
    ],
)  # fmt: skip
def test_what_is_missing_is_named(files: list[str], keys: dict, message: str, tmp_path: Path) -> None:
    """A run that starts without its frames, or ends in a traceback of a library."""
    for file in files:
        name, _, text = file.partition("=")
        if name.endswith((".png", ".jpg")):
            put(tmp_path, name)
        else:
            path = tmp_path / name
            (path if name.endswith("/") else path.parent).mkdir(parents=True, exist_ok=True)
            if not name.endswith("/"):
                path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with refused(*message.split("|")) as error:
        opened(tmp_path, **keys).find("train")
    assert re.match(r"\S*data\.yaml: ", str(error.value)) and "\n" not in str(error.value)


def test_other_splits_may_be_missing(one: Path) -> None:
    """Whoever only has val cannot score it, because train is elsewhere."""
    assert pairs(opened(one, train="not here", val="images"), "val") == ONE


def test_mixed_sizes_and_endings(tmp_path: Path) -> None:
    """Phones write .JPG in several sizes."""
    for index, shape in enumerate([(6, 8), (9, 7)]):
        put(tmp_path, f"images/{index}.JPG", value=np.zeros((*shape, 3), np.uint8))
        put(tmp_path, f"masks/{index}.png", value=np.ones(shape, np.uint8))
    assert [read_pair(sample)[1].shape for sample in opened(tmp_path).find("train")] == [(6, 8), (9, 7)]
