"""Batches: their form, their order, and that any can be made again."""

from dataclasses import replace
from unittest.mock import patch

import numpy as np
import pytest
import torch
from device_samples import EVERYTHING, cached, host_dataset, write_image
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader
from ultralytics.cfg import get_cfg
from ultralytics.data.dataset import YOLODataset

from yolo_lat.data.device import Augment, DeviceLoader, flat, letterboxed, loader
from yolo_lat.data.device.loader import bucket
from yolo_lat.data.labels import DetectionSplit
from yolo_lat.errors import UserError


def equal(a: dict, b: dict) -> bool:
    return a["total"] == b["total"] and all(
        torch.equal(a[key], b[key]) for key in ("img", "boxes", "labels", "valid", "index")
    )


def test_batches_have_their_form_and_the_last_is_short(cache):
    loader = DeviceLoader(cache, EVERYTHING, 5)
    batches = list(loader)
    assert len(loader) == len(batches) == 3
    assert [len(batch["img"]) for batch in batches] == [5, 5, 2]
    for batch in batches:
        count, places = batch["valid"].shape
        assert batch["img"].shape == (count, 3, cache.imgsz, cache.imgsz)
        assert batch["img"].dtype == torch.uint8
        assert batch["boxes"].shape == (count, places, 4)
        assert batch["boxes"].dtype == torch.float32
        assert batch["labels"].dtype == torch.int64
        assert batch["total"] == batch["valid"].sum()
        assert places == bucket(int(batch["valid"].sum(1).max()))
        assert (batch["boxes"] >= 0).all()
        assert (batch["boxes"] <= 1).all()


def test_an_epoch_has_every_image_once_in_an_order_of_its_own(cache):
    loader = DeviceLoader(cache, Augment(), 5, seed=7)
    orders = []
    for epoch in (0, 1):
        loader.set_epoch(epoch)
        orders.append(torch.cat([batch["index"] for batch in loader]).tolist())
    assert [sorted(order) for order in orders] == [list(range(12))] * 2
    assert orders[0] != orders[1]
    plain = DeviceLoader(cache, Augment(), 5, shuffle=False)
    assert torch.cat([batch["index"] for batch in plain]).tolist() == list(range(12))


def test_seeds_decide_and_nothing_else(cache):
    first = list(DeviceLoader(cache, EVERYTHING, 5, seed=1))
    torch.manual_seed(5)
    again = list(DeviceLoader(cache, EVERYTHING, 5, seed=1))
    assert all(equal(a, b) for a, b in zip(first, again, strict=True))
    other = list(DeviceLoader(cache, EVERYTHING, 5, seed=2))
    assert not any(torch.equal(a["img"], b["img"]) for a, b in zip(first, other, strict=True))


@given(seed=st.integers(0, 2**63), epoch=st.integers(0, 1000), start=st.integers(0, 3), at_once=st.integers(1, 3))
@settings(max_examples=12)
def test_any_batch_is_made_again_without_those_before_it(cache, seed, epoch, start, at_once):
    straight, resumed = (DeviceLoader(cache, EVERYTHING, 5, seed=seed) for _ in range(2))
    list(straight)
    straight.set_epoch(epoch)
    resumed.set_epoch(epoch)
    with patch.object(loader, "_BOXES_AT_ONCE", at_once * 5 * 3 * 4 * cache.most_boxes):
        assert straight.batches_at_once == at_once
        whole, rest = list(straight), list(resumed.batches(start))
    assert len(rest) == 3 - start
    assert all(equal(a, b) for a, b in zip(whole[start:], rest, strict=True))


