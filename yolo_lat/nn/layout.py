"""The same operations on feature maps for two kinds of processor, which want them in different orders.

Modules speak (B, C, H, W). ONNX Runtime runs convolutions on a GPU channels last and turns a map around, there and
back, for every operator that it has only channels first, such as Resize. Within `channels_last_graph`, upsampling and
rows of tokens are written as reshapes of channels-last maps, so that their transpositions cancel with those around the
convolutions. A CPU, and PyTorch, are faster without. Results are the same numbers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

_channels_last: ContextVar[bool] = ContextVar("channels_last", default=False)


@contextmanager
def channels_last_graph(wanted: bool = True) -> Iterator[None]:
    """Write what is traced inside for convolutions that run channels last."""
    token = _channels_last.set(wanted)
    try:
        yield
    finally:
        _channels_last.reset(token)


def channels_last(x: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, H, W, C)."""
    return x.permute(0, 2, 3, 1)


def channels_first(x: Tensor) -> Tensor:
    """(B, H, W, C) -> (B, C, H, W)."""
    return x.permute(0, 3, 1, 2)


# Reshaping with sizes read off the tensors, unlike flatten and unflatten, stays dynamic in an exported graph.


def token_rows(x: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, H·W, C)."""
    b, c = x.shape[:2]
    return channels_last(x).reshape(b, -1, c) if _channels_last.get() else x.reshape(b, c, -1).transpose(1, 2)


def as_map(rows: Tensor, like: Tensor) -> Tensor:
    """Undo `token_rows`: (B, H·W, C) -> (B, C, H, W) with the height and width of `like`."""
    b, c, h, w = rows.shape[0], rows.shape[2], like.shape[2], like.shape[3]
    if _channels_last.get():
        return channels_first(rows.reshape(b, h, w, c))
    return rows.transpose(1, 2).reshape(b, c, h, w)


def side_by_side(levels: Sequence[Tensor]) -> Tensor:
    """Lay the positions of all levels in a column: [(B, C, H_l, W_l)] -> (B, C, sum H_l·W_l, 1)."""
    if _channels_last.get():
        return channels_first(torch.cat([token_rows(x) for x in levels], dim=1).unsqueeze(2))
    return torch.cat([x.reshape(*x.shape[:2], -1) for x in levels], dim=2).unsqueeze(-1)


def split_levels(tokens: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """Undo `side_by_side`: (B, C, A, 1) -> [(B, C, H_l, W_l)] with the heights and widths of `like`."""
    levels, start = [], 0
    rows = token_rows(tokens)
    for x in like:
        end = start + x.shape[2] * x.shape[3]
        levels.append(as_map(rows[:, start:end], x))
        start = end
    return levels


def into_areas(x: Tensor, areas: int) -> Tensor:
    """Cut a map into equal runs of its positions in row-major order: (B, C, H, W) -> (B·areas, C, H·W / areas, 1)."""
    b, c = x.shape[:2]
    return x.reshape(b, c, areas, -1).transpose(1, 2).reshape(b * areas, c, -1, 1)


def from_areas(y: Tensor, like: Tensor, areas: int) -> Tensor:
    """Undo `into_areas`: (B·areas, C, H·W / areas, 1) -> (B, C, H, W) with the batch, height and width of `like`."""
    b, _, h, w = like.shape
    return y.reshape(b, areas, y.shape[1], -1).transpose(1, 2).reshape(b, y.shape[1], h, w)


def rows_product(rows: Tensor, matrix: Tensor) -> Tensor:
    """(B, L, K) @ (B, K, M) -> (B, L, M), in the order in which `token_rows` and `as_map` turn nothing around."""
    if _channels_last.get():
        return rows @ matrix
    return (matrix.transpose(1, 2) @ rows.transpose(1, 2)).transpose(1, 2)


def add_upsampled(fine: Tensor, coarse: Tensor, factor: int) -> Tensor:
    """Add (B, C, H, W), repeated to nearest neighbours, to (B, C, factor·H, factor·W)."""
    if not _channels_last.get():
        return fine + F.interpolate(coarse, scale_factor=float(factor), mode="nearest")
    b, c, h, w = coarse.shape
    cells = channels_last(fine).reshape(b, h, factor, w, factor, c) + channels_last(coarse).reshape(b, h, 1, w, 1, c)
    return channels_first(cells.reshape(b, h * factor, w * factor, c))
