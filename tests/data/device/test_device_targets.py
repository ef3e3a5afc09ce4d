"""Boxes go where their pixels go, and are kept or dropped as Ultralytics decides."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from device_samples import EVERYTHING, cached, follow, generator, host_dataset, write_image
from hypothesis import given, settings
from hypothesis import strategies as st
from ultralytics.data.augment import RandomPerspective

from yolo_lat.data.device.plan import Augment, draw
from yolo_lat.data.device.render import cover_margins, render
from yolo_lat.data.device.targets import keep, place, transform
from yolo_lat.data.labels import DetectionSplit

ALL = replace(EVERYTHING, hsv_s=0.3, hsv_v=0.3)  # the red stays red enough to be found
STRAIGHT = replace(ALL, degrees=0, shear=0, perspective=0)


@pytest.fixture(scope="module")
def marked(tmp_path_factory):
    """Black images of 64x48 px; the first has a red box."""
    folder = tmp_path_factory.mktemp("marked")
    pixels = np.zeros((48, 64, 3), np.uint8)
    pixels[12:36, 18:50, 2] = 255
    images = [write_image(folder / "0.png", 0, pixels, [[18, 12, 32, 24]])]
    images += [write_image(folder / f"{n}.png", n, np.zeros((48, 64, 3), np.uint8)) for n in range(1, 6)]
    return cached(DetectionSplit("marked", ("a",), (1,), images), 64)


@pytest.mark.parametrize("augment", [STRAIGHT, ALL], ids=["straight", "all"])
@pytest.mark.parametrize("seed", range(6))
def test_a_box_follows_its_pixels(marked, augment, seed):
    batch, s = 48, marked.imgsz
    plan = draw(marked, augment, torch.zeros(batch, dtype=torch.int64), generator(seed))
    # The red box is in one tile of one part of each sample, all other tiles are black.
    rows = torch.arange(batch)
    part, slot = rows % 3, torch.where(plan.mosaic[rows, rows % 3], rows // 3 % 4, 0)
    images = 1 + plan.images % 5
    images[rows, part, slot] = 0
    plan = replace(plan, images=images, mixup=part == 1, ratio=torch.where(part == 1, 0.4, 1.0))
    plan = replace(plan, cutmix=part == 2)
    targets = place(marked, plan)
    out = render(marked, plan, targets.cut).int()
    spread = out.amax(1) - out.amin(1)
    compared = clipped = 0
    for row in rows.tolist():
        assert targets.valid[row].sum() <= 1
        red = spread[row] > 0.25 * spread[row].max().clamp_min(40)
        ys, xs = torch.where(red)
        if not targets.valid[row, 0]:
            full = 32 * 24 * plan.scale[row, part[row]] ** 2
            thin = len(xs) == 0 or min(xs.max() - xs.min(), ys.max() - ys.min()) < 4
            assert thin or len(xs) < 0.2 * full
            continue
        x, y, w, h = (targets.boxes[row, 0] * s).tolist()
        expected = np.array([x - w / 2, y - h / 2, x + w / 2, y + h / 2])
        found = np.array([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1])
        at_edge = bool((expected < 1).any() or (expected > s - 1).any()) or part[row] == 2
        corner = plan.centre[row, part[row]] - torch.tensor([64, 48]) * torch.tensor(
            [slot[row] % 2 == 0, slot[row] < 2]
        )
        whole = bool((corner + torch.tensor([18, 12]) >= 0).all() and (corner + torch.tensor([50, 36]) <= 2 * s).all())
        assert (found[:2] >= expected[:2] - 2).all(), row
        assert (found[2:] <= expected[2:] + 2).all(), row
        if augment is STRAIGHT or (whole and not at_edge):
            np.testing.assert_allclose(found, expected, atol=1.5 if augment is STRAIGHT else 2.5)
            compared += 1
            clipped += at_edge
    assert compared > 5
    assert clipped or augment is ALL


@pytest.mark.parametrize(
    "augment", [Augment(), EVERYTHING, replace(EVERYTHING, mixup=0), replace(EVERYTHING, mosaic=0)]
)
def test_boxes_and_cuts_equal_ultralytics(split, cache, augment):
    dataset = host_dataset(split, cache.imgsz)
    cuts = 0
    for seed in range(8):
        plan = draw(cache, augment, torch.arange(len(cache)), generator(seed))
        targets = place(cache, plan)
        for sample in range(len(cache)):
            expected = follow(dataset, plan, sample)
            count = len(expected["labels"])
            assert targets.valid[sample].tolist() == [True] * count + [False] * (targets.valid.shape[1] - count)
            np.testing.assert_allclose(targets.boxes[sample, :count], expected["boxes"], atol=2e-6)
            assert targets.labels[sample, :count].tolist() == expected["labels"].tolist()
            assert targets.cut[sample].tolist() == expected["cut"].astype(int).tolist()
            cuts += int(expected["cut"].any())
            assert not targets.boxes[sample, count:].any()
    assert cuts > 10 or augment.cutmix == 0


@given(seed=st.integers(0, 2**31), scale=st.floats(0.1, 2))
@settings(max_examples=50)
def test_what_is_kept_is_exactly_what_ultralytics_keeps(seed, scale):
    rng = np.random.default_rng(seed)
    low = rng.uniform(0, 60, (200, 2))
    before = np.concatenate([low, low + rng.choice([0.5, 5, 40], (200, 2)) * rng.random((200, 2))], 1)
    after = before * scale + rng.choice([0, 3, 30], (200, 4)) * (rng.random((200, 4)) - 0.5)
    before, after = before.astype(np.float32), np.sort(after.clip(0, 64).astype(np.float32).reshape(200, 2, 2), 1)
    after = after.reshape(200, 4)
    kept = keep(torch.from_numpy(before), torch.from_numpy(after))
    np.testing.assert_array_equal(kept.numpy(), RandomPerspective.box_candidates(before.T, after.T))


@given(st.integers(0, 2**31))
@settings(max_examples=30)
def test_a_hull_holds_every_point_of_its_box(seed):
    rng = np.random.default_rng(seed)
    box = np.sort(rng.uniform(0, 100, (2, 2)), axis=0).astype(np.float32)
    matrix = np.eye(3) + rng.uniform(-0.5, 0.5, (3, 3)) * [[1, 1, 60], [1, 1, 60], [0.004, 0.004, 0]]
    hull = transform(torch.from_numpy(box.reshape(1, 4)), torch.from_numpy(matrix).float(), True)[0].numpy()
    points = np.concatenate([rng.uniform(*box, (50, 2)), np.ones((50, 1))], axis=1) @ matrix.T
    points = points[:, :2] / points[:, 2:]
    assert (points >= hull[:2] - 1e-2).all()
    assert (points <= hull[2:] + 1e-2).all()


def test_a_box_that_cutout_hides_is_dropped(marked):
    plan = draw(
        marked, Augment(mosaic=0, scale=(1, 1), translate=0, fliplr=0), torch.zeros(3, dtype=torch.int64), generator(0)
    )
    x1, y1, x2, y2 = 18, 12 + 8, 50, 36 + 8
    cutout = torch.tensor([[x1, y1, x2, y2 - 3], [x1, y1, x2, y2 - 2], [0, 0, 0, 0]], dtype=torch.int32)
    plan = replace(plan, cutout=cutout)
    targets = place(marked, plan)
    assert targets.valid.sum(1).tolist() == [1, 0, 1]
    out = render(marked, plan, targets.cut)
    assert (out[0, :, y1 : y2 - 3, x1:x2] == 114).all()
    red = out[0].int().amax(0) - out[0].int().amin(0) > 50
    assert red.sum() == 32 * 3


def test_margins_clip_boxes_and_drop_what_they_hide(marked):
    augment = Augment(mosaic=0, scale=(1, 1), translate=0, fliplr=0, margin=1)
    plan = draw(marked, augment, torch.zeros(4, dtype=torch.int64), generator(0))
    x1, y1, x2, y2, s = 18, 12 + 8, 50, 36 + 8, plan.imgsz
    shown = [[0, 0, s, s], [x1 + 5, y1, s, y2 - 4], [x1, y2 - 2, s, s], [x1, y2 - 3, s, s]]
    plan = replace(plan, shown=torch.tensor(shown, dtype=torch.int32))
    targets = place(marked, plan)
    assert targets.valid.sum(1).tolist() == [1, 1, 0, 1]  # two rows are no object, three, an eighth of it, are one
    centre, size = (targets.boxes[1, 0] * s).view(2, 2)
    assert torch.cat([centre - size / 2, centre + size / 2]).tolist() == pytest.approx(
        [x1 + 5, y1, x2, y2 - 4], abs=1e-4
    )
    without = place(marked, replace(plan, margins=False))
    torch.testing.assert_close(targets.boxes[0], without.boxes[0])
    images = render(marked, plan, targets.cut)
    covered = cover_margins(images.clone(), plan.shown)
    for image, made, (left, top, right, bottom) in zip(images, covered, shown, strict=True):
        inside = torch.zeros(s, s, dtype=torch.bool)
        inside[top:bottom, left:right] = True
        assert torch.equal(made[:, inside], image[:, inside])
        assert (made[:, ~inside] == 114).all()


def test_nothing_but_images_without_boxes(tmp_path):
    images = [write_image(tmp_path / f"{n}.png", n, np.zeros((9, 9, 3), np.uint8)) for n in range(2)]
    cache = cached(DetectionSplit("plain", ("a",), (1,), images), 32)
    plan = draw(cache, EVERYTHING, torch.tensor([0, 1, 1]), generator(0))
    targets = place(cache, plan)
    assert targets.boxes.shape == (3, 0, 4)
    assert not targets.cut.any()
    assert render(cache, plan, targets.cut).shape == (3, 3, 32, 32)
