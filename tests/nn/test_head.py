"""The shared head: its outputs, and the form in which weights do what operations did."""

from __future__ import annotations

import copy

import pytest
import torch
from forms import maps
from torch import Tensor, nn
from ultralytics.nn.modules import DFL, Conv
from ultralytics.utils.torch_utils import fuse_conv_and_bn

from yolo_lat.nn import LatDetect
from yolo_lat.nn.head import BinMeans
from yolo_lat.nn.layout import channels_last_graph


def small_head(reg_max: int = 1, end2end: bool = False, act: nn.Module | None = None, width: int = 16) -> LatDetect:
    """A head in float64 of three classes over three levels, with scores of all sizes."""
    torch.manual_seed(0)
    activation, Conv.default_act = Conv.default_act, act or Conv.default_act
    try:
        head = LatDetect(nc=3, reg_max=reg_max, end2end=end2end, ch=(width, width, width)).double()
    finally:
        Conv.default_act = activation
    head.stride = torch.tensor([8.0, 16.0, 32.0])
    head.end2end = end2end
    head.bias_init()
    for name, parameter in head.named_parameters():
        if "dfl" not in name:  # its bins are numbered, not learned
            nn.init.normal_(parameter, std=0.5)
    return head.eval()


def levels(batch: int, height: int, width: int, channels: int = 16) -> list[Tensor]:
    generator = torch.Generator().manual_seed(2)
    return [
        torch.randn(batch, channels, height // s, width // s, dtype=torch.float64, generator=generator)
        for s in (1, 2, 4)
    ]


def fused(head: LatDetect, fold: bool = True) -> LatDetect:
    head = copy.deepcopy(head)
    head.fuse()  # leaves one branch
    for m in head.modules():
        if isinstance(m, Conv):
            m.conv = fuse_conv_and_bn(m.conv, m.bn)
            del m.bn
            m.forward = m.forward_fuse
    if fold:
        head.fold()
    return head


class TestOutputs:
    def test_training_and_inference(self) -> None:
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

    @pytest.mark.parametrize("end2end", [False, True], ids=["one-to-many", "end2end"])
    @pytest.mark.parametrize("reg_max", [1, 4])
    def test_levels_kept_apart_give_the_same(self, reg_max, end2end) -> None:
        head = small_head(reg_max, end2end)
        apart = fused(head, fold=False)
        apart.keep_levels_apart()
        with torch.no_grad():
            expected, found = (h(levels(2, 8, 16))[0] for h in (head, apart))
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)

    def test_levels_of_different_width_are_refused(self) -> None:
        with pytest.raises(ValueError, match="must have one width"):
            LatDetect(nc=3, ch=(16, 32))


class TestBinMeans:
    @pytest.mark.parametrize("bins", [2, 5, 16])
    @pytest.mark.parametrize("scale", [1, 1e4], ids=["usual", "extreme"])
    def test_equal_those_of_ultralytics(self, bins, scale) -> None:
        x = scale * torch.randn(2, 4 * bins, 21, generator=torch.Generator().manual_seed(bins))
        expected = DFL(bins).double()(x.double())
        torch.testing.assert_close(BinMeans(bins).double()(x.double()), expected, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(BinMeans(bins)(x), expected.float(), rtol=1e-5, atol=1e-5)

    def test_take_the_place_of_the_softmax_on_a_processor_alone(self) -> None:
        apart, folded = fused(small_head(4), fold=False), fused(small_head(4))
        apart.keep_levels_apart()
        for head, expected in ((apart, BinMeans), (folded, nn.Identity), (fused(small_head(4), fold=False), DFL)):
            assert isinstance(head.dfl, expected)


class TestFold:
    @pytest.mark.parametrize("size", [(1, 8, 8), (3, 16, 8), (2, 8, 24)], ids=["square", "high", "wide"])
    @pytest.mark.parametrize("xyxy", [False, True], ids=["xywh", "xyxy"])
    @pytest.mark.parametrize("end2end", [False, True], ids=["one-to-many", "end2end"])
    @pytest.mark.parametrize("act", [nn.ReLU(), nn.SiLU()], ids=["ReLU", "SiLU"])
    @pytest.mark.parametrize("reg_max", [1, 4])
    def test_equals_the_training_form(self, reg_max, act, end2end, xyxy, size) -> None:
        head = small_head(reg_max, end2end, act)
        head.xyxy = xyxy
        folded = fused(head)
        with torch.no_grad():
            expected, _ = head(levels(*size))
            found, _ = folded(levels(*size))
            torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
            with channels_last_graph():
                torch.testing.assert_close(folded(levels(*size))[0], expected, rtol=1e-10, atol=1e-10)
        assert found.shape[1:] == ((size[1] * size[2] * 21 // 16, 6) if end2end else (7, size[1] * size[2] * 21 // 16))

    def test_leaves_one_hidden_layer_and_no_biases_behind_it(self) -> None:
        folded = fused(small_head())
        convolutions = [m for m in folded.modules() if isinstance(m, nn.Conv2d)]
        assert [tuple(m.weight.shape[:2]) for m in convolutions] == [(40, 16), (4, 40), (3, 40)]
        assert [m.bias is None for m in convolutions] == [False, True, True]
        assert not [m for m in folded.modules() if isinstance(m, nn.BatchNorm2d)]

    @pytest.mark.parametrize("reg_max", [1, 4])
    def test_of_a_wide_head_the_boxes_have_the_narrower_hidden_layer(self, reg_max) -> None:
        head = small_head(reg_max, width=48)
        assert [branch[0][0].conv.out_channels for branch in (head.cv2, head.cv3)] == [24, 48]
        folded = fused(head)
        assert folded.cv2[0][0].conv.out_channels == 24 + 48 + 8
        x = levels(2, 8, 16, channels=48)
        with torch.no_grad():
            torch.testing.assert_close(folded(x)[0], head(x)[0], rtol=1e-10, atol=1e-10)

    def test_of_a_head_end_to_end_the_branch_for_inference_stays(self) -> None:
        folded = fused(small_head(end2end=True))
        assert folded.cv2 is None
        assert folded.one2one_cv2 is not None
        assert folded.end2end

    def test_of_a_head_that_is_told_to_suppress_the_other_stays(self) -> None:
        head = small_head(end2end=True)
        head.end2end = False
        folded = fused(head)
        assert folded.one2one_cv2 is None
        torch.testing.assert_close(folded(levels(1, 8, 8))[0], head(levels(1, 8, 8))[0], rtol=1e-10, atol=1e-10)

    def test_twice_changes_nothing(self) -> None:
        folded = fused(small_head())
        expected, _ = folded(levels(1, 8, 8))
        folded.fold()
        assert torch.equal(folded(levels(1, 8, 8))[0], expected)
