"""What --input_pic can name, and pictures of every kind."""

from __future__ import annotations

import os
import socket
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import refused

from frames.cityscapes import cityscapes_folder
from frames.folders import find_pictures
from frames.images import irregular, read_image
from frames.samples import Sample
from utils import UserError
from viewing.sources import name_apart, open_source, read_picture
from viewing.video import Frame, Problem

RNG = np.random.default_rng(0)
COLOR = RNG.integers(0, 256, (40, 48, 3), np.uint8)


def save(path: Path, image: np.ndarray = COLOR) -> Path:
    """Writes a picture, with its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), image)
    return path


def names(data_path: object, input_pic: object) -> list[str]:
    """The names of the results."""
    return [sample.name for sample in open_source(cityscapes_folder(str(data_path)), str(input_pic)).samples]


def png(color_type: int, channels: int) -> bytes:
    """A PNG of 40x48 whose color type OpenCV does not write."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = b"".join(b"\0" + bytes(48 * channels) for _ in range(40))
    header = struct.pack(">IIBBBBB", 48, 40, 8, color_type, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def test_folder_with_the_folders_in_it(tmp_path: Path) -> None:
    """Frame 10 before frame 2; our own results, hidden files and other files taken for pictures."""
    for name in ("f10.png", "f2.png", "sub/f1.JPG", "f2_result.png", ".hidden.png"):
        save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("x")
    assert names("nowhere", tmp_path) == ["f2", "f10", "sub/f1"]


def test_pattern_below_the_data_set_or_anywhere(frames: Path, tmp_path: Path, monkeypatch) -> None:
    """A pattern that only works from one folder; a bracket in the data set's own name taken for a pattern."""
    assert names(frames, "val/*/*_leftImg8bit.png") == [f"valstadt_000000_00000{index}" for index in range(2)]
    assert names(frames, "**/*000000_leftImg8bit.png") == [
        f"{split}/{split}stadt/{split}stadt_000000_000000" for split in ("test", "train", "val")
    ]
    monkeypatch.chdir(tmp_path)
    save(tmp_path / "a[1]" / "leftImg8bit" / "x1.png")
    assert names("a[1]", "x?.png") == ["x1"]
    assert names("nowhere", "*/*/x*.png") == ["x1"]
    save(tmp_path / "is[it].png")
    assert names("nowhere", "is[it].png") == ["is[it]"]


def test_no_two_results_of_one_name(tmp_path: Path) -> None:
    """A result overwritten by that of another picture."""
    paths = [tmp_path / name for name in ("a/x.png", "b/x.png", "b/y.jpg")]
    assert [s.name for s in name_apart([Sample(path.stem, path, None) for path in paths])] == ["a/x", "b/x", "b/y"]
    paths += [tmp_path / name for name in ("a/x.jpg", "a/X.png", "a/x_leftImg8bit.png")]
    for name in ("x.png", "x.jpg", "x_leftImg8bit.png", "sub/x.png"):
        save(tmp_path / "in" / name)
    assert sorted(names("nowhere", tmp_path / "in")) == ["sub/x.png", "x.jpg", "x.png", "x_leftImg8bit.png"]


def test_ground_truth_comes_along(frames: Path) -> None:
    """Only a single picture gets its label, or labels of the test split are drawn as truth."""
    labelled = {
        sample.name: sample.label is not None
        for sample in open_source(cityscapes_folder("nowhere"), str(frames)).samples
        if "leftImg8bit" in str(sample.image)
    }
    assert len(labelled) == 6 and all(found == ("test" not in name) for name, found in labelled.items())
    first = next(open_source(cityscapes_folder(str(frames)), "val").frames())
    assert first.label.shape == first.image.shape[:2]
    assert next(open_source(cityscapes_folder(str(frames)), "val").frames(labels=False)).label is None


def test_label_of_another_size_is_a_problem(frames: Path) -> None:
    """A label of another size is drawn as ground truth, shifted against the picture."""
    label = next((frames / "gtFine" / "val").rglob("*_labelIds.png"))
    cv2.imwrite(str(label), np.zeros((32, 96), np.uint8))
    problems = [
        item for item in open_source(cityscapes_folder(str(frames)), "val").frames() if isinstance(item, Problem)
    ]
    assert len(problems) == 1 and "is 64x96" in problems[0].text and "32x96" in problems[0].text


@pytest.mark.parametrize(
    ("input_pic", "words"),
    [("", "--input_pic"), ("none.png", "none.png"), ("*.none", "0"), ("full", "2"), ("full", "1"), ("99", "99")],
)
def test_input_that_is_not_there(input_pic: str, words: str, tmp_path: Path, monkeypatch) -> None:
    """An empty run that ends with success, or a number taken for a file name."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "a.txt").write_text("x")
    (tmp_path / "full" / "a.mp4").write_text("x")
    with pytest.raises(UserError, match=words.replace("*", r"\*")):
        open_source(cityscapes_folder("nowhere"), input_pic)


def test_a_file_of_digits_is_not_a_camera(tmp_path: Path, monkeypatch) -> None:
    """A folder called 00 or 1 is taken for a camera."""
    monkeypatch.chdir(tmp_path)
    save(tmp_path / "0" / "x.png")
    assert names("nowhere", "0") == ["x"]


def test_pictures_that_are_converted(tmp_path: Path) -> None:
    """Grey and alpha pictures refused, or converted without a note; RGB pictures changed by the way of reading."""
    for path in (save(tmp_path / "c.png"), save(tmp_path / "c.jpg"), save(tmp_path / "c.webp")):
        image, note = read_picture(path)
        np.testing.assert_array_equal(image, read_image(path))
        assert note == ""
    for path in (save(tmp_path / "g.png", COLOR[..., 0]), save(tmp_path / "g.jpg", COLOR[..., 0])):
        image, note = read_picture(path)
        np.testing.assert_array_equal(image, read_image(path))
        assert "grey" in note and image.shape == COLOR.shape
    with_alpha = np.dstack([COLOR, COLOR[..., 0]])
    for path in (save(tmp_path / "a.png", with_alpha), save(tmp_path / "a.tif", with_alpha)):
        image, note = read_picture(path)
        assert "alpha" in note and image.shape == COLOR.shape
    np.testing.assert_array_equal(read_picture(tmp_path / "a.png")[0], COLOR[..., ::-1])
    (tmp_path / "two.png").write_bytes(png(4, 2))
    image, note = read_picture(tmp_path / "two.png")
    assert "alpha" in note and image.shape == COLOR.shape


def test_a_photo_is_turned_upright(tmp_path: Path) -> None:
    """The EXIF orientation is ignored by some ways of reading."""
    data = save(tmp_path / "a.jpg").read_bytes()
    turned = struct.pack("<2sHIHHHIHHI", b"II", 42, 8, 1, 0x112, 3, 1, 6, 0, 0)
    exif = b"Exif\0\0" + turned
    (tmp_path / "b.jpg").write_bytes(data[:2] + b"\xff\xe1" + struct.pack(">H", 2 + len(exif)) + exif + data[2:])
    upright = read_picture(tmp_path / "b.jpg")[0]
    np.testing.assert_array_equal(upright, np.rot90(read_picture(tmp_path / "a.jpg")[0], -1))


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_sixteen_bits_are_refused(channels: int, tmp_path: Path) -> None:
    """A depth map or a raw picture of 12 bits, divided by 256, is predicted as a night scene."""
    image = RNG.integers(0, 4096, (40, 48, channels), np.uint16)
    with refused("16 bits a channel, expected 8"):
        read_picture(save(tmp_path / "a.png", image))
    with refused("32 bits a channel, expected 8"):
        read_picture(save(tmp_path / "a.tif", image[..., :1].astype(np.float32)))


def test_size_that_no_memory_holds(tmp_path: Path) -> None:
    """A damaged or malicious header raises an exception of OpenCV's own."""
    data = bytearray(png(2, 3))
    data[16:24] = struct.pack(">II", 60000, 60000)
    data[29:33] = struct.pack(">I", zlib.crc32(bytes(data[12:29])))
    (tmp_path / "a.png").write_bytes(data)
    with refused("a.png"):
        read_picture(tmp_path / "a.png")


def test_problems_take_the_place_of_their_frames(tmp_path: Path) -> None:
    """One damaged picture ends the run over a folder."""
    save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"")
    save(tmp_path / "d.png")
    kinds = list(open_source(cityscapes_folder("nowhere"), str(tmp_path)).frames())
    assert [type(item) for item in kinds] == [Frame, Problem, Frame]
    assert "b.png" in kinds[1].text


