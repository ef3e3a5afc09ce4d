"""What happens to each sample: every random number of many of them, drawn at once on the device.

The distributions and their order are those of Ultralytics' `v8_transforms`. A sample has up to three parts, each with
tiles and a matrix of its own: itself, the partner it is blended with (mixup) and the one it gets a cut from (cutmix).
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from yolo_lat.data.device.cache import DeviceCache
from yolo_lat.errors import UserError

CUT_AREAS = 3  # rectangles that cutmix tries
_CUTOUT_AREA = (0.02, 0.2)  # of the image
_CUTOUT_ASPECT = (0.3, 1 / 0.3)  # as in Random Erasing (Zhong et al., 2017)
_WIDEST_MARGIN = 0.1  # of a side


@dataclass(frozen=True)
class Augment:
    """How training samples are varied; the names and meanings are those of Ultralytics' arguments.

    Attributes:
        mosaic, mixup, cutmix: probabilities.
        degrees: largest rotation.
        translate: largest shift, as a share of the image.
        scale: smallest and largest factor.
        shear: largest angle, degrees.
        perspective: largest coefficient.
        hsv_h, hsv_s, hsv_v: largest gains.
        flipud, fliplr, bgr: probabilities.
        cutout: probability that a rectangle becomes grey; 0 by default, as Ultralytics has none.
        margin: probability that grey covers the edges, each by up to a tenth of the image; 0 by default, for the same
            reason. Grey around an image otherwise tells that it was made smaller.
    """

    mosaic: float = 1.0
    mixup: float = 0.0
    cutmix: float = 0.0
    degrees: float = 0.0
    translate: float = 0.1
    scale: tuple[float, float] = (0.5, 1.5)
    shear: float = 0.0
    perspective: float = 0.0
    hsv_h: float = 0.015
    hsv_s: float = 0.7
    hsv_v: float = 0.4
    flipud: float = 0.0
    fliplr: float = 0.5
    bgr: float = 0.0
    cutout: float = 0.0
    margin: float = 0.0

    @classmethod
    def from_args(cls, args: Any, cutout: float = 0.0, margin: float = 0.0) -> Augment:
        """Read Ultralytics' training arguments, as `ultralytics.cfg.get_cfg` returns them.

        `copy_paste` is not among them: it moves segments, which detection has none of, so there it does nothing.

        Raises:
            UserError: arguments that ask for what cannot be done on the device.
        """
        if getattr(args, "augmentations", None):
            raise UserError("augmentations: run on the host only; remove them, or take the data from the host")
        if getattr(args, "rect", False):
            raise UserError("rect=True: batches on the device are square; set rect=False or take data from the host")
        read = {f.name: getattr(args, f.name) for f in fields(cls) if f.name not in ("scale", "cutout", "margin")}
        scale = args.scale if isinstance(args.scale, (tuple, list)) else (1 - args.scale, 1 + args.scale)
        return cls(scale=(float(scale[0]), float(scale[1])), cutout=cutout, margin=margin, **read)

    def closed(self) -> Augment:
        """Return the same without what mixes images, as Ultralytics' `close_mosaic` leaves it."""
        return replace(self, mosaic=0.0, mixup=0.0, cutmix=0.0)


