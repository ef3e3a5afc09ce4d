"""Attention with its projections: the bounds, the form in which it is deployed, and that form in float16."""

from __future__ import annotations

import functools
import io
from collections.abc import Callable

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from forms import fuse, maps, settled
from onnx.reference import ReferenceEvaluator
from quick import first
from torch import Tensor, nn

from yolo_lat.deploy.onnx_half import to_half
from yolo_lat.ela import KERNELS, HadamardExp
from yolo_lat.nn.attention import LOGIT_BOUND, VALUE_BOUND, ProjectedELA, merge_heads, split_heads
from yolo_lat.nn.layout import channels_last_graph

MEMORIES = {
    "all": None,
    "one range": [(5, 60)],
    "two ranges": [(0, 16), (40, 64)],
    "a token": [(63, 64)],
}
LAST = pytest.mark.parametrize("last", [False, True], ids=["channels first", "channels last"])


def attention(kernel: str = "HadamardExp", key_dim: int = 8) -> ProjectedELA:
    """Of 16 channels and 4 heads, in float64."""
    torch.manual_seed(3)
    x = torch.randn(4, 16, 8, 8).double()
    return settled(ProjectedELA(16, 16, 4, key_dim, kernel).double(), x)


def quadratic(module: ProjectedELA, x: Tensor, memory: list[tuple[int, int]] | None = None) -> tuple[Tensor, Tensor]:
    """The definition: weights of every pair of a query and a key, all of them bounded."""
    q, k, v = module.qkv(x).split(module.widths, dim=1)
    q, k, v = q.clamp(-4, 4), k.clamp(-4, 4), v.clamp(-256, 256)
    kept = torch.cat([torch.arange(start, end) for start, end in memory or [(0, x[0, 0].numel())]])
    queries, keys, values = (split_heads(t, module.heads) for t in (q, k, v))
    weights = HadamardExp().pairwise(queries, keys[:, :, kept])
    return merge_heads(weights @ values[:, :, kept] / weights.sum(-1, keepdim=True), x.shape[-2:]), v


def test_heads_split_and_merge() -> None:
    x = maps(24)[0]
    heads = split_heads(x, 4)
    assert heads.shape == (2, 4, 256, 6)
    assert torch.equal(heads[1, 2, 17], x[1, 12:18].flatten(1)[:, 17])
    assert torch.equal(merge_heads(heads, x.shape[-2:]), x)


class TestForms:
    @LAST
    @pytest.mark.parametrize("memory", MEMORIES.values(), ids=MEMORIES)
    @pytest.mark.parametrize("scale", [0.1, 1.0, 30.0, 1e4])
    def test_both_equal_the_quadratic_definition(self, scale, memory, last) -> None:
        module = attention()
        x = scale * torch.randn(2, 16, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
        with torch.no_grad(), channels_last_graph(last):
            expected = quadratic(module, x, memory)
            for form in (module, fuse(module)):
                for found, wanted in zip(form(x, memory), expected, strict=True):
                    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-10)

    @pytest.mark.parametrize("key_dim", [1, 16])
    @pytest.mark.parametrize("size", [(1, 1), (2, 2), (1, 5), (13, 7)])
    def test_any_size_and_any_key_width(self, size, key_dim) -> None:
        module = attention(key_dim=key_dim)
        x = torch.randn(3, 16, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
        with torch.no_grad():
            torch.testing.assert_close(fuse(module)(x), quadratic(module, x), rtol=1e-10, atol=1e-10)

    def test_gradients_are_those_of_the_definition(self) -> None:
        module = attention()
        x = torch.randn(2, 16, 4, 4, dtype=torch.float64).requires_grad_()
        wanted = torch.autograd.grad(sum(t.square().sum() for t in quadratic(module, x)), x)[0]
        for form in (module, fuse(module)):
            (found,) = torch.autograd.grad(sum(t.square().sum() for t in form(x)), x)
            torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)

    def test_the_bounds_hold_whatever_the_input(self) -> None:
        module = attention()
        x = 1e6 * maps(16)[0].double()
        q, k, v = module.qkv(x).split(module.widths, dim=1)
        assert min(q.abs().max(), k.abs().max()) > 100 * LOGIT_BOUND
        assert v.abs().max() > 100 * VALUE_BOUND
        for form in (module, fuse(module)):
            y, bounded = form(x)
            assert bounded.abs().max() == VALUE_BOUND
            assert y.abs().max() <= VALUE_BOUND * (1 + 1e-12)

    @pytest.mark.parametrize("kernel", sorted(set(KERNELS) - {"HadamardExp"}))
    def test_other_kernels_keep_their_form(self, kernel) -> None:
        module = attention(kernel)
        folded = fuse(module)
        assert folded.same_head is None
        assert folded.qkv.conv.weight.shape == module.qkv.conv.weight.shape
        x = maps(16)[0].double()
        torch.testing.assert_close(folded(x), module(x), rtol=1e-10, atol=1e-10)

    def test_folding_twice_changes_nothing(self) -> None:
        once = fuse(attention())
        x = maps(16)[0].double()
        assert all(torch.equal(a, b) for a, b in zip(fuse(once)(x), once(x), strict=True))

    def test_the_deployed_form_takes_its_mask_along(self) -> None:
        folded = fuse(attention())
        assert folded.same_head.dtype == torch.float64
        assert folded.half().same_head.dtype == torch.float16
        assert "same_head" not in folded.state_dict()


def halved(module: ProjectedELA) -> ProjectedELA:
    """The deployed form with weights that float16 can hold, in float64: what a file in float16 is to compute."""
    return fuse(module).half().double()


