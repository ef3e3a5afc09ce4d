"""What the blocks are compared with in studies: each switch does what it says and nothing else, fused forms too."""

from __future__ import annotations

import copy

import pytest
import torch
from forms import check_gradients_and_fused_forms, fuse, maps, settled
from torch import Tensor, nn

from yolo_lat.nn import CrossScaleELA, GatedFFN, HyperLink, PlainFFN
from yolo_lat.nn.attention import ProjectedELA, ProjectedSoftmax, split_heads
from yolo_lat.nn.layout import channels_last_graph, from_areas, into_areas

WIDTH = 16
SWITCHES = {
    "softmax": {"attention": "softmax"},
    "softmax with memory": {"attention": "softmax", "memory": [1]},
    "area": {"attention": "area"},
    "none": {"attention": "none"},
    "mean": {"attention": "mean"},
    "mean with memory per FFN": {"attention": "mean", "memory": [1], "local": 0},
    "mean per level": {"attention": "mean", "across": False},
    "per level": {"across": False},
    "softmax per level": {"attention": "softmax", "across": False},
    "no local": {"local": 0},
    "no gate": {"gate": False},
    "residual": {"residual": True},
    "transformer": {"residual": True, "gate": False},
    "lobe": {"lobe": True},
    "lobe per level": {"lobe": True, "across": False, "residual": True},
    "experts": {"experts": 2},
}


def layer(**switches: object) -> tuple[CrossScaleELA, list[Tensor]]:
    """A layer over two levels of 16x16 and 8x8, settled, and its inputs."""
    levels = maps(WIDTH, WIDTH)
    torch.manual_seed(0)
    return settled(CrossScaleELA([WIDTH] * 2, WIDTH, **switches), levels), levels


@pytest.mark.parametrize("last", [False, True], ids=["channels first", "channels last"])
@pytest.mark.parametrize("name", SWITCHES)
def test_shapes_gradients_and_fused_forms(name: str, last: bool) -> None:
    block, levels = layer(**SWITCHES[name])
    out = block(levels)
    assert [tuple(y.shape) for y in out] == [(2, WIDTH, 16, 16), (2, WIDTH, 8, 8)]
    check_gradients_and_fused_forms(block, levels, out, last)


def projected(block: CrossScaleELA, x: Tensor) -> list[Tensor]:
    attention = block.attention
    return [split_heads(t, attention.heads) for t in attention.qkv(x).split(attention.widths, dim=1)]


def softmax_of(q: Tensor, k: Tensor, v: Tensor, allowed: Tensor | None = None) -> Tensor:
    """Written out: weights (B, H, Lq, Lk) that add to one over the keys that are allowed; (B, H·Dv, Lq)."""
    logits = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
    if allowed is not None:
        logits = logits.masked_fill(~allowed, -torch.inf)
    y = logits.softmax(-1) @ v
    return y.transpose(-1, -2).flatten(1, 2)


@pytest.mark.parametrize("memory", [None, [1]], ids=str)
def test_softmax_attends_to_the_tokens_of_all_levels_or_of_some(memory: list[int] | None) -> None:
    block, levels = layer(attention="softmax", memory=memory)
    parts = [projected(block, x) for x in levels]
    q = torch.cat([part[0] for part in parts], dim=2)
    k, v = (torch.cat([parts[i][j] for i in memory or [0, 1]], dim=2) for j in (1, 2))
    attended = softmax_of(q, k, v).split([256, 64], dim=2)
    for x, y, local, out in zip(levels, attended, block.local, block(levels), strict=True):
        torch.testing.assert_close(out, x + block.ffn(y.unflatten(2, x.shape[2:]) + local(x)), rtol=1e-4, atol=1e-4)


