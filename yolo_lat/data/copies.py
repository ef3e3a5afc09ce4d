"""Pictures that a data set has twice: pixel by pixel, or saved again with another quality or size."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

# Largest difference between thumbnails, in grey levels of 256. On photographs, shelves and circuit boards, a picture
# saved again at JPEG quality 20 to 90, half the size or 1.7 times the size differs by at most 16, and other pictures
# with 40 or fewer different bits by 32 or more.
TOLERANCE = 16
_CONTRAST = 4 * TOLERANCE  # of the thumbnail; flat pictures look alike without being the same
_BANDS = 8  # of 32 bits each: two thumbnails with 7 or fewer different bits surely agree in one
_NEIGHBOURS = 8  # compared with, in the order of brightness, among those that agree: keeps the time linear


def exact_copies(digests: Sequence[bytes]) -> list[list[int]]:
    """Return the groups of two or more positions that have the same digest, in the order of their first."""
    groups: dict[bytes, list[int]] = {}
    for position, digest in enumerate(digests):
        groups.setdefault(digest, []).append(position)
    return [group for group in groups.values() if len(group) > 1]


def look_alikes(thumbs: np.ndarray) -> np.ndarray:
    """Return the pairs of pictures that are probably one, saved differently; cropped or shifted ones are not found.

    Candidates agree in a part of their difference hash (Krawetz, "Kind of Like That", 2013: whether each grey level is
    above its left neighbour's), and all grey levels of a pair differ by at most `TOLERANCE`.

    Args:
        thumbs: (n, 16, 17) uint8, as `Facts.thumb`.

    Returns:
        (m, 2) positions, the smaller one first, sorted.
    """
    flat = thumbs.reshape(len(thumbs), thumbs.shape[1] * thumbs.shape[2])
    clear = np.flatnonzero(flat.max(1, initial=0).astype(int) - flat.min(1, initial=255) >= _CONTRAST)
    flat = flat[clear]
    bits = np.packbits(thumbs[clear, :, 1:] > thumbs[clear, :, :-1], axis=(-1)).reshape(len(clear), 4 * _BANDS)
    keys = np.ascontiguousarray(bits).view(np.uint32).reshape(len(clear), _BANDS)
    brightness = flat.mean(1)
    found = [np.empty((0, 2), np.int64)]
    for key in keys.T:
        order = np.lexsort((brightness, key))
        for step in range(1, min(_NEIGHBOURS, len(order) - 1) + 1):
            one, other = order[:-step], order[step:]
            same = key[one] == key[other]
            one, other = one[same], other[same]
            apart = np.maximum(flat[one], flat[other]) - np.minimum(flat[one], flat[other])
            near = apart.max(1, initial=0) <= TOLERANCE
            found.append(np.stack([clear[one[near]], clear[other[near]]], axis=1))
    pairs = np.sort(np.concatenate(found), axis=1)
    return np.unique(pairs, axis=0)
