"""The pixels of a planned batch in one Triton kernel: `render` without its intermediate tensors.

A program makes a run of output pixels of one sample. Imported only where Triton is installed.
"""

# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from yolo_lat.data.device.cache import DeviceCache
from yolo_lat.data.device.plan import Plan

BLOCK = 256  # output pixels of a program


@triton.jit
def _tap(pixels, tiles, x, y, cx, cy, cw, ch, mask):
    """Return blue, green and red at places of the canvas; `tiles` points to offset, width and height of each tile."""
    right = x >= cx
    low = y >= cy
    tile = tiles + tl.where(low, 6, 0) + tl.where(right, 3, 0)
    offset = tl.load(tile)
    width = tl.load(tile + 1).to(tl.int32)
    height = tl.load(tile + 2).to(tl.int32)
    column = x - cx + tl.where(right, 0, width)
    row = y - cy + tl.where(low, 0, height)
    shown = mask & (x >= 0) & (y >= 0) & (x < cw) & (y < ch)
    shown = shown & (column >= 0) & (row >= 0) & (column < width) & (row < height)
    first = pixels + offset + (row * width + column) * 3
    b = tl.load(first, mask=shown, other=114).to(tl.float32)
    g = tl.load(first + 1, mask=shown, other=114).to(tl.float32)
    r = tl.load(first + 2, mask=shown, other=114).to(tl.float32)
    return b, g, r


@triton.jit
def _between(a, b, c, d, fx, fy):
    """Return the rounded bilinear mean of upper left, upper right, lower left and lower right."""
    upper = a + (b - a) * fx
    lower = c + (d - c) * fx
    return tl.floor(upper + (lower - upper) * fy + 0.5)


@triton.jit
def _part(pixels, tiles, frames, inverse, number, x, y, far, mask, PERSPECTIVE: tl.constexpr):
    """Return blue, green and red of the part `number` of all parts, at float32 output places before flips."""
    m = inverse + number * 9
    u = x * tl.load(m) + y * tl.load(m + 1) + tl.load(m + 2)
    v = x * tl.load(m + 3) + y * tl.load(m + 4) + tl.load(m + 5)
    if PERSPECTIVE:
        w = x * tl.load(m + 6) + y * tl.load(m + 7) + tl.load(m + 8)
        w = tl.where(w == 0, 0.0, 1.0 / tl.where(w == 0, 1.0, w))
        u = u * w
        v = v * w
    u = tl.minimum(tl.maximum(u, -far), far)
    v = tl.minimum(tl.maximum(v, -far), far)
    left = tl.floor(u)
    top = tl.floor(v)
    fx = u - left
    fy = v - top
    xi = left.to(tl.int32)
    yi = top.to(tl.int32)

    frame = frames + number * 4
    cx, cy, cw, ch = tl.load(frame), tl.load(frame + 1), tl.load(frame + 2), tl.load(frame + 3)
    t = tiles + number * 12
    ab, ag, ar = _tap(pixels, t, xi, yi, cx, cy, cw, ch, mask)
    bb, bg, br = _tap(pixels, t, xi + 1, yi, cx, cy, cw, ch, mask)
    cb, cg, cr = _tap(pixels, t, xi, yi + 1, cx, cy, cw, ch, mask)
    db, dg, dr = _tap(pixels, t, xi + 1, yi + 1, cx, cy, cw, ch, mask)
    return _between(ab, bb, cb, db, fx, fy), _between(ag, bg, cg, dg, fx, fy), _between(ar, br, cr, dr, fx, fy)


