"""The detection model: Ultralytics' `DetectionModel`, with errors that name the row of the YAML."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from ultralytics.nn.modules import Detect
from ultralytics.nn.tasks import DetectionModel
from ultralytics.utils import LOGGER

from yolo_lat.ela.attention import no_autocast
from yolo_lat.errors import UserError
from yolo_lat.nn import parser
from yolo_lat.nn.attention import ProjectedELA
from yolo_lat.nn.blocks import GatedFFN
from yolo_lat.nn.body import PixelStem, ResidualConv
from yolo_lat.nn.complexity import count_gflops, count_parameters
from yolo_lat.nn.cross_scale import CrossScaleELA
from yolo_lat.nn.experts import RoutedFFN, with_balance
from yolo_lat.nn.head import LatDetect
from yolo_lat.nn.precision import widened

parser.install()


class LatModel(DetectionModel):
    """A detector built from a model YAML, ours or Ultralytics'.

    Args:
        cfg: model YAML content with `scale` set, as `yolo_lat.nn.zoo.load_model_yaml` returns it.
        ch: input channels.
        nc: number of classes; None keeps the YAML's.
        verbose: log the table of layers.

    Attributes:
        target: "gpu" or "cpu", which processor `fuse` is to suit; either runs anywhere, with the same results.
        fused_for: the target that it was fused for, None before.

    Raises:
        UserError: a row that cannot be built, or that does not fit its inputs.
    """

    target = "gpu"
    fused_for: str | None = None

    def __init__(self, cfg: dict[str, Any], ch: int = 3, nc: int | None = None, verbose: bool = True) -> None:
        try:
            super().__init__(cfg, ch=ch, nc=nc, verbose=verbose)
        except UserError:
            raise
        except Exception as error:  # of any kind, since a YAML can ask for anything
            if isinstance(error, RuntimeError) and "memory" in str(error):
                raise
            raise self._locate(ch) or self._refused(cfg, error) from error
        if not isinstance(self.model[-1], Detect):
            file, last = cfg.get("yaml_file", "model YAML"), type(self.model[-1]).__name__
            raise UserError(f"{file}: its last row is {last}, no head of YOLO's; end with LatDetect or Detect")

    @staticmethod
    def _refused(cfg: dict[str, Any], error: Exception) -> UserError:
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        file = cfg.get("yaml_file", "model YAML")
        return UserError(f"{file}: no detector can be built of it ({reason}); correct its keys and rows")

    def _locate(self, ch: int) -> UserError | None:
        """Find the row whose forward pass fails, by running them one by one."""
        if getattr(self, "model", None) is None:
            return None
        outputs: list[Any] = []
        x: Any = torch.zeros(1, ch, 256, 256)
        for layer in self.model:
            try:
                if layer.f != -1:
                    x = (
                        outputs[layer.f]
                        if isinstance(layer.f, int)
                        else [x if j == -1 else outputs[j] for j in layer.f]
                    )
                y = layer(x)
            except Exception:
                shapes = [tuple(t.shape[1:]) for t in (x if isinstance(x, list) else [x]) if isinstance(t, Tensor)]
                where = f"{self.yaml.get('yaml_file', 'model YAML')}, row {layer.i} ({layer.type.rpartition('.')[2]})"
                return UserError(f"{where}: its inputs (C, H, W) {shapes} do not fit together; mend 'from' or strides")
            outputs.append(y)
            x = y
        return None

    def info(
        self, detailed: bool = False, verbose: bool = True, imgsz: int | list[int] = 640
    ) -> tuple[int, int, int, float] | None:
        """Log and return layers, parameters, gradients and GFLOPs at `imgsz` pixels; nothing unless `verbose`."""
        if not verbose:
            return None
        if detailed:
            super().info(detailed=True, imgsz=imgsz)
        layers = sum(1 for m in self.modules() if not list(m.children()))
        parameters, gradients = count_parameters(self), sum(p.numel() for p in self.parameters() if p.requires_grad)
        gflops = count_gflops(self, imgsz if isinstance(imgsz, int) else (imgsz[0], imgsz[-1]), self.yaml["channels"])
        name = f"{Path(self.yaml.get('yaml_file', 'model')).stem} {self.yaml.get('scale', '')}".strip()
        fused = " (fused)" if self.is_fused() else ""
        LOGGER.info(f"{name}{fused}: {layers} layers, {parameters:,} parameters, {gflops:.2f} GFLOPs at {imgsz} px")
        return layers, parameters, gradients, gflops

    def loss(self, batch: dict[str, Any], preds: Any = None) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the losses of a batch, a sum over its images, that of experts the last, and the others by name.

        They are computed in float32 at least, whatever autocast says of the network.
        """
        if preds is None:
            preds = self.forward(batch["img"])
        with no_autocast(batch["img"].device.type):
            losses, named = super().loss(batch, widened(preds))
        return with_balance(losses, self, len(batch["img"])), named

    def fuse(self, verbose: bool = True, imgsz: int = 640) -> LatModel:
        """Turn the training form into the inference form for `target`, in place; outputs stay equal to rounding.

        Batch norms fold into their convolutions (gates of Hyper-Links that change the width among them), residuals into
        theirs, attention computes all heads in two products, the FFN its gate and value apart, experts all run on every
        position, and the head keeps one branch.

        Raises:
            UserError: it is fused for the other target.
        """
        if self.fused_for not in (None, self.target):
            raise UserError(f"the model is fused for target={self.fused_for}; load it again for target={self.target}")
        self.fused_for = self.target
        super().fuse(verbose=False)
        folded = (ResidualConv, ProjectedELA, GatedFFN, RoutedFFN, LatDetect if self.target == "gpu" else PixelStem)
        for module in self.modules():
            if isinstance(module, folded):
                module.fold()
            if isinstance(module, (CrossScaleELA, LatDetect)) and self.target == "cpu":
                module.keep_levels_apart()
        self.info(verbose=verbose, imgsz=imgsz)
        return self

    def is_fused(self) -> bool:
        """Whether `fuse` has nothing left to do."""
        unfolded = any(isinstance(m, ResidualConv) and not m.folded for m in self.modules())
        return super().is_fused() and not unfolded

    def deploy(self) -> LatModel:
        """Return `fuse()`, quietly."""
        return self.fuse(verbose=False)
