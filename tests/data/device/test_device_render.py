"""Pixels: as Ultralytics and OpenCV make them of the same plan."""

from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from device_samples import EVERYTHING, follow, generator, host_dataset
from hypothesis import given, settings
from hypothesis import strategies as st

import yolo_lat.data.device.render as module
from yolo_lat.data.device.plan import Augment, draw
from yolo_lat.data.device.render import FILL, _to_hsv, _vary_colours, render
from yolo_lat.data.device.targets import place


@pytest.mark.parametrize(
    "augment",
    [Augment(), replace(EVERYTHING, hsv_h=0, hsv_s=0, hsv_v=0), EVERYTHING, replace(EVERYTHING, mosaic=0)],
    ids=["default", "everything but colours", "everything", "no mosaic"],
)
def test_pixels_equal_ultralytics(split, cache, augment):
    dataset = host_dataset(split, cache.imgsz)
    for seed in range(3):
        plan = draw(cache, augment, torch.arange(len(cache)), generator(seed))
        out = render(cache, plan, place(cache, plan).cut).numpy()
        for sample in range(len(cache)):
            difference = np.abs(out[sample].astype(int) - follow(dataset, plan, sample)["img"])
            assert difference.mean() < 0.25
            # OpenCV takes the product's last bit otherwise here and there, and colours carry that further.
            assert (difference > 3).mean() < 0.002


@given(seed=st.integers(0, 2**31), steps_of_gain=st.tuples(*[st.integers(-997, 997)] * 3))
@settings(max_examples=25)
def test_colours_vary_as_opencvs_tables_do(seed, steps_of_gain):
    gains = [step / 997 for step in steps_of_gain]  # a prime: no product lies so near a whole number that floats differ
    pixels = np.random.default_rng(seed).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    steps = np.arange(256, dtype=np.float64)
    gain = np.array(gains, dtype=np.float64)
    saturation = np.clip(steps * (gain[1] + 1), 0, 255)
    tables = [(steps + gain[0] * 180) % 180, saturation, np.clip(steps * (gain[2] + 1), 0, 255)]
    tables = np.stack([table.astype(np.uint8) for table in tables], -1).reshape(1, 256, 3)
    expected = cv2.cvtColor(cv2.LUT(cv2.cvtColor(pixels, cv2.COLOR_BGR2HSV), tables), cv2.COLOR_HSV2BGR)
    planar = torch.from_numpy(pixels.transpose(2, 0, 1).copy())[None].float()
    made = _vary_colours(planar, torch.tensor([gains]))[0].numpy().transpose(1, 2, 0)
    difference = np.abs(made - expected)
    assert difference.max() <= 1
    assert (difference > 0).mean() < 0.1


def test_hsv_is_opencvs_to_the_last_bit():
    levels = np.array([0, 1, 2, 3, 7, 31, 64, 100, 127, 128, 200, 254, 255], dtype=np.uint8)
    pixels = np.stack(np.meshgrid(levels, levels, levels), -1).reshape(1, -1, 3)
    made = torch.stack(_to_hsv(torch.from_numpy(pixels).permute(2, 0, 1)[None].int()), dim=-1)[0]
    np.testing.assert_array_equal(made, cv2.cvtColor(pixels, cv2.COLOR_BGR2HSV))


def test_chunks_change_nothing(cache, monkeypatch):
    plan = draw(cache, EVERYTHING, torch.arange(7), generator(0))
    cut = place(cache, plan).cut
    whole = render(cache, plan, cut)
    monkeypatch.setattr(module, "_CHUNK", 2 * cache.imgsz**2)
    assert torch.equal(render(cache, plan, cut), whole)


def test_extreme_matrices_give_grey_not_errors(cache):
    plan = draw(cache, replace(EVERYTHING, mixup=0, cutmix=0, hsv_h=0, hsv_s=0, hsv_v=0), torch.arange(4), generator(0))
    inverse = plan.inverse.clone()
    inverse[0, 0] = torch.tensor([[1e30, 0, 0], [0, 1e30, 1e30], [0, 0, 1]])
    inverse[1, 0, 2] = 0
    inverse[2, 0] = -1e9 * torch.eye(3)
    out = render(cache, replace(plan, inverse=inverse), torch.zeros((4, 4), dtype=torch.int32))
    assert (out[0, :, 5:, 5:] == FILL).all()