def test_area_attention_stays_within_a_quarter_of_every_level_but_the_last() -> None:
    block, levels = layer(attention="area")
    for x, areas, local, out in zip(levels, (4, 1), block.local, block(levels), strict=True):
        q, k, v = projected(block, x)
        area = torch.arange(q.shape[2]) // (q.shape[2] // areas)
        y = softmax_of(q, k, v, area[:, None] == area[None, :]).unflatten(2, x.shape[2:])
        torch.testing.assert_close(out, x + block.ffn(y + local(x)), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("memory", [None, [1]], ids=str)
def test_a_mean_is_ela_whose_queries_and_keys_are_all_alike(memory: list[int] | None) -> None:
    block, levels = layer(attention="mean", memory=memory)
    v = torch.cat([block.attention.qkv(levels[i]).flatten(2) for i in memory or [0, 1]], dim=2)
    ela, _ = layer(memory=memory)
    keys = 2 * ela.attention.widths[0]
    ela.load_state_dict({k: p for k, p in block.state_dict().items() if "qkv" not in k}, strict=False)
    state = block.attention.qkv.state_dict()
    for name, value in ela.attention.qkv.state_dict().items():
        if value.dim():  # all but the number of batches that the norm has seen
            value[:keys], value[keys:] = 0, state[name]
    for x, local, out, same in zip(levels, block.local, block(levels), ela(levels), strict=True):
        y = v.mean(2)[..., None, None]
        torch.testing.assert_close(out, x + block.ffn(y + local(x)), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(out, same, rtol=1e-4, atol=1e-4)


def test_areas_are_cut_and_put_together() -> None:
    x = maps(6)[0]
    parts = into_areas(x, 4)
    assert parts.shape == (8, 6, 64, 1)
    assert torch.equal(parts[1, :, :, 0], x[0].flatten(1)[:, 64:128])
    assert torch.equal(from_areas(parts, x, 4), x)


@pytest.mark.parametrize("attention", ["ela", "softmax"])
def test_levels_apart_see_nothing_of_one_another(attention: str) -> None:
    block, levels = layer(attention=attention, across=False)
    x, other = levels
    alone = copy.deepcopy(block)
    alone.adapt, alone.local, alone.memory, alone.areas = alone.adapt[:1], alone.local[:1], [0], [1]
    torch.testing.assert_close(block(levels)[0], alone([x])[0])
    assert torch.equal(block([x, other + 1])[0], block(levels)[0])
    together, _ = layer(attention=attention)
    assert not torch.allclose(together([x, other + 1])[0], together(levels)[0])


def test_without_attention_only_the_depthwise_convolution_mixes() -> None:
    block, levels = layer(attention="none")
    for x, local, out in zip(levels, block.local, block(levels), strict=True):
        torch.testing.assert_close(out, x + block.ffn(local(x)))


def test_a_residual_around_attention_is_that_of_a_transformer() -> None:
    block, levels = layer(residual=True)
    bare, _ = layer()
    bare.load_state_dict(block.state_dict(), strict=False)
    bare.ffn = nn.Identity()  # leaves x + mixed
    for x, mixed, out in zip(levels, bare(levels), block(levels), strict=True):
        u = x + block.out(mixed - x)
        torch.testing.assert_close(out, u + block.ffn(u), rtol=1e-4, atol=1e-4)


class TestLobe:
    def test_a_model_begins_as_it_would_without(self) -> None:
        levels = maps(WIDTH, WIDTH)
        torch.manual_seed(0)
        plain = CrossScaleELA([WIDTH] * 2, WIDTH)
        torch.manual_seed(0)
        with_lobe = CrossScaleELA([WIDTH] * 2, WIDTH, lobe=True)
        with_lobe.load_state_dict(plain.state_dict(), strict=False)
        for a, b in zip(with_lobe(levels), plain(levels), strict=True):
            torch.testing.assert_close(a, b)

    def test_attends_over_the_update_of_all_levels(self) -> None:
        block, levels = layer(lobe=True)
        bare = copy.deepcopy(block)
        bare.lobe = None
        deltas = [y - x for x, y in zip(levels, bare(levels), strict=True)]
        row = torch.cat([d.flatten(2) for d in deltas], dim=2).unsqueeze(-1)
        recalled = block.lobe(row)[0].squeeze(-1).split([256, 64], dim=2)
        for x, delta, y, out in zip(levels, deltas, recalled, block(levels), strict=True):
            torch.testing.assert_close(out, x + delta + y.unflatten(2, x.shape[2:]), rtol=1e-4, atol=1e-4)


def test_softmax_and_ela_have_the_same_weights() -> None:
    shapes = [
        {name: p.shape for name, p in kind.named_parameters()}
        for kind in (ProjectedELA(24, 16, 4, 8, "HadamardExp"), ProjectedSoftmax(24, 16, 4, 8))
    ]
    assert shapes[0] == shapes[1]


def test_an_ffn_without_a_gate_has_as_many_weights() -> None:
    ffns = GatedFFN(64), PlainFFN(64)
    gated, plain = (sum(m.weight.numel() for m in ffn.modules() if isinstance(m, nn.Conv2d)) for ffn in ffns)
    assert gated == plain


class TestJoin:
    def test_sum_has_no_gates(self) -> None:
        fine, coarse = maps(16, 16)
        link = HyperLink([16, 16, 16], 16, [1, 2, 1], join="sum")
        assert not list(link.parameters())
        up = nn.functional.interpolate(coarse, scale_factor=2.0)
        torch.testing.assert_close(link([fine, coarse, fine]), 2 * fine + up)

    def test_linear_has_a_convolution_for_every_input_but_the_stream(self) -> None:
        fine, coarse = maps(16, 16)
        link = settled(HyperLink([16, 16], 16, [1, 2], join="linear"), [fine, coarse])
        stream, mix = link.links
        assert isinstance(stream, nn.Identity)
        expected = fine + nn.functional.interpolate(mix(coarse), scale_factor=2.0)
        torch.testing.assert_close(link([fine, coarse]), expected)
        torch.testing.assert_close(fuse(link)([fine, coarse]), expected, rtol=1e-4, atol=1e-4)

    @pytest.mark.parametrize("order", [[0, 1], [1, 0], [1, 1, 0]])
    def test_concat_is_one_convolution_of_all_inputs(self, order) -> None:
        inputs = [maps(16, 24)[i] for i in order]
        link = settled(HyperLink([(16, 24)[i] for i in order], 32, [1 + i for i in order], join="concat"), inputs)
        side_by_side = [nn.functional.interpolate(x, scale_factor=1.0 + i) for x, i in zip(inputs, order, strict=True)]
        expected = link.mix(torch.cat(side_by_side, dim=1))
        torch.testing.assert_close(link(inputs), expected)
        for last in (False, True):
            with channels_last_graph(last):
                torch.testing.assert_close(fuse(link)(inputs), expected, rtol=1e-4, atol=1e-4)

    def test_unknown(self) -> None:
        with pytest.raises(ValueError, match="join=add is unknown; use one of gated, linear, sum, concat"):
            HyperLink([8, 8], 8, join="add")


@pytest.mark.parametrize(
    ("switches", "message"),
    [
        ({"attention": "linear"}, "attention=linear is unknown; use one of ela, softmax, area, mean, none"),
        ({"attention": "none", "local": 0}, "leave nothing that mixes positions"),
        ({"across": False, "memory": [0]}, r"memory=\[0\] is for levels that share their tokens"),
        ({"attention": "area", "memory": [0]}, r"memory=\[0\] is for levels that share their tokens"),
        ({"experts": 2, "gate": False}, "experts=2 are gated"),
        ({"experts": 2.5}, "experts=2.5 must be a whole number from 0; 0 is one network without"),
        ({"experts": -1}, "experts=-1 must be a whole number"),
        ({"ffn_ratio": 0}, "ffn_ratio=0 leaves no hidden layer; use a number above 0"),
        (
            {"attention": "softmax", "kernel": "ModulatedDot"},
            "kernel=ModulatedDot is for attention=ela, and attention=softm",
        ),
    ],
)
def test_switches_that_do_not_go_together(switches: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CrossScaleELA([16, 16], 16, **switches)
