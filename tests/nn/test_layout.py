"""Both orders of a feature map give the same numbers, and what is laid out can be taken back."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from yolo_lat.nn.layout import (
    add_upsampled,
    as_map,
    channels_last_graph,
    rows_product,
    side_by_side,
    split_levels,
    token_rows,
)

SIDE = st.integers(1, 7)
SIZES = st.lists(st.tuples(SIDE, SIDE), min_size=1, max_size=4)
ORDERS = pytest.mark.parametrize("last", [False, True], ids=["channels first", "channels last"])


def numbered(*shape: int, start: int = 0) -> Tensor:
    """No two elements are equal, so that none can take another's place unseen."""
    x = torch.arange(start, start + torch.Size(shape).numel(), dtype=torch.float64)
    return x.reshape(shape)


def in_both_orders(function):
    results = []
    for last in (False, True):
        with channels_last_graph(last):
            results.append(function())
    return results


@settings(deadline=None)
@given(SIDE, SIDE, SIDE, SIDE)
def test_rows_of_tokens_are_positions_in_row_major_order(b, c, h, w):
    x = numbered(b, c, h, w)
    first, last = in_both_orders(lambda: token_rows(x))
    assert torch.equal(first, last)
    assert first.shape == (b, h * w, c)
    for row, column in itertools.product(range(h), range(w)):
        assert torch.equal(first[:, row * w + column], x[:, :, row, column])
    for back in in_both_orders(lambda: as_map(first, x[:, :1])):  # its own width, the sizes of the other
        assert torch.equal(back, x)


@settings(deadline=None)
@given(SIDE, SIDE, SIZES)
def test_levels_are_laid_side_by_side_and_taken_apart(b, c, sizes):
    levels = [numbered(b, c, h, w, start=1000 * i) for i, (h, w) in enumerate(sizes)]
    first, last = in_both_orders(lambda: side_by_side(levels))
    assert torch.equal(first, last)
    assert torch.equal(first.squeeze(-1), torch.cat([x.flatten(2) for x in levels], dim=2))
    for apart in in_both_orders(lambda: split_levels(first, [x[:, :1] for x in levels])):
        assert len(apart) == len(levels)
        assert all(torch.equal(x, y) for x, y in zip(apart, levels, strict=True))


@settings(deadline=None)
@given(SIDE, SIDE, SIDE, SIDE, st.integers(1, 4))
def test_adding_a_coarse_map_is_nearest_neighbour_upsampling_and_a_sum(b, c, h, w, factor):
    fine, coarse = numbered(b, c, factor * h, factor * w), numbered(b, c, h, w, start=10**6)
    expected = fine + F.interpolate(coarse, scale_factor=float(factor), mode="nearest")
    for found in in_both_orders(lambda: add_upsampled(fine, coarse, factor)):
        assert torch.equal(found, expected)


@settings(deadline=None)
@given(SIDE, SIDE, SIDE, SIDE)
def test_a_product_with_rows_is_the_product(b, rows, k, m):
    x, matrix = numbered(b, rows, k), numbered(b, k, m)
    for found in in_both_orders(lambda: rows_product(x, matrix)):
        assert torch.equal(found, x @ matrix)


@ORDERS
def test_gradients_pass(last):
    x = torch.rand(2, 3, 4, 6, dtype=torch.float64, requires_grad=True)
    coarse = torch.rand(2, 3, 2, 3, dtype=torch.float64, requires_grad=True)
    with channels_last_graph(last):
        assert torch.autograd.gradcheck(lambda a, b: add_upsampled(a, b, 2), (x, coarse))
        assert torch.autograd.gradcheck(lambda a, b: split_levels(side_by_side([a, b]), [a, b])[1], (x, coarse))


def test_the_order_holds_within_the_block_alone_and_blocks_nest():
    x = torch.rand(1, 2, 3, 4)

    def last() -> bool:
        return side_by_side([x]).is_contiguous(memory_format=torch.channels_last)

    assert not last()
    with channels_last_graph():
        assert last()
        with channels_last_graph(False):
            assert not last()
        assert last()
    with pytest.raises(RuntimeError, match="inside"), channels_last_graph():
        raise RuntimeError("inside")
    assert not last()
