"""The pixels of a planned batch, in plain torch: what the kernel of `render_triton` is held against.

Every output pixel looks back: through the inverse matrix to the canvas, there to four neighbours, and from each to the
pixel of the tile that covers it, or to grey. That is what pasting a mosaic and warping it gives, without the canvas.
"""

from __future__ import annotations

import torch
from torch import Tensor

from yolo_lat.data.device.cache import DeviceCache
from yolo_lat.data.device.plan import Plan

FILL = 114  # grey of what no image covers
_CHUNK = 1 << 20  # output pixels made at a time


def render(cache: DeviceCache, plan: Plan, cut: Tensor) -> Tensor:
    """Return (B, 3, s, s) uint8 RGB; hue, saturation and value in OpenCV's 8-bit steps, as Ultralytics varies them.

    Args:
        cache: the images; pixels that were spilled to host memory can only be read by a plan in host memory.
        plan: of the samples.
        cut: (B, 4) int32 from `targets.place`, where cutmix puts its partner.
    """
    return TorchRenderer(cache, plan, cut)(0, len(plan.index))


def cover_margins(images: Tensor, shown: Tensor) -> Tensor:
    """Make (B, 3, s, s) uint8 grey outside of (B, 4) rectangles x1 y1 x2 y2, in place, and return them."""
    places = torch.arange(images.shape[-1], device=images.device)
    return images.masked_fill_(~_inside(shown, places, places[:, None])[:, None], FILL)


