"""What is in a file, whatever its name says."""

from __future__ import annotations

import os
import re
import shlex
from pathlib import Path

import cv2

_HEIF = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"}
_AVIF = {b"avif", b"avis"}
# Source: the probes of FFmpeg 8.1's demuxers hls, concat, dash, imf and sdp, which open other files or addresses.
_PLAYLISTS = (b"#extm3u", b"ffconcat version", b"<mpd", b"<compositionplaylist", b"c=in ip")


def animation(path: Path) -> str:
    """Returns the format of a picture that holds several in turn: GIF, PNG or WebP, else an empty string."""
    head = _head(path, 1 << 16)
    if head.startswith(b"GIF8"):
        return "GIF" if cv2.imcount(os.fsencode(path)) > 1 else ""
    if head.startswith(b"\x89PNG"):
        return "PNG" if b"acTL" in head.partition(b"IDAT")[0] else ""
    return "WebP" if head[8:16] == b"WEBPVP8X" and head[20] & 2 else ""


def phone_picture_advice(path: Path) -> str:
    """Returns what to do with a HEIC or AVIF picture, which this OpenCV does not decode; "" for any other file."""
    head = _head(path, 12)
    if head[4:8] != b"ftyp" or head[8:] not in _HEIF | _AVIF:
        return ""
    if head[8:] in _AVIF:
        return "is an AVIF picture, which this OpenCV does not decode: convert it to JPEG or PNG"
    names = f"{shlex.quote(path.name)} {shlex.quote(path.stem + '_new.png')}"
    return (
        f"is a HEIC picture, which OpenCV does not decode: convert it, such as by heif-convert {names} (on a Mac: sips "
        '-s format png), or let the phone take JPEG (on an iPhone: Settings, Camera, Formats, "Most Compatible")'
    )


def is_text(path: Path) -> bool:
    """Returns whether a file holds nothing but text, which FFmpeg may draw as if on a terminal."""
    head = _head(path, 4096)
    if head.startswith(b"YUV4MPEG2"):  # a video whose first line is text
        return False
    try:
        text = head.decode()
    except UnicodeDecodeError as error:
        if error.start < len(head) - 3:  # else a character that was cut off
            return False
        text = head[: error.start].decode()
    return bool(text) and not re.search(r"[\x00-\x08\x0e-\x1a\x1c-\x1f]", text)


def is_playlist(path: Path) -> bool:
    """Returns whether FFmpeg would take a file for a list of other files or addresses, and open those."""
    head = _head(path, 1 << 16)
    if head.startswith(b"ID3") and len(head) > 10:  # a tag, over which FFmpeg looks: its length has 7 bits a byte
        length = sum(byte << shift for byte, shift in zip(head[6:10], (21, 14, 7, 0), strict=True))
        head = head[10 + length :]
    text = head.partition(b"\0")[0].lower()
    return any(mark in text for mark in _PLAYLISTS)


def codec_name(path: Path) -> str:
    """Returns what a .mp4, .mkv, .webm, .avi or .ivf file calls the codec of its video, "" if it is not found."""
    with open(path, "rb") as file:
        data = file.read(1 << 20)
        file.seek(max(file.tell(), file.seek(0, os.SEEK_END) - (1 << 20)))
        data += file.read()
    boxes = (
        rb"vide.{,400}?stsd.{12}([ -~]{4})",
        rb"\x86.V_([A-Z0-9_/]+)",
        rb"strh.{4}vids([ -~]{4})",
        rb"^DKIF.{4}(....)",
    )
    found = next(filter(None, (re.search(box, data, re.DOTALL) for box in boxes)), None)
    return plain_codec(found[1].decode(errors="replace")) if found else ""


def plain_codec(name: str) -> str:
    """Returns the usual name of a codec, from the four letters of a container."""
    name = name.strip("\0 ").upper()
    return {"AV01": "AV1", "VVC1": "VVC", "VVI1": "VVC", "HEV1": "HEVC", "HVC1": "HEVC", "AVC1": "H.264"}.get(
        name, name
    )


def _head(path: Path, size: int) -> bytes:
    with open(path, "rb") as file:
        return file.read(size)