def told() -> ProjectedELA:
    """A deployed form whose queries are channels 0 and 1 of x, keys 2 and 3, and values the others."""
    module = halved(attention())
    weight = torch.zeros_like(module.qkv.conv.weight)
    rows = torch.arange(32)
    weight[rows, rows % 2] = weight[rows + 32, 2 + rows % 2] = 1.0
    rows = torch.arange(16)
    weight[rows + 64, 4 + rows % 12] = 1 / 64
    module.qkv.conv.weight.data = weight
    module.qkv.conv.bias.data[:80] = 0.0
    return module


def grown(factor: float, channels: slice) -> Callable[[np.ndarray, ProjectedELA], np.ndarray]:
    """Scale x until the largest of some outputs of the projections is `factor`."""

    def scale(x: np.ndarray, module: ProjectedELA) -> np.ndarray:
        with torch.no_grad():
            return x * factor / module.qkv(torch.from_numpy(x))[:, channels].abs().max().item()

    return scale


def signs(q: str, k: str, v: float) -> Callable[[np.ndarray, ProjectedELA], np.ndarray]:
    """Queries and keys of ±1000, by the words "low", "high", "one high" and "either", and values up to v."""

    def place(x: np.ndarray, _: ProjectedELA) -> np.ndarray:
        for channels, word in ((x[:, :2], q), (x[:, 2:4], k)):
            channels[:] = {"high": 1e3, "either": np.where(channels > 0, 1e3, -1e3)}.get(word, -1e3)
            if word == "one high":
                channels[..., -1, -1] = 1e3
        x[:, 4:] = v if v == BEYOND else v * x[:, 4:]
        return x

    return place


BEYOND = 6e4  # nearly the end of float16
EXTREMES = {
    "normal": (halved, lambda x, _: x),
    "small": (halved, lambda x, _: 0.01 * x),
    "logits of 1000": (halved, grown(1000.0, slice(0, 64))),
    "values of 250": (halved, grown(250 / 64, slice(64, 80))),
    "all that float16 holds": (halved, lambda x, _: x * BEYOND / np.abs(x).max()),
    "no key wanted": (told, signs("low", "low", 1.0)),
    "every key wanted, values beyond the bound": (told, signs("high", "high", BEYOND)),
    "one key wanted": (told, signs("high", "one high", 60.0)),
    "one key wanted, hardly": (told, signs("low", "one high", 60.0)),
    "either": (told, signs("either", "either", 60.0)),
}
HALF_ERROR = 2e-3  # of the largest value, or of 1 where all are smaller
TINY_ERROR = 2e-2  # where all weights are the smallest there are, beside the smallest numbers of float16


class Remembering(nn.Module):
    """Attention with a memory that is no input."""

    def __init__(self, attention: ProjectedELA, memory: tuple[tuple[int, int], ...] | None) -> None:
        super().__init__()
        self.attention, self.memory = attention, memory

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.attention(x, self.memory)


@functools.cache
def half_file(build: Callable, last: bool, memory: tuple[tuple[int, int], ...] | None) -> onnx.ModelProto:
    """The deployed form, for maps of any size, exported and converted to float16 as `yolo_lat.engine.export` does."""
    module = deployed(build).float()
    file = io.BytesIO()
    with channels_last_graph(last), torch.no_grad():
        torch.onnx.export(
            Remembering(module, memory),
            (torch.zeros(1, 16, 10, 10),),
            file,
            dynamo=False,
            opset_version=18,
            input_names=["x"],
            output_names=["y", "v"],
            dynamic_axes={"x": {0: "batch", 2: "height", 3: "width"}},
        )
    return to_half(onnx.load_from_string(file.getvalue()))


def deployed(build: Callable) -> ProjectedELA:
    return told() if build is told else build(attention())


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
class TestFloat16:
    """The exported file in float16 against the module in float64, on the same numbers.

    `ReferenceEvaluator` rounds what every node returns to float16. ONNX Runtime on a CPU keeps float32 between many
    nodes, so it shows that the file runs, not that float16 suffices.
    """

    def check(self, kind: str, size: tuple[int, int], last: bool, memory: tuple | None = None) -> None:
        build, change = EXTREMES[kind]
        module, model = deployed(build), half_file(build, last, memory)
        x = change(np.random.default_rng(5).standard_normal((1, 16, *size)), module).astype(np.float16)
        with torch.no_grad():
            expected = [t.numpy() for t in module(torch.from_numpy(x).double(), memory)]
        bound = (TINY_ERROR if kind == "no key wanted" else HALF_ERROR) * max(1.0, np.abs(expected[1]).max())
        session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        for results in (ReferenceEvaluator(model).run(None, {"x": x}), session.run(None, {"x": x})):
            for found, wanted in zip(results, expected, strict=True):
                assert found.dtype == np.float16
                assert np.isfinite(found).all()
                np.testing.assert_allclose(found.astype(np.float64), wanted, rtol=0, atol=bound)

    @LAST
    @pytest.mark.parametrize("size", [(2, 2), (20, 30)], ids=str)
    @pytest.mark.parametrize("kind", EXTREMES)
    def test_is_finite_and_near_the_definition(self, kind, size, last) -> None:
        self.check(kind, size, last)

    @pytest.mark.parametrize("kind", first(4, EXTREMES))
    def test_on_the_finest_map_of_an_image_of_1280_pixels(self, kind) -> None:
        self.check(kind, (160, 160), last=True)

    @pytest.mark.slow
    def test_on_more_tokens_than_float16_can_count(self) -> None:
        self.check("normal", (264, 256), last=True)

    @pytest.mark.parametrize("memory", [((0, 40), (64, 80)), ((7, 8),)], ids=str)
    @pytest.mark.parametrize("kind", EXTREMES)
    def test_with_a_part_of_the_tokens_as_memory(self, kind, memory) -> None:
        self.check(kind, (10, 10), last=True, memory=memory)
