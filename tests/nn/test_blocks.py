"""Blocks: shapes, gradients, the laws they are built on, and the fused form."""

from __future__ import annotations

import pytest
import torch
from forms import check_gradients_and_fused_forms, fuse, maps, settled
from torch import Tensor, nn

from yolo_lat.ela import KERNELS, ela_state
from yolo_lat.nn import CrossScaleELA, ELA2d, ELABlock, ELALayer, GatedFFN, HyperLink, Level, LocalBlock, PixelStem
from yolo_lat.nn.attention import merge_heads, split_heads
from yolo_lat.nn.layout import channels_last_graph

LAST = pytest.mark.parametrize("last", [False, True], ids=["channels first", "channels last"])


BLOCKS = {
    "ELA2d": (lambda: ELA2d(32, 32), maps(32)[0], 32),
    "ELA2d widening": (lambda: ELA2d(16, 32, heads=2, key_dim=16), maps(16)[0], 32),
    "GatedFFN": (lambda: GatedFFN(24, 2.0), maps(24)[0], 24),
    "ELALayer": (lambda: ELALayer(32, 4, 8, "HadamardExp", 1.0), maps(32)[0], 32),
    "ELABlock": (lambda: ELABlock(32, 32, n=2), maps(32)[0], 32),
    "ELABlock narrowing": (lambda: ELABlock(48, 32, n=1), maps(48)[0], 32),
    "LocalBlock": (lambda: LocalBlock(32, 32, n=2), maps(32)[0], 32),
    "LocalBlock dense": (lambda: LocalBlock(16, 32, n=1, k=5, depthwise=False), maps(16)[0], 32),
    "PixelStem": (lambda: PixelStem(3, 16), maps(3, size=64)[0], 16),
    **{f"ELABlock {name}": (lambda name=name: ELABlock(16, 16, kernel=name), maps(16)[0], 16) for name in KERNELS},
}