HEIC = struct.pack(">I4s4sI4s", 24, b"ftyp", b"heic", 0, b"mif1") + bytes(200)


def phone(folder: Path) -> Path:
    """A folder as a phone, a Mac and a NAS leave it."""
    for name in ("b.JPG", "c.webp", "d.jp2", "e.avif", "g.gif", "h.pam"):
        save(folder / name)
    (folder / "c.webp").rename(folder / "no ending")
    (folder / "a.HEIC").write_bytes(HEIC)
    for index in range(3):
        (folder / f"{index}.json").write_text("{}")
    for name in ("._b.jpg", "@eaDir/b.jpg/SYNOPHOTO_THUMB.png", ".thumbnails/b.png", "sub/._x.png", "b_result.png"):
        save(folder / name)
    return folder


def test_pictures_are_known_by_what_is_in_them(tmp_path: Path) -> None:
    """Half of a phone's pictures left out without a word; previews and resource forks drawn."""
    found, left_out = find_pictures(phone(tmp_path))
    assert [path.name for path in found] == ["b.JPG", "d.jp2", "e.avif", "g.gif", "h.pam", "no ending"]
    assert left_out == "left out: 1 .heic, 3 .json, 1 _result.png"
    assert open_source(cityscapes_folder("nowhere"), str(tmp_path)).left_out == left_out
    assert all(isinstance(frame, Frame) for frame in open_source(cityscapes_folder("nowhere"), str(tmp_path)).frames())
    assert names("nowhere", tmp_path / "*") == ["b", "d", "e", "g", "h", "no ending"]
    assert names("nowhere", tmp_path / "**" / "*") == ["b", "d", "e", "g", "h", "no ending"]
    for given in ("@eaDir", "@eaDir/*/*", ".thumbnails", ".thumb*/*", "sub/._x.png", "sub/._*.png"):
        assert len(names("nowhere", tmp_path / given)) == 1, given