@triton.jit
def _vary_colours(b, g, r, hue_gain, saturation_gain, value_gain):
    """Vary hue, saturation and value in OpenCV's 8-bit steps; the formulas are explained in `render`."""
    b = b.to(tl.int32)
    g = g.to(tl.int32)
    r = r.to(tl.int32)
    v = tl.maximum(tl.maximum(b, g), r)
    d = v - tl.minimum(tl.minimum(b, g), r)
    by_v = tl.maximum(v, 1)
    by_d = tl.maximum(d, 1)
    saturation = (d * ((1044480 + by_v // 2) // by_v) + 2048) >> 12
    e = tl.where(v == r, g - b, tl.where(v == g, b - r + 2 * d, r - g + 4 * d))
    hue = (e * ((122880 + by_d // 2) // by_d) + 2048) >> 12
    hue = tl.where(hue < 0, hue + 180, hue).to(tl.float32) + hue_gain * 180
    hue = tl.where(hue < 0, hue + 180, tl.where(hue >= 180, hue - 180, hue))
    hue = tl.minimum(hue, 179.0).to(tl.int32)
    saturation = tl.floor(tl.minimum(tl.maximum(saturation * (saturation_gain + 1), 0.0), 255.0))
    value = tl.floor(tl.minimum(tl.maximum(v * (value_gain + 1), 0.0), 255.0))

    sector = hue // 30
    within = (hue - sector * 30) / 30
    share = saturation / 255
    p = value * (1 - share)
    q = value * (1 - share * within)
    t = value * (1 - share * (1 - within))
    s0, s1, s2, s3, s4 = sector == 0, sector == 1, sector == 2, sector == 3, sector == 4
    b = tl.where(s0 | s1, p, tl.where(s2, t, tl.where(s3 | s4, value, q)))
    g = tl.where(s0, t, tl.where(s1 | s2, value, tl.where(s3, q, p)))
    r = tl.where(s1, q, tl.where(s2 | s3, p, tl.where(s4, t, value)))
    return tl.floor(b), tl.floor(g), tl.floor(r)


@triton.jit(do_not_specialize=["start"])
def render_kernel(
    out,
    pixels,
    tiles,
    frames,
    inverse,
    tones,
    marks,
    start,
    s,
    PARTS: tl.constexpr,
    MIXES: tl.constexpr,
    CUTS: tl.constexpr,
    COLOURS: tl.constexpr,
    PERSPECTIVE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Write `out`, (n, 3, s, s) uint8: samples from number `start` on of those that `_tables` describes."""
    sample = start + tl.program_id(1)
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = place < s * s
    row = place // s
    column = place % s
    tone = tones + sample * 4
    mark = marks + sample * 11
    y = tl.where(tl.load(mark) != 0, s - 1 - row, row)
    x = tl.where(tl.load(mark + 1) != 0, s - 1 - column, column)
    xf = x.to(tl.float32)
    yf = y.to(tl.float32)
    far = 2.0 * s + 2
    first = sample * PARTS
    b, g, r = _part(pixels, tiles, frames, inverse, first, xf, yf, far, mask, PERSPECTIVE)
    if MIXES:
        own = tl.load(tone)
        if own < 1:
            b1, g1, r1 = _part(pixels, tiles, frames, inverse, first + 1, xf, yf, far, mask, PERSPECTIVE)
            b = tl.floor(b1 + (b - b1) * own)
            g = tl.floor(g1 + (g - g1) * own)
            r = tl.floor(r1 + (r - r1) * own)
    if CUTS:
        x1, y1, x2, y2 = tl.load(mark + 3), tl.load(mark + 4), tl.load(mark + 5), tl.load(mark + 6)
        if x2 > x1:
            inside = mask & (x >= x1) & (x < x2) & (y >= y1) & (y < y2)
            b2, g2, r2 = _part(pixels, tiles, frames, inverse, first + 2, xf, yf, far, inside, PERSPECTIVE)
            b = tl.where(inside, b2, b)
            g = tl.where(inside, g2, g)
            r = tl.where(inside, r2, r)
    if COLOURS:
        b, g, r = _vary_colours(b, g, r, tl.load(tone + 1), tl.load(tone + 2), tl.load(tone + 3))
    hidden = (column >= tl.load(mark + 7)) & (row >= tl.load(mark + 8))
    hidden = hidden & (column < tl.load(mark + 9)) & (row < tl.load(mark + 10))
    b = tl.where(hidden, 114.0, b)
    g = tl.where(hidden, 114.0, g)
    r = tl.where(hidden, 114.0, r)
    bgr = tl.load(mark + 2) != 0
    red = out + tl.program_id(1).to(tl.int64) * 3 * s * s + place
    tl.store(red, tl.where(bgr, b, r).to(tl.int32).to(tl.uint8), mask=mask)
    tl.store(red + s * s, g.to(tl.int32).to(tl.uint8), mask=mask)
    tl.store(red + 2 * s * s, tl.where(bgr, r, b).to(tl.int32).to(tl.uint8), mask=mask)


def render_triton(cache: DeviceCache, plan: Plan, cut: Tensor) -> Tensor:
    """Return what `render.render` does; pixels may be in page-locked host memory, which the kernel reads in place."""
    return TritonRenderer(cache, plan, cut)(0, len(plan.index))


class TritonRenderer:
    """Makes the pixels of a plan, some samples at a time; the arguments are those of `render.render`.

    Attributes:
        tables: the plan as the kernel reads it, on the device.
    """

    def __init__(self, cache: DeviceCache, plan: Plan, cut: Tensor) -> None:
        self.pixels, self.side = cache.pixels, plan.imgsz
        self.tables = _tables(cache, plan, cut)
        self.constants: dict[str, int | bool] = {
            "PARTS": plan.images.shape[1],
            "MIXES": plan.mixes,
            "CUTS": plan.cuts,
            "COLOURS": plan.colours,
            "PERSPECTIVE": plan.perspective,
            "BLOCK": BLOCK,
        }

    def __call__(self, start: int, stop: int) -> Tensor:
        """Return (stop - start, 3, s, s) uint8 RGB."""
        s = self.side
        out = torch.empty((stop - start, 3, s, s), dtype=torch.uint8, device=self.tables[0].device)
        render_kernel[(triton.cdiv(s * s, BLOCK), stop - start)](
            out, self.pixels, *self.tables, start, s, **self.constants
        )
        return out


def _tables(cache: DeviceCache, plan: Plan, cut: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return a plan as the kernel reads it.

    Returns:
        tiles (B, P, 4, 3) int64, offset, width and height; frames (B, P, 4) int32, centre and canvas; inverse
        (B, P, 3, 3) float32; tones (B, 4) float32, ratio and gains; marks (B, 11) int32, flips, bgr, cut and cutout.
    """
    of_tiles = cache.offsets[plan.images], cache.widths[plan.images].long(), cache.heights[plan.images].long()
    return (
        torch.stack(of_tiles, dim=-1),
        torch.cat([plan.centre, plan.canvas], dim=-1),
        plan.inverse.contiguous(),
        torch.cat([plan.ratio[:, None], plan.gains], dim=1),
        torch.cat([plan.flip.int(), plan.bgr.int()[:, None], cut, plan.cutout], dim=1),
    )