@given(samples=st.integers(1, 40), batch=st.integers(1, 5))
@settings(max_examples=20)
def test_an_epoch_has_as_many_samples_as_asked_for(cache, samples, batch):
    loader = DeviceLoader(cache, Augment(), batch, samples=samples)
    order = loader._order().tolist()
    assert (len(order), len(loader)) == (samples, -(-samples // batch))
    times = [order.count(image) for image in range(12)]
    assert max(times) - min(times) <= 1


def test_ranks_draw_apart(cache):
    mixed = [next(iter(DeviceLoader(cache, Augment(), 6, rank=rank))) for rank in (0, 1)]
    assert not torch.equal(mixed[0]["img"], mixed[1]["img"])


def test_closing_mosaic_leaves_single_images(cache):
    loader = DeviceLoader(cache, EVERYTHING, 12, shuffle=False)
    loader.close_mosaic()
    assert (loader.augment.mosaic, loader.augment.mixup, loader.augment.cutmix) == (0, 0, 0)
    assert loader.augment.degrees == EVERYTHING.degrees
    batch = next(iter(loader))
    assert (batch["valid"].sum(1) <= cache.counts).all()


@pytest.mark.parametrize(("most", "places"), [(0, 8), (1, 8), (8, 8), (9, 16), (16, 16), (17, 32), (1000, 1024)])
def test_places_for_boxes_come_in_few_numbers(most, places):
    assert bucket(most) == places


def test_flat_is_what_ultralytics_collates(split, cache):
    dataset = host_dataset(split, cache.imgsz, augment=False)
    expected = DataLoader(dataset, 5, collate_fn=YOLODataset.collate_fn)
    batches = list(letterboxed(cache, 5))
    for batch, reference in zip(batches, expected, strict=True):
        assert torch.equal(batch["img"], reference["img"])
        made = flat(batch)
        for key in ("cls", "batch_idx"):
            assert torch.equal(made[key], reference[key])
        np.testing.assert_allclose(made["bboxes"], reference["bboxes"], atol=1e-6)
        for key in ("im_file", "ori_shape"):
            assert batch[key] == list(reference[key])
        assert batch["resized_shape"] == [tuple(shape) for shape in reference["resized_shape"]]
        assert batch["ratio_pad"] == [(tuple(gain), tuple(pad)) for gain, pad in reference["ratio_pad"]]


def test_batches_without_boxes(tmp_path):
    images = [write_image(tmp_path / f"{n}.png", n, np.full((9, 7, 3), 50, np.uint8)) for n in range(3)]
    cache = cached(DetectionSplit("plain", ("a",), (1,), images), 32)
    for batch in [*DeviceLoader(cache, EVERYTHING, 2), *letterboxed(cache, 2)]:
        assert batch["total"] == 0
        assert batch["boxes"].shape[1:] == (8, 4)
        assert not batch["valid"].any()
        made = flat(batch)
        assert made["cls"].shape == (0, 1)
        assert made["bboxes"].shape == (0, 4)
        assert made["batch_idx"].shape == (0,)


def test_the_renderer_is_told_and_never_chosen_in_silence(cache, caplog, monkeypatch):
    with caplog.at_level("INFO", logger="ultralytics"):
        assert DeviceLoader(cache, Augment(), 2).renderer == "torch"
    assert "12 images, rendered by torch on cpu" in caplog.text
    monkeypatch.setattr("yolo_lat.data.device.loader.find_spec", lambda _: None)
    with pytest.raises(UserError, match="Triton is not installed"):
        DeviceLoader(cache, Augment(), 2, renderer="triton")
    on_cuda = replace(cache, device=torch.device("cuda"), spilled=True)
    with pytest.raises(UserError, match="install Triton"):
        DeviceLoader(on_cuda, Augment(), 2)
    with pytest.raises(UserError, match="batch=0"):
        DeviceLoader(cache, Augment(), 0)


def test_margins_cover_edges_and_change_nothing_else(cache):
    bare, covered = (DeviceLoader(cache, Augment(mosaic=0.5, margin=share), 4, seed=3) for share in (0, 1))
    changed = 0
    for without, made in zip(bare, covered, strict=True):
        differ = (made["img"] != without["img"]).any(1)
        assert (made["img"].movedim(1, -1)[differ] == 114).all()
        changed += int(differ.sum())
        edge = cache.imgsz // 10
        assert not differ[:, edge:-edge, edge:-edge].any()
        assert torch.equal(made["index"], without["index"])
        assert made["total"] <= without["total"]
    assert changed > 0


def test_arguments_are_ultralytics():
    args = get_cfg(overrides={"scale": 0.3, "mixup": 0.2, "cutmix": 0.1, "bgr": 0.1})
    augment = Augment.from_args(args, cutout=0.5, margin=0.25)
    assert augment.scale == pytest.approx((0.7, 1.3))
    assert (augment.mosaic, augment.mixup, augment.cutmix, augment.bgr, augment.cutout) == (1, 0.2, 0.1, 0.1, 0.5)
    assert augment.margin == 0.25
    assert Augment.from_args(get_cfg()) == Augment()
    with pytest.raises(UserError, match="rect=True"):
        Augment.from_args(get_cfg(overrides={"rect": True}))
    args.augmentations = ["Blur"]
    with pytest.raises(UserError, match="augmentations"):
        Augment.from_args(args)
