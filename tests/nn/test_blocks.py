"""Blocks: shapes, gradients, the laws they are built on, and the fused form."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from ultralytics.nn.modules import Conv
from ultralytics.utils.torch_utils import fuse_conv_and_bn

from yolo_lat.ela import KERNELS, ela_state
from yolo_lat.nn import CrossScaleELA, ELA2d, ELABlock, ELALayer, Gate, GatedFFN, HyperLink, LatDetect, LocalBlock
from yolo_lat.nn.blocks import merge_heads, split_heads


def settled(module: nn.Module, *inputs: object) -> nn.Module:
    """Give batch norms statistics and scales that differ from their start, so that fusing them is a real test."""
    torch.manual_seed(0)
    for m in module.modules():
        if isinstance(m, nn.BatchNorm2d):
            nn.init.uniform_(m.weight, 0.5, 1.5)
            nn.init.uniform_(m.bias, -0.5, 0.5)
        if isinstance(m, Gate):
            nn.init.uniform_(m.scale, 0.5, 1.5)
    module.train()
    for _ in range(20):
        module(*inputs)
    return module.eval()


def fuse(module: nn.Module) -> nn.Module:
    module = copy.deepcopy(module)
    for m in module.modules():
        if isinstance(m, Conv) and hasattr(m, "bn"):
            m.conv = fuse_conv_and_bn(m.conv, m.bn)
            del m.bn
            m.forward = m.forward_fuse
    return module


def maps(*widths: int, size: int = 16) -> list[Tensor]:
    torch.manual_seed(1)
    return [torch.randn(2, c, size // 2**i, size // 2**i) for i, c in enumerate(widths)]


BLOCKS = {
    "ELA2d": (lambda: ELA2d(32, 32), maps(32)[0], 32),
    "ELA2d widening": (lambda: ELA2d(16, 32, heads=2, key_dim=16), maps(16)[0], 32),
    "GatedFFN": (lambda: GatedFFN(24, 2.0), maps(24)[0], 24),
    "ELALayer": (lambda: ELALayer(32, 4, 8, "HadamardExp", 1.0), maps(32)[0], 32),
    "ELABlock": (lambda: ELABlock(32, 32, n=2), maps(32)[0], 32),
    "ELABlock narrowing": (lambda: ELABlock(48, 32, n=1), maps(48)[0], 32),
    "LocalBlock": (lambda: LocalBlock(32, 32, n=2), maps(32)[0], 32),
    "LocalBlock expanded": (lambda: LocalBlock(16, 32, n=1, k=5, expand=2.0), maps(16)[0], 32),
    **{f"ELABlock {name}": (lambda name=name: ELABlock(16, 16, kernel=name), maps(16)[0], 16) for name in KERNELS},
}


@pytest.mark.parametrize("name", BLOCKS)
def test_block_shape_gradient_and_fused_form(name: str) -> None:
    build, x, width = BLOCKS[name]
    block = settled(build(), x)
    y = block(x)
    assert y.shape == (2, width, 16, 16)
    y.square().mean().backward()
    lacking = [n for n, p in block.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert not lacking
    torch.testing.assert_close(fuse(block)(x), y, rtol=1e-4, atol=1e-4)


def test_attention_reaches_every_position_and_order_does_not_matter_without_positions() -> None:
    layer = settled(ELA2d(16, 16, pe=1), maps(16)[0])
    x = maps(16)[0].requires_grad_()
    layer(x)[:, :, 0, 0].sum().backward()
    assert (x.grad.abs().sum(1) > 0).all()  # a corner sees the whole map
    order = torch.randperm(256)
    shuffled = x.detach().flatten(2)[:, :, order].unflatten(2, (16, 16))
    torch.testing.assert_close(layer(shuffled).flatten(2), layer(x).flatten(2)[:, :, order], rtol=1e-4, atol=1e-4)


def test_heads_split_and_merge() -> None:
    x = maps(24)[0]
    heads = split_heads(x, 4)
    assert heads.shape == (2, 4, 256, 6)
    assert torch.equal(heads[1, 2, 17], x[1, 12:18].flatten(1)[:, 17])
    assert torch.equal(merge_heads(heads, x.shape[-2:]), x)


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

    def test_fused_form(self) -> None:
        inputs = maps(16, 24)
        link = settled(HyperLink([16, 24], 32, [1, 2]), inputs)
        torch.testing.assert_close(fuse(link)(inputs), link(inputs), rtol=1e-4, atol=1e-4)

    @pytest.mark.parametrize("upsample", [[1], [1, 2, 3], [1, 0], [1, 1.5]])
    def test_wrong_factors(self, upsample: list[float]) -> None:
        with pytest.raises(ValueError, match="one whole factor for each of the 2 inputs"):
            HyperLink([8, 8], 8, upsample)


class TestCrossScaleELA:
    def test_shapes_gradients_and_fused_form(self) -> None:
        levels = maps(16, 24, 16)
        block = settled(CrossScaleELA([16, 24, 16], 16, memory=[1, 2]), levels)
        out = block(levels)
        assert [tuple(y.shape) for y in out] == [(2, 16, 16, 16), (2, 16, 8, 8), (2, 16, 4, 4)]
        sum(y.square().mean() for y in out).backward()
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in block.parameters())
        for fused, y in zip(fuse(block)(levels), out, strict=True):
            torch.testing.assert_close(fused, y, rtol=1e-4, atol=1e-4)

    def test_the_one_state_is_the_sum_of_the_levels_states(self) -> None:
        levels = maps(16, 16, 16)
        block = settled(CrossScaleELA([16, 16, 16], 16, memory=[0, 2]), levels)

        def state_of(level: Tensor):
            tokens = level.flatten(2).unsqueeze(-1)
            k, v = (split_heads(t, block.heads) for t in block.kv(tokens).split(block.widths, dim=1))
            return ela_state(k, v, block.kernel)

        total = state_of(levels[0]) + state_of(levels[2])
        for x, y in zip(levels, block(levels), strict=True):
            tokens = x.flatten(2).unsqueeze(-1)
            attended = merge_heads(total.query(split_heads(block.q(tokens), block.heads)), x.shape[-2:])
            local = block.local[[t is x for t in levels].index(True)](x)
            torch.testing.assert_close(x + block.ffn(attended + local), y, rtol=1e-4, atol=1e-4)

    @pytest.mark.parametrize("memory", [[], [3], [0, -1]])
    def test_memory_levels_that_do_not_exist(self, memory: list[int]) -> None:
        with pytest.raises(ValueError, match="must name levels out of"):
            CrossScaleELA([16, 16, 16], 16, memory=memory)


class TestLatDetect:
    def test_training_and_inference_outputs(self) -> None:
        head = LatDetect(nc=5, reg_max=1, ch=(16, 16, 16))
        head.stride = torch.tensor([8.0, 16.0, 32.0])
        head.bias_init()
        out = head.train()(maps(16, 16, 16))
        assert out["boxes"].shape == (2, 4, 256 + 64 + 16)
        assert out["scores"].shape == (2, 5, 336)
        y, _ = head.eval()(maps(16, 16, 16))
        assert y.shape == (2, 9, 336)
        assert y[:, 4:].max() < 0.05  # the prior: hardly anything is an object

    def test_levels_share_their_branches(self) -> None:
        head = LatDetect(nc=3, reg_max=4, end2end=True, ch=(16, 16))
        head.stride = torch.tensor([8.0, 16.0])
        assert head.train()(maps(16, 16)).keys() == {"one2many", "one2one"}
        _, out = head.eval()(maps(16, 16))
        for key, branch in (("boxes", head.cv2[0]), ("scores", head.cv3[0])):
            apart = torch.cat([branch(level).flatten(2) for level in maps(16, 16)], dim=2)
            torch.testing.assert_close(out["one2many"][key], apart)

    def test_levels_of_different_width_are_refused(self) -> None:
        with pytest.raises(ValueError, match="must have one width"):
            LatDetect(nc=3, ch=(16, 32))
