"""Interlaced video, whose frames FFmpeg refuses to convert and OpenCV gives as they were before."""

from __future__ import annotations

import re
import struct
from pathlib import Path

import numpy as np
import pytest
from conftest import refused
from makers import bar, places, write_as

from viewing import video as video_module
from viewing.video import Frame, Problem, open_capture, read_frames


class Bits:
    """Bits of an H.264 stream."""

    def __init__(self) -> None:
        self.text = ""

    def fixed(self, value: int, count: int) -> Bits:
        self.text += f"{value:0{count}b}"
        return self

    def golomb(self, *values: int) -> Bits:
        self.text += "".join("0" * ((value + 1).bit_length() - 1) + f"{value + 1:b}" for value in values)
        return self

    def data(self, values: bytes) -> Bits:
        self.text += "0" * (-len(self.text) % 8) + "".join(f"{value:08b}" for value in values)
        return self

    def unit(self, kind: int) -> bytes:
        self.fixed(1, 1).data(b"")
        data = int(self.text, 2).to_bytes(len(self.text) // 8, "big")
        return b"\0\0\0\1" + bytes([kind]) + re.sub(rb"\0\0(?=[\0-\3])", b"\0\0\3", data)


def interlaced_h264(images: list[np.ndarray]) -> bytes:
    """An H.264 stream as of a 1080i camera: fields and frames mixed by macroblock (MBAFF), not compressed.

    `images` are (H, W) uint8 luma; 32 has to divide H, 16 W.
    """
    height, width = images[0].shape
    # Main profile; one reference frame, size in macroblocks (pairs of rows), not only frames, mb_adaptive_frame_field.
    size = (width // 16 - 1, height // 32 - 1)
    sequence = (
        Bits().fixed(77, 8).fixed(0, 8).fixed(30, 8).golomb(0, 0, 2, 1).fixed(0, 1).golomb(*size).fixed(0b01100, 5)
    )
    parameters = Bits().golomb(0, 0).fixed(0, 2).golomb(0, 0, 0).fixed(0, 3).golomb(0, 0, 0).fixed(0, 3)
    stream = b""
    for index, image in enumerate(images):
        # An IDR slice: intra only, frame number 0, a frame and no field.
        slice_ = Bits().golomb(0, 7, 0).fixed(0, 4).fixed(0, 1).golomb(index % 2).fixed(0, 2).golomb(0)
        for row in range(0, height, 32):
            for column in range(0, width, 16):
                for part in (0, 16):
                    if part == 0:
                        slice_.fixed(0, 1)  # this pair is of frame macroblocks
                    block = image[row + part : row + part + 16, column : column + 16]
                    slice_.golomb(25).data(block.tobytes() + bytes([128]) * 128)  # I_PCM
        stream += Bits.unit(sequence, 0x67) if not index else b""
        stream += Bits.unit(parameters, 0x68) if not index else b""
        stream += slice_.unit(0x65)
    return stream


def mark_interlaced(data: bytes, pictures: range) -> bytes:
    """Marks some pictures of an MPEG-2 stream as interlaced."""
    changed = bytearray(data)
    extensions = [found.end() for found in re.finditer(rb"\x00\x00\x01\xb5", data)]
    for at in extensions:
        if data[at] >> 4 == 1:  # of the sequence: it is not progressive throughout
            changed[at + 1] &= ~8
    for at in [at for at in extensions if data[at] >> 4 == 8][pictures.start : pictures.stop]:
        changed[at + 4] &= 0x7F
    return bytes(changed)


@pytest.mark.parametrize("kind", ["dv.avi", "dv.mov", "h264", "some.avi", "turned.mov"])
def test_interlaced_frames_are_the_real_ones(kind: str, tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    """Black, uninitialised memory or the last good frame again: FFmpeg refuses such frames, OpenCV does not look."""
    path = tmp_path / kind
    if kind == "h264":
        path.write_bytes(interlaced_h264([bar(index, 96, 128)[..., 0] for index in range(6)]))
    elif kind == "some.avi":
        path.write_bytes(mark_interlaced(write_as(path, "MPG2", 12, width=160).read_bytes(), range(4, 7)))
        assert places(path) == [8 * index + 8 for index in range(12)]
        return
    else:
        write_as(path, "dvcp" if kind.endswith("mov") else "dvsd", height=576, width=720)
    if kind == "turned.mov":
        matrix = struct.pack(">9i", 1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)
        turned = struct.pack(">9i", -1 << 16, 0, 0, 0, -1 << 16, 0, 0, 0, 1 << 30)
        data = path.read_bytes()
        at = data.index(matrix, data.index(b"tkhd"))
        path.write_bytes(data[:at] + turned + data[at + 36 :])
    expected = [720 - 8 * index - 40 if kind == "turned.mov" else 8 * index + 8 for index in range(6)]
    assert np.abs(np.subtract(places(path), expected)).max() <= 2
    assert capfd.readouterr() == ("", "")


def test_interlaced_frames_without_filters_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An OpenCV without FFmpeg's filters draws uninitialised memory."""
    monkeypatch.setattr(video_module, "_deinterlaced", lambda *_: None)
    path = write_as(tmp_path / "a.avi", "dvsd", height=576, width=720)
    frames = read_frames(open_capture(path), path)
    problem = next(frames)
    assert problem.frames == 6 and all(str(noun) in problem.text for noun in ("0", "5"))
    with refused("a_vp9.webm"):
        next(frames)
    path.write_bytes(mark_interlaced(write_as(path, "MPG2", 12).read_bytes(), range(4, 7)))
    items = list(read_frames(open_capture(path), path))
    assert sum(item.frames for item in items if isinstance(item, Problem)) == 3
    assert sum(isinstance(item, Frame) for item in items) == 9