def test_heic_gets_advice(tmp_path: Path) -> None:
    """A good picture is called damaged, also where an iPhone's HEIC was given another ending."""
    (tmp_path / "a.HEIC").write_bytes(HEIC)
    (tmp_path / "b.jpg").write_bytes(HEIC)
    for name in ("a.HEIC", "b.jpg"):
        with refused("HEIC"):
            open_source(cityscapes_folder("nowhere"), str(tmp_path / name))
    (problem,) = open_source(cityscapes_folder("nowhere"), str(tmp_path)).frames()
    assert all(str(noun) in problem.text for noun in ("b.jpg", "HEIC"))


@pytest.mark.parametrize("kind", ["pipe", "socket", "device", "link", "loop", "folder"])
def test_what_is_no_file_is_named(kind: str, tmp_path: Path) -> None:
    """A pipe is waited for, a link that leads nowhere is dropped without a word."""
    path = save(tmp_path / "a.png").with_name("x.png")
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket":
        socket.socket(socket.AF_UNIX).bind(str(path))
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to({"device": "/dev/zero", "link": "gone.png", "loop": "x.png"}[kind])
    words = {"link": "is a link that leads nowhere", "loop": "is a link that leads nowhere"}.get(kind, f"is a {kind}")
    assert words in irregular(path)
    for given in (tmp_path, tmp_path / "*.png"):
        good, problem = open_source(cityscapes_folder("nowhere"), str(given)).frames()
        assert isinstance(good, Frame) and f"x.png {words}" in problem.text
    with pytest.raises(UserError, match="0 files" if kind == "folder" else f"x.png {words}"):
        open_source(cityscapes_folder("nowhere"), str(path))