@LAST
@pytest.mark.parametrize("name", BLOCKS)
def test_block_shape_gradient_and_fused_form(name: str, last: bool) -> None:
    build, x, width = BLOCKS[name]
    block = settled(build(), x)
    y = block(x)
    assert y.shape == (2, width, 16, 16)
    y.square().mean().backward()
    lacking = [n for n, p in block.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert not lacking
    with channels_last_graph(last):
        torch.testing.assert_close(fuse(block)(x), y, rtol=1e-4, atol=1e-4)


def test_attention_reaches_every_position_and_order_does_not_matter_without_positions() -> None:
    layer = settled(ELA2d(16, 16, pe=1), maps(16)[0])
    x = maps(16)[0].requires_grad_()
    layer(x)[:, :, 0, 0].sum().backward()
    assert (x.grad.abs().sum(1) > 0).all()  # a corner sees the whole map
    order = torch.randperm(256)
    shuffled = x.detach().flatten(2)[:, :, order].unflatten(2, (16, 16))
    torch.testing.assert_close(layer(shuffled).flatten(2), layer(x).flatten(2)[:, :, order], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("build", [lambda: ELA2d(30, 30), lambda: CrossScaleELA([30], 30), lambda: ELABlock(8, 30)])
def test_heads_that_do_not_divide_the_width(build) -> None:
    with pytest.raises(ValueError, match=r"heads=4 does not divide the width 30; use one of \[1, 2, 3, 5, 6"):
        build()


class TestHyperLink:
    def test_is_the_gated_sum_of_its_inputs(self) -> None:
        fine, coarse = maps(16, 24)
        same = torch.randn_like(fine)
        link = settled(HyperLink([16, 24, 16], 16, [1, 2, 1]), [fine, coarse, same])
        up = nn.functional.interpolate(link.links[1](coarse), scale_factor=2.0, mode="nearest")
        torch.testing.assert_close(link([fine, coarse, same]), fine + up + link.links[2].scale * same)

    def test_convolving_before_upsampling_equals_convolving_after(self) -> None:
        fine, coarse = maps(16, 24)
        link = settled(HyperLink([16, 24], 16, [1, 2]), [fine, coarse])
        late = link.links[1](nn.functional.interpolate(coarse, scale_factor=2.0, mode="nearest"))
        torch.testing.assert_close(link([fine, coarse]), fine + late)

    def test_the_stream_passes_unchanged_and_carries_a_gradient_of_one(self) -> None:
        link = HyperLink([8, 8], 8)
        assert isinstance(link.links[0], nn.Identity)
        x, y = maps(8)[0].requires_grad_(), maps(8)[0]
        link([x, y]).sum().backward()
        assert torch.equal(x.grad, torch.ones_like(x))

    @LAST
    def test_fused_form(self, last: bool) -> None:
        inputs = maps(16, 24)
        link = settled(HyperLink([16, 24], 32, [1, 2]), inputs)
        with channels_last_graph(last):
            torch.testing.assert_close(fuse(link)(inputs), link(inputs), rtol=1e-4, atol=1e-4)

    @LAST
    @pytest.mark.parametrize("order", [[0, 1, 2], [2, 0, 1], [1, 2, 0]], ids=str)
    def test_the_order_of_its_inputs_does_not_matter(self, order: list[int], last: bool) -> None:
        inputs, factors = maps(16, 16, 16), [1, 2, 4]
        link = HyperLink([16] * 3, 16, [factors[i] for i in order])
        expected = sum(
            nn.functional.interpolate(x, scale_factor=float(f)) for x, f in zip(inputs, factors, strict=True)
        )
        with channels_last_graph(last):
            torch.testing.assert_close(link([inputs[i] for i in order]), expected)

    def test_inputs_that_are_all_coarser(self) -> None:
        coarse, coarser = maps(8, 8)
        found = HyperLink([8, 8], 8, [2, 4])([coarse, coarser])
        assert found.shape == (2, 8, 32, 32)
        torch.testing.assert_close(found[:, :, ::2, ::2], coarse + nn.functional.interpolate(coarser, scale_factor=2.0))

    @pytest.mark.parametrize("upsample", [[1], [1, 2, 3], [1, 0], [1, 1.5]])
    def test_wrong_factors(self, upsample: list[float]) -> None:
        with pytest.raises(ValueError, match="one whole factor for each of the 2 inputs"):
            HyperLink([8, 8], 8, upsample)


def test_a_folded_ffn_has_nothing_to_split_and_folds_once() -> None:
    x = maps(24)[0]
    ffn = fuse(settled(GatedFFN(24, 2.0), x))
    assert [half.weight.shape for half in ffn.halves] == [(48, 24, 1, 1)] * 2
    once = ffn(x)
    ffn.fold()
    assert len(ffn.halves) == 2
    assert torch.equal(ffn(x), once)


class TestCrossScaleELA:
    @LAST
    @pytest.mark.parametrize("memory", [None, [0], [1, 2], [2, 0]], ids=str)
    def test_shapes_gradients_and_fused_form(self, memory: list[int] | None, last: bool) -> None:
        levels = maps(16, 24, 16)
        block = settled(CrossScaleELA([16, 24, 16], 16, memory=memory), levels)
        out = block(levels)
        assert [tuple(y.shape) for y in out] == [(2, 16, 16, 16), (2, 16, 8, 8), (2, 16, 4, 4)]
        check_gradients_and_fused_forms(block, levels, out, last)

    def test_the_one_state_is_the_sum_of_the_levels_states(self) -> None:
        levels = maps(16, 16, 16)
        block = settled(CrossScaleELA([16, 16, 16], 16, memory=[0, 2]), levels)

        attention = block.attention

        def projected(level: Tensor) -> list[Tensor]:
            q, k, v = attention.qkv(level).split(attention.widths, dim=1)
            parts = (q.clamp(-4, 4), k.clamp(-4, 4), v.clamp(-256, 256))
            return [split_heads(t, attention.heads) for t in parts]

        total = ela_state(*projected(levels[0])[1:]) + ela_state(*projected(levels[2])[1:])
        for x, local, y in zip(levels, block.local, block(levels), strict=True):
            attended = merge_heads(total.query(projected(x)[0]), x.shape[-2:])
            torch.testing.assert_close(x + block.ffn(attended + local(x)), y, rtol=1e-4, atol=1e-4)

    @pytest.mark.parametrize("memory", [[], [3], [0, -1]])
    def test_memory_levels_that_do_not_exist(self, memory: list[int]) -> None:
        with pytest.raises(ValueError, match="must name levels out of"):
            CrossScaleELA([16, 16, 16], 16, memory=memory)


class TestLevel:
    def test_takes_one_of_the_maps(self) -> None:
        levels = maps(8, 16, 8)
        for i, width in enumerate((8, 16, 8)):
            level = Level([8, 16, 8], width, i)
            assert level(levels) is levels[i]
            assert not list(level.parameters())

    def test_adapts_the_width(self) -> None:
        levels = maps(8, 16)
        level = settled(Level([8, 16], 8, 1), levels)
        assert level(levels).shape == (2, 8, 8, 8)
        torch.testing.assert_close(fuse(level)(levels), level(levels), rtol=1e-4, atol=1e-4)

    @pytest.mark.parametrize("index", [-1, 2])
    def test_a_map_that_does_not_exist(self, index: int) -> None:
        with pytest.raises(ValueError, match=rf"level {index} is not among the 2 maps; use 0 to 1"):
            Level([8, 8], 8, index)