@dataclass(frozen=True)
class Plan:
    """All that is random in B samples with P parts, P being 1 or 3 (itself, mixup's and cutmix's partner).

    A part has four tiles that meet at `centre`, in the order top left, top right, bottom left, bottom right. Where it
    is no mosaic, the canvas is the first image alone and the centre is the canvas' lower right corner.

    Attributes:
        imgsz: side of the output, pixels.
        index: (B,) int64, the images that the samples are made from.
        images: (B, P, 4) int64, image of each tile.
        mosaic: (B, P) bool.
        centre, canvas: (B, P, 2) int32, x and y, or width and height, pixels.
        matrix, inverse: (B, P, 3, 3) float32, canvas to output and back.
        scale: (B, P) float32, the factor within `matrix`.
        mixup, cutmix: (B,) bool.
        ratio: (B,) float32, the sample's own share in mixup; 1 without it.
        areas: (B, CUT_AREAS, 4) float32 whole numbers, x1 y1 x2 y2, rectangles that cutmix may take.
        priority: (B, CUT_AREAS) float32, the largest of those that may be taken is.
        gains: (B, 3) float32, of hue, saturation and value.
        flip: (B, 2) bool, vertical and horizontal.
        bgr: (B,) bool, channels in reverse.
        cutout: (B, 4) int32 x1 y1 x2 y2 of the output; without area where there is none.
        shown: (B, 4) int32 x1 y1 x2 y2, what grey margins leave of the output; all of it where there are none.
        mixes, cuts, colours, perspective, margins: False where no sample has it, known to the host.
    """

    imgsz: int
    index: Tensor
    images: Tensor
    mosaic: Tensor
    centre: Tensor
    canvas: Tensor
    matrix: Tensor
    inverse: Tensor
    scale: Tensor
    mixup: Tensor
    cutmix: Tensor
    ratio: Tensor
    areas: Tensor
    priority: Tensor
    gains: Tensor
    flip: Tensor
    bgr: Tensor
    cutout: Tensor
    shown: Tensor
    mixes: bool = False
    cuts: bool = False
    colours: bool = False
    perspective: bool = False
    margins: bool = False

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors by name."""
        return {f.name: value for f in fields(self) if isinstance(value := getattr(self, f.name), Tensor)}


class _Draw:
    """Random tensors of one generator, on its device."""

    def __init__(self, generator: torch.Generator) -> None:
        self.generator = generator

    def uniform(self, shape: tuple[int, ...], low: float = 0.0, high: float = 1.0) -> Tensor:
        return low + (high - low) * torch.rand(shape, generator=self.generator, device=self.generator.device)

    def whole(self, shape: tuple[int, ...], stop: int) -> Tensor:
        return torch.randint(stop, shape, generator=self.generator, device=self.generator.device)

    def chance(self, shape: tuple[int, ...], probability: float) -> Tensor:
        return self.uniform(shape) < probability


def draw(cache: DeviceCache, augment: Augment, index: Tensor, generator: torch.Generator) -> Plan:
    """Draw what happens to B samples.

    Args:
        cache: the images.
        augment: the distributions.
        index: (B,) int64, the images that the samples are made from, on the cache's device.
        generator: the only source of chance, on the same device.
    """
    batch, s, random = len(index), cache.imgsz, _Draw(generator)
    mixes, cuts = augment.mixup > 0, augment.cutmix > 0
    parts = 3 if mixes or cuts else 1

    images = random.whole((batch, parts, 4), len(cache))
    images[:, 0, 0] = index
    mosaic = random.chance((batch, parts), augment.mosaic)
    margin = (s + 1) // 2
    centre = random.uniform((batch, parts, 2), margin, 2 * s - margin).to(torch.int32)
    first = images[..., 0]
    alone = torch.stack([cache.widths[first], cache.heights[first]], dim=-1)
    canvas = torch.where(mosaic[..., None], 2 * s, alone)
    centre = torch.where(mosaic[..., None], centre, alone)

    scale = random.uniform((batch, parts), *augment.scale)
    angles = random.uniform((batch, parts, 3), -1.0, 1.0)
    matrix = compose(
        canvas,
        scale,
        degrees=angles[..., 0] * augment.degrees,
        shear=angles[..., 1:] * augment.shear,
        perspective=random.uniform((batch, parts, 2), -augment.perspective, augment.perspective),
        translate=random.uniform((batch, parts, 2), 0.5 - augment.translate, 0.5 + augment.translate) * s,
    )
    mixup = random.chance((batch,), augment.mixup)
    # The middle one of 63 uniform numbers has the distribution beta(32, 32).
    ratio = random.uniform((batch, 63)).sort(dim=1).values[:, 31]
    gains = random.uniform((batch, 3), -1.0, 1.0)
    gains = torch.stack([gains[:, 0] * augment.hsv_h, gains[:, 1] * augment.hsv_s, gains[:, 2] * augment.hsv_v], dim=1)
    return Plan(
        imgsz=s,
        index=index,
        images=images,
        mosaic=mosaic,
        centre=centre,
        canvas=canvas,
        matrix=matrix.float(),
        inverse=invert(matrix).float(),
        scale=scale,
        mixup=mixup,
        cutmix=random.chance((batch,), augment.cutmix),
        ratio=torch.where(mixup, ratio, 1.0),
        areas=_cut_areas(random, batch, s),
        priority=random.uniform((batch, CUT_AREAS)),
        gains=gains,
        flip=torch.stack([random.chance((batch,), augment.flipud), random.chance((batch,), augment.fliplr)], dim=1),
        bgr=random.chance((batch,), augment.bgr),
        cutout=_cutouts(random, batch, s, augment.cutout),
        shown=_shown(random, batch, s, augment.margin),
        mixes=mixes,
        cuts=cuts,
        colours=augment.hsv_h > 0 or augment.hsv_s > 0 or augment.hsv_v > 0,
        perspective=augment.perspective > 0,
        margins=augment.margin > 0,
    )


def letterbox(cache: DeviceCache, index: Tensor, corner: Tensor) -> Plan:
    """Return the plan that puts each image as it is at `corner`, (B, 2) int64 x and y, and changes nothing."""
    batch, s = len(index), cache.imgsz
    canvas = torch.stack([cache.widths[index], cache.heights[index]], dim=-1)[:, None]
    matrix = torch.eye(3, dtype=torch.float64, device=index.device).repeat(batch, 1, 1, 1)
    matrix[:, 0, :2, 2] = corner.double()
    flat = index.new_zeros((batch, 4))
    no, none = flat[:, 0].bool(), flat.float()
    return Plan(
        imgsz=s,
        index=index,
        images=index[:, None, None].expand(batch, 1, 4).contiguous(),
        mosaic=no[:, None],
        centre=canvas,
        canvas=canvas,
        matrix=matrix.float(),
        inverse=invert(matrix).float(),
        scale=none[:, :1] + 1,
        mixup=no,
        cutmix=no,
        ratio=none[:, 0] + 1,
        areas=none[:, None].expand(batch, CUT_AREAS, 4),
        priority=none[:, :CUT_AREAS],
        gains=none[:, :3],
        flip=flat[:, :2].bool(),
        bgr=no,
        cutout=flat.int(),
        shown=torch.cat([flat[:, :2], flat[:, 2:] + s], dim=1).int(),
    )


def compose(
    canvas: Tensor, scale: Tensor, degrees: Tensor, shear: Tensor, perspective: Tensor, translate: Tensor
) -> Tensor:
    """Return (..., 3, 3) float64 from canvas to output: centre, perspective, rotation with scale, shear, translation.

    In double precision, in which no matrix unit rounds the products.

    Args:
        canvas: (..., 2) width and height, pixels; its middle is what is turned about.
        scale: (...) factor.
        degrees: (...) counter-clockwise.
        shear: (..., 2) degrees along x and y.
        perspective: (..., 2) coefficients of x and y.
        translate: (..., 2) where the canvas' middle goes, pixels.
    """
    unit = torch.eye(3, dtype=torch.float64, device=canvas.device).repeat(*scale.shape, 1, 1)
    centre, distort, turn, slant, move = (unit.clone() for _ in range(5))
    centre[..., :2, 2] = -canvas.double() / 2
    distort[..., 2, :2] = perspective.double()
    angle = torch.deg2rad(degrees.double())
    cosine, sine = scale * angle.cos(), scale * angle.sin()
    turn[..., :2, :2] = torch.stack([torch.stack([cosine, sine], -1), torch.stack([-sine, cosine], -1)], -2)
    slant[..., 0, 1], slant[..., 1, 0] = torch.deg2rad(shear.double()).tan().unbind(-1)
    move[..., :2, 2] = translate.double()
    return move @ slant @ turn @ distort @ centre


def invert(matrix: Tensor) -> Tensor:
    """Return the inverses of (..., 3, 3), by cofactors, so that a batch is one elementwise computation."""
    a, b, c = matrix.unbind(-2)
    cross = torch.linalg.cross
    adjugate = torch.stack([cross(b, c), cross(c, a), cross(a, b)], dim=-1)
    return adjugate / (a * adjugate[..., 0]).sum(-1)[..., None, None]


def _cut_areas(random: _Draw, batch: int, s: int) -> Tensor:
    side = (s * random.uniform((batch, CUT_AREAS)).sqrt()).floor()  # beta(1, 1), as is one minus it
    half = (side / 2).floor()[..., None]
    middle = random.whole((batch, CUT_AREAS, 2), s)
    return torch.cat([middle - half, middle + half], dim=-1).clamp(0, s)


def _cutouts(random: _Draw, batch: int, s: int, probability: float) -> Tensor:
    low, high = torch.tensor(_CUTOUT_ASPECT, dtype=torch.float64).log().tolist()
    area, aspect = random.uniform((batch,), *_CUTOUT_AREA), random.uniform((batch,), low, high).exp()
    size = torch.stack([(area * aspect).sqrt(), (area / aspect).sqrt()], dim=-1).mul(s).clamp(1, s).floor()
    corner = (random.uniform((batch, 2)) * (s - size + 1)).floor().minimum(s - size)
    size = size * random.chance((batch, 1), probability)
    return torch.cat([corner, corner + size], dim=-1).to(torch.int32)


def _shown(random: _Draw, batch: int, s: int, probability: float) -> Tensor:
    widest = int(s * _WIDEST_MARGIN)
    margins = random.whole((batch, 4), widest + 1) * random.chance((batch, 1), probability)
    return torch.cat([margins[:, :2], s - margins[:, 2:]], dim=-1).to(torch.int32)