def test_links_to_folders(tmp_path: Path) -> None:
    """Linked folders are not seen, or a loop of links gives a picture forty times."""
    save(tmp_path / "far" / "x.png")
    save(tmp_path / "in" / "a.png")
    (tmp_path / "in" / "link").symlink_to("../far")
    (tmp_path / "in" / "again").symlink_to("../far")
    (tmp_path / "in" / "loop").symlink_to(".")
    (tmp_path / "in" / "loop2").symlink_to("..")
    assert len(names("nowhere", tmp_path / "in")) == len(names("nowhere", tmp_path / "in" / "**" / "*.png")) == 2
    assert len(names("nowhere", tmp_path / "in" / "*" / "*.png")) == 2  # loop/a.png, and x.png once


@pytest.mark.parametrize("name", ["img_%03d.png", "a[1].png", "x*.png", "http:a.png", "file:a.png", "concat:a|b.png"])
def test_a_name_is_only_a_name(name: str, tmp_path: Path, monkeypatch) -> None:
    """A file whose name looks like a pattern or an address cannot be drawn, or others are in its place."""
    monkeypatch.chdir(tmp_path)
    for other in ("img_000.png", "img_001.png", "a1.png", "x1.png", name):
        save(tmp_path / other)
    assert names("nowhere", name) == [name.removesuffix(".png")]
    undecodable = os.fsdecode(b"\xff.jp2")
    os.rename(save(tmp_path / "a.jp2"), undecodable)
    assert len(list(open_source(cityscapes_folder("nowhere"), undecodable).frames())) == 1


def test_animations(tmp_path: Path) -> None:
    """An animated GIF or PNG named singly gives one frame; among others, the rest of it goes without a word."""
    animation = cv2.Animation()
    animation.frames = [np.dstack([np.roll(COLOR, shift, 1), np.full((40, 48), 255, np.uint8)]) for shift in (0, 8)]
    animation.durations = [100, 100]
    for ending in ("gif", "png", "webp"):
        assert cv2.imwriteanimation(str(tmp_path / f"a.{ending}"), animation)
        moving = ending != "webp"
        source = open_source(cityscapes_folder("nowhere"), str(tmp_path / f"a.{ending}"))
        assert source.moving == moving and len(list(source.frames())) == 1 + moving
    notes = [frame.note for frame in open_source(cityscapes_folder("nowhere"), str(tmp_path)).frames()]
    assert len(notes) == 3 and all("animated, its first picture was taken" in note for note in notes)
    assert not open_source(cityscapes_folder("nowhere"), str(save(tmp_path / "b" / "still.gif"))).moving


@pytest.mark.parametrize("name", ["a.ts", "a.flv", "a.unknown", "a.png", "noending"])
def test_a_video_is_known_by_what_is_in_it(name: str, tmp_path: Path) -> None:
    """A video whose ending is not in a list is called a damaged picture; a damaged picture is called a video."""
    writer = cv2.VideoWriter(str(tmp_path / "a.avi"), cv2.VideoWriter.fourcc(*"MJPG"), 10, (48, 40))
    writer.write(COLOR)
    writer.release()
    (tmp_path / "a.avi").rename(tmp_path / name)
    source = open_source(cityscapes_folder("nowhere"), str(tmp_path / name))
    assert source.moving and isinstance(next(source.frames()), Frame)
    for content in (b"", b"text", bytes(range(256)) * 9, png(2, 3)[:60], b"#EXTM3U\na.ts\n"):
        (tmp_path / "b.png").write_bytes(content)
        (problem,) = open_source(cityscapes_folder("nowhere"), str(tmp_path / "b.png")).frames()
        assert isinstance(problem, Problem)
