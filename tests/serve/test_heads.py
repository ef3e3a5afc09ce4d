"""Heads of pictures: sizes as Pillow reads them, and little time for what is meant to take much."""

from __future__ import annotations

import io
import struct
import time
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from yolo_lat.serve.heads import webp_size
from yolo_lat.serve.pictures import decode
from yolo_lat.serve.refusal import RefusalError

MEGABYTES = 20_000_000


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


@settings(max_examples=20, deadline=None)
@given(
    st.integers(1, 90),
    st.integers(1, 90),
    st.sampled_from([{}, {"lossless": True}, {"exif": b"Exif\0\0II*\0\x08\0\0\0\0\0"}]),
)
def test_webp_sizes_equal_pillows(width, height, options):
    content = saved(Image.new("RGB", (width, height)), "WEBP", **options)
    assert webp_size(content) == Image.open(io.BytesIO(content)).size == (width, height)


def big_tiff(tags: int) -> bytes:
    return b"II+\0\x08\0\0\0" + struct.pack("<QQ", 16, tags) + bytes(MEGABYTES)


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"\xff\xd8\xff" + bytes(MEGABYTES), id="JPEG of zeros"),
        pytest.param(b"\xff\xd8" + b"\xff" * MEGABYTES, id="JPEG of fill bytes"),
        pytest.param(b"\xff\xd8" + b"\xff\xe0\0\2" * (MEGABYTES // 4), id="JPEG of empty markers"),
        pytest.param(b"\xff\xd8" + b"\xff\0" * (MEGABYTES // 2), id="JPEG of lone markers"),
        pytest.param(b"\x89PNG\r\n\x1a\n" + b"\0\0\0\0tEXt\0\0\0\0" * (MEGABYTES // 12), id="PNG of empty chunks"),
        pytest.param(b"\x89PNG\r\n\x1a\n" + bytes(MEGABYTES), id="PNG of zeros"),
        pytest.param(big_tiff(10**6), id="BigTIFF of a million tags"),
        pytest.param(big_tiff(2**64 - 1), id="BigTIFF of all tags"),
        pytest.param(b"II*\0\x08\0\0\0\xff\xff" + bytes(MEGABYTES), id="TIFF of 65,535 tags"),
        pytest.param(
            b"II*\0\x08\0\0\0" + b"\1\0\x0f\1\2\0\xff\xff\xff\xff\0\0\0\0" + bytes(9), id="TIFF of one long tag"
        ),
        pytest.param(b"RIFF\0\0\0\0WEBPVP8X\x0a\0\0\0" + bytes(MEGABYTES), id="WebP of zeros"),
        pytest.param(b"BM" + bytes(MEGABYTES), id="BMP of zeros"),
    ],
)
def test_noise_is_refused_soon(content):
    begun = time.thread_time()
    with pytest.raises(RefusalError) as refused:
        decode(content, 10**6)
    assert refused.value.status == 400
    assert time.thread_time() - begun < 3


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF"])
def test_pictures_with_much_beside_their_pixels_are_read(kind):
    """A colour profile of many markers, and thousands of small chunks of pixels."""
    image = Image.effect_noise((600, 500), 90).convert("RGB")
    content = saved(image, kind, icc_profile=np.random.default_rng(0).bytes(900_000))
    assert decode(content, 10**6).image_bgr.shape == (500, 600, 3)
    if kind == "PNG":
        assert decode(rechunked(saved(image, kind), 64), 10**6).image_bgr.shape == (500, 600, 3)


def rechunked(content: bytes, size: int) -> bytes:
    """A PNG with its pixels in chunks of so many bytes."""
    out, at, pixels = bytearray(content[:8]), 8, b""
    while at < len(content):
        (length,) = struct.unpack(">I", content[at : at + 4])
        kind, data = content[at + 4 : at + 8], content[at + 8 : at + 8 + length]
        if kind == b"IDAT":
            pixels += data
        else:
            pieces = [pixels[i : i + size] for i in range(0, len(pixels), size)] if kind == b"IEND" else []
            for name, piece in [*((b"IDAT", piece) for piece in pieces), (kind, data)]:
                out += struct.pack(">I", len(piece)) + name + piece + struct.pack(">I", zlib.crc32(name + piece))
        at += 12 + length
    return bytes(out)
