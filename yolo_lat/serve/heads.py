"""What the bytes of a picture say before anything decodes it, read in little time whatever they are.

Pillow walks through markers and chunks in Python, byte by byte where they are damaged, which takes seconds for
megabytes of noise; what is not plausible is refused here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from yolo_lat.data import image_header
from yolo_lat.serve.refusal import RefusalError

Content = bytes | bytearray

_BEGINNINGS = {
    "JPEG": (b"\xff\xd8\xff",),
    "PNG": (b"\x89PNG\r\n\x1a\n",),
    "BMP": (b"BM",),
    "TIFF": (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"),
}
_MOST_MARKERS = 2000  # of a JPEG up to its pixels; a colour profile takes at most 255
_MOST_JUNK = 65_536  # bytes between them, which decoders skip
_MOST_CHUNKS = 20_000  # of a PNG; common encoders write 8 KB or more into each
_MOST_TAGS = 65_535  # of a TIFF; more fit into BigTIFF alone


def format_of(content: Content) -> str:
    """Return JPEG, PNG, WEBP, BMP or TIFF, as the first bytes name it.

    Raises:
        RefusalError: 415.
    """
    for kind, beginnings in _BEGINNINGS.items():
        if content.startswith(beginnings):
            return kind
    if content[:4] == b"RIFF" and content[8:12] == b"WEBP":
        return "WEBP"
    raise RefusalError(415, "the upload is no JPEG, PNG, WebP, BMP or TIFF; send one of these")


def check_structure(content: Content, kind: str) -> None:
    """Raise `RefusalError` 400 for what would keep a decoder busy without being a picture."""
    check = _CHECKS.get(kind)
    if check and not check(content):
        raise broken(kind)


def webp_size(content: Content) -> tuple[int, int]:
    """Return the (width, height) that a WebP's first chunk names.

    Raises:
        RefusalError: 400.
    """
    size = image_header.webp_size(content)
    if size is None:
        raise broken("WEBP")
    return size


def broken(kind: str) -> RefusalError:
    """Return the refusal of a picture that cannot be decoded to its end."""
    return RefusalError(400, f"the {kind} is damaged or cut off; send it whole")


def _jpeg(content: Content) -> bool:
    """Whether the pixels begin after a plausible number of markers."""
    at, junk = 2, 0
    for _ in range(_MOST_MARKERS):
        start = content.find(b"\xff", at)
        junk += start - at
        if start < 0 or start + 1 >= len(content) or junk > _MOST_JUNK:
            return False
        marker = content[start + 1]
        if marker == 0xDA:
            return True
        if marker == 0xFF:  # fills up
            at = start + 1
        elif marker <= 0x01 or 0xD0 <= marker <= 0xD9:  # stands alone
            at = start + 2
        else:
            at = start + 2 + int.from_bytes(content[start + 2 : start + 4], "big")
    return False


def _png(content: Content) -> bool:
    """Whether there is a plausible number of chunks."""
    at = 8
    for _ in range(_MOST_CHUNKS):
        if at >= len(content) or content[at + 4 : at + 8] == b"IEND":
            return True
        at += 12 + int.from_bytes(content[at : at + 4], "big")
    return False


def _tiff(content: Content) -> bool:
    """Whether the first directory has a plausible number of tags."""
    order: Literal["little", "big"] = "little" if content[:2] == b"II" else "big"
    if b"+" not in content[:4]:
        return True
    at = int.from_bytes(content[8:16], order)
    return int.from_bytes(content[at : at + 8], order) <= _MOST_TAGS


_CHECKS: dict[str, Callable[[Content], bool]] = {"JPEG": _jpeg, "PNG": _png, "TIFF": _tiff}
