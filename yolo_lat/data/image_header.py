"""What the first bytes of an image file say, read without a decoder."""

from __future__ import annotations


def webp_size(content: bytes | bytearray) -> tuple[int, int] | None:
    """Return the (width, height) that a WebP's first chunk names, as in its container specification and RFC 6386.

    Args:
        content: the file, or its first 30 bytes.

    Returns:
        None for what is no WebP, or one that is cut off.
    """
    chunk, data = content[12:16], content[20:30]
    if content[:4] == b"RIFF" and content[8:12] == b"WEBP" and len(data) == 10:
        if chunk == b"VP8X":
            return int.from_bytes(data[4:7], "little") + 1, int.from_bytes(data[7:10], "little") + 1
        if chunk == b"VP8 ":
            return int.from_bytes(data[6:8], "little") & 0x3FFF, int.from_bytes(data[8:10], "little") & 0x3FFF
        if chunk == b"VP8L":
            bits = int.from_bytes(data[1:5], "little")
            return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    return None
