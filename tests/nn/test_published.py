"""The paper's own detector: the operator, the boxes and the score are those of its description."""

from __future__ import annotations

import pytest
import torch
from ultralytics.utils.tal import dist2bbox, make_anchors

from yolo_lat.ela import HadamardExp
from yolo_lat.errors import UserError
from yolo_lat.nn import LatModel, PaperDetect, PaperELA, load_model_yaml
from yolo_lat.nn.complexity import count_parameters
from yolo_lat.nn.published import joint_logit


def test_attention_is_the_quadratic_form_with_its_temperature() -> None:
    torch.manual_seed(0)
    block = PaperELA(16, 16, heads=4).double()
    x = 3 * torch.randn(2, 16, 5, 7, dtype=torch.float64)
    q, k, v = (part.reshape(2, 4, 4, 35).transpose(2, 3) for part in block.qkv(x).chunk(3, dim=1))
    weights = HadamardExp().pairwise(q / 2, k / 2)  # the square root of 4 channels a head
    y = (weights @ v / weights.sum(-1, keepdim=True)).transpose(2, 3).reshape(2, 16, 5, 7)
    torch.testing.assert_close(block(x), x + block.out(y))


@pytest.mark.parametrize(("c1", "c2", "heads"), [(16, 24, 4), (18, 18, 4)])
def test_widths_that_do_not_fit(c1: int, c2: int, heads: int) -> None:
    with pytest.raises(ValueError, match=r"keeps its width|does not divide"):
        PaperELA(c1, c2, heads)


def test_the_joint_logit_is_that_of_the_product() -> None:
    a, b = torch.randn(2, 1000, dtype=torch.float64) * 6
    product = a.sigmoid() * b.sigmoid()
    torch.testing.assert_close(joint_logit(a, b), torch.log(product / (1 - product)), rtol=1e-6, atol=1e-6)
    far = torch.tensor([-80.0, 80.0, 200.0])
    assert joint_logit(far, far).isfinite().all()


class TestHead:
    def test_boxes_lie_in_their_cell_and_are_at_most_two_cells_large(self) -> None:
        torch.manual_seed(0)
        head = PaperDetect(3, ch=(8,)).double()
        head.stride = torch.tensor([16.0])
        x = [20 * torch.randn(2, 8, 4, 6, dtype=torch.float64)]
        made = head.forward_head(x, **head.one2many)
        anchors, _ = make_anchors(x, head.stride, 0.5)
        boxes = dist2bbox(made["boxes"], anchors.T.unsqueeze(0), xywh=True, dim=1)
        t = head.cv2[0](x[0]).flatten(2).sigmoid()
        torch.testing.assert_close(boxes[:, :2], anchors.T - 0.5 + t[:, :2])
        torch.testing.assert_close(boxes[:, 2:], 2 * t[:, 2:])
        assert boxes[:, 2:].max() <= 2
        assert made["scores"].shape == (2, 3, 24)
        outputs = head.cv2[0].out_channels + head.cv3[0].out_channels
        assert outputs == 5 + 3

    @pytest.mark.parametrize(
        "arguments", [{"ch": (8, 8)}, {"ch": (8,), "reg_max": 16}, {"ch": (8,), "end2end": True}], ids=str
    )
    def test_what_it_has_not(self, arguments: dict[str, object]) -> None:
        with pytest.raises(ValueError, match="PaperDetect takes one level"):
            PaperDetect(3, **arguments)

    def test_the_yaml_names_the_row(self) -> None:
        content = {**load_model_yaml("yolo-lat-paper-n"), "reg_max": 16}
        with pytest.raises(UserError, match=r"row 16 \(PaperDetect\): cannot be built"):
            LatModel(content, verbose=False)


def test_it_has_the_papers_size_at_one_class() -> None:
    model = LatModel(load_model_yaml("yolo-lat-paper-n"), nc=1, verbose=False)
    assert count_parameters(model) == pytest.approx(317_000, rel=0.01)
    assert model.stride.tolist() == [16]