class TorchRenderer:
    """Makes the pixels of a plan, some samples at a time; the arguments are those of `render`."""

    def __init__(self, cache: DeviceCache, plan: Plan, cut: Tensor) -> None:
        self.cache, self.plan, self.cut = cache, plan, cut
        self.tables: tuple[Tensor, ...] = ()

    def __call__(self, start: int, stop: int) -> Tensor:
        """Return (stop - start, 3, s, s) uint8 RGB."""
        s = self.plan.imgsz
        out = torch.empty((stop - start, 3, s, s), dtype=torch.uint8, device=self.plan.index.device)
        step = max(1, _CHUNK // (s * s))
        for first in range(start, stop, step):
            last = min(first + step, stop)
            out[first - start : last - start] = _samples(self.cache, self.plan, self.cut, slice(first, last))
        return out


def _samples(cache: DeviceCache, plan: Plan, cut: Tensor, rows: slice) -> Tensor:
    s, flip = plan.imgsz, plan.flip[rows, :, None, None]
    places = torch.arange(s, device=cut.device)
    y = torch.where(flip[:, 0], s - 1 - places[:, None], places[:, None])
    x = torch.where(flip[:, 1], s - 1 - places, places)
    colours = _part(cache, plan, rows, 0, x, y)
    if plan.mixes:
        other = _part(cache, plan, rows, 1, x, y)
        colours = (other + (colours - other) * plan.ratio[rows, None, None, None]).floor()
    if plan.cuts:
        inside = _inside(cut[rows], x, y)
        colours = torch.where(inside[:, None], _part(cache, plan, rows, 2, x, y), colours)
    if plan.colours:
        colours = _vary_colours(colours, plan.gains[rows])
    inside = _inside(plan.cutout[rows], places, places[:, None])
    colours = torch.where(inside[:, None], FILL, colours)
    return torch.where(plan.bgr[rows, None, None, None], colours, colours.flip(1)).to(torch.uint8)


def _part(cache: DeviceCache, plan: Plan, rows: slice, part: int, x: Tensor, y: Tensor) -> Tensor:
    """Return (b, 3, s, s) float32 BGR, whole numbers, of one part of the samples `rows`.

    The places before flips are x, (b, 1, s) int64, and y, (b, s, 1).
    """
    m = [plan.inverse[rows, part, i, j, None, None] for i in range(3) for j in range(3)]
    u, v = (x * a + y * b + c for a, b, c in (m[:3], m[3:6]))
    if plan.perspective:
        w = x * m[6] + y * m[7] + m[8]
        w = torch.where(w == 0, 0.0, 1 / w)
        u, v = u * w, v * w
    far = 2.0 * plan.imgsz + 2  # beyond the canvas on every side, and within the range of integers
    u, v = u.clamp(-far, far), v.clamp(-far, far)
    left, top = u.floor(), v.floor()
    fx, fy = (u - left)[:, None], (v - top)[:, None]
    left, top = left.to(torch.int64), top.to(torch.int64)
    tiles = _Tiles(cache, plan, rows, part)
    upper = _between(tiles.colours(left, top), tiles.colours(left + 1, top), fx)
    lower = _between(tiles.colours(left, top + 1), tiles.colours(left + 1, top + 1), fx)
    return (_between(upper, lower, fy) + 0.5).floor()


def _between(a: Tensor, b: Tensor, share: Tensor) -> Tensor:
    return a + (b - a) * share


class _Tiles:
    """The canvas of one part of some samples, looked into without being made."""

    def __init__(self, cache: DeviceCache, plan: Plan, rows: slice, part: int) -> None:
        self.pixels = cache.pixels
        images = plan.images[rows, part]
        self.offsets, self.widths, self.heights = cache.offsets[images], cache.widths[images], cache.heights[images]
        self.centre, self.canvas = plan.centre[rows, part, :, None, None], plan.canvas[rows, part, :, None, None]

    def colours(self, x: Tensor, y: Tensor) -> Tensor:
        """Return (b, 3, s, s) float32 BGR of (b, s, s) int64 places on the canvas."""
        right, low = x >= self.centre[:, 0], y >= self.centre[:, 1]
        tile = (low * 2 + right * 1).flatten(1)
        offset, width, height = (
            values.gather(1, tile).view(x.shape).long() for values in (self.offsets, self.widths, self.heights)
        )
        column = x - self.centre[:, 0] + torch.where(right, 0, width)
        row = y - self.centre[:, 1] + torch.where(low, 0, height)
        shown = (x >= 0) & (y >= 0) & (x < self.canvas[:, 0]) & (y < self.canvas[:, 1])
        shown &= (column >= 0) & (row >= 0) & (column < width) & (row < height)
        first = torch.where(shown, offset + (row * width + column) * 3, 0)
        channels = [self.pixels[first + channel] for channel in range(3)]
        return torch.where(shown[:, None], torch.stack(channels, dim=1), FILL).float()


def _inside(box: Tensor, x: Tensor, y: Tensor) -> Tensor:
    x1, y1, x2, y2 = box[:, :, None, None].unbind(1)
    return (x >= x1) & (x < x2) & (y >= y1) & (y < y2)


def _vary_colours(colours: Tensor, gains: Tensor) -> Tensor:
    """Vary hue, saturation and value of (b, 3, s, s) whole BGR by (b, 3) gains."""
    hue, saturation, value = _to_hsv(colours.to(torch.int32))
    gain = gains[..., None, None]
    hue = hue + gain[:, 0] * 180
    hue = torch.where(hue < 0, hue + 180, torch.where(hue >= 180, hue - 180, hue)).clamp_max(179.0).floor()
    saturation = (saturation * (gain[:, 1] + 1)).clamp(0, 255).floor()
    value = (value * (gain[:, 2] + 1)).clamp(0, 255).floor()
    return _to_bgr(hue, saturation, value)


def _to_hsv(bgr: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return hue in 0..179, saturation and value in 0..255, int32, in OpenCV's fixed-point arithmetic.

    With v the largest channel and d its distance to the smallest, s = 255 d / v and h = 30 e / d, with e the difference
    of the other two, plus 2d or 4d. The quotients 255 / v and 30 / d are rounded to 12 binary places first.
    """
    b, g, r = bgr.unbind(1)
    v = bgr.amax(1)
    d = v - bgr.amin(1)
    saturation = (d * _quotient(255 << 12, v) + 2048) >> 12
    e = torch.where(v == r, g - b, torch.where(v == g, b - r + 2 * d, r - g + 4 * d))
    hue = (e * _quotient(30 << 12, d) + 2048) >> 12
    return torch.where(hue < 0, hue + 180, hue), saturation, v


def _quotient(number: int, divisor: Tensor) -> Tensor:
    """Return `number` / `divisor` rounded, or a number that is multiplied by zero where the divisor is zero."""
    divisor = divisor.clamp_min(1)
    return torch.div(number + divisor // 2, divisor, rounding_mode="floor")


def _to_bgr(hue: Tensor, saturation: Tensor, value: Tensor) -> Tensor:
    """Return (b, 3, s, s) float32 whole BGR of (b, s, s) hue, saturation and value in OpenCV's 8-bit ranges.

    Fractions are cut off, as OpenCV's vector code does on x86; it rounds what is left of a row beyond whole vectors.
    """
    sixth = hue / 30
    sector = sixth.floor()
    within, share, v = sixth - sector, saturation / 255, value
    p, q, t = v * (1 - share), v * (1 - share * within), v * (1 - share * (1 - within))
    blue = _pick(sector, (p, p, t, v, v, q))
    green = _pick(sector, (t, v, v, q, p, p))
    red = _pick(sector, (v, q, p, p, t, v))
    return torch.stack([blue, green, red], dim=1).floor()


def _pick(sector: Tensor, choices: tuple[Tensor, ...]) -> Tensor:
    picked = choices[5]
    for number in range(5):
        picked = torch.where(sector == number, choices[number], picked)
    return picked
