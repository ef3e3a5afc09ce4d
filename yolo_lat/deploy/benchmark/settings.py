"""The declared list of settings and of pipeline variants that every model chooses its best from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from yolo_lat.deploy.session import SessionSettings
from yolo_lat.errors import UserError, nearest


@dataclass(frozen=True)
class Setting:
    """One way to open a session.

    Attributes:
        name: as tables, records and `settings=` write it.
        prefer_nhwc, fuse_conv_bias, cuda_graph: as in `SessionSettings`.
    """

    name: str
    prefer_nhwc: bool = False
    fuse_conv_bias: bool = False
    cuda_graph: bool = False

    def session(self, threads: int) -> SessionSettings:
        """Return the settings of the session; float32 is computed in float32, never in TensorFloat-32."""
        return SessionSettings(
            threads=threads,
            cuda_graph=self.cuda_graph,
            prefer_nhwc=self.prefer_nhwc,
            fuse_conv_bias=self.fuse_conv_bias,
        )


@dataclass(frozen=True)
class Variant:
    """One form of a model for the `pipeline` boundary.

    Attributes:
        name: as tables and records write it.
        export: arguments of the export beside those that all files have.
        head: an attribute that the model's head must have for this form; empty for every model.
    """

    name: str
    export: Mapping[str, object] = field(default_factory=dict)
    head: str = ""


SETTINGS: dict[str, tuple[Setting, ...]] = {
    "cpu": (Setting("default"),),
    "cuda": (
        Setting("default"),
        Setting("nhwc", prefer_nhwc=True),
        Setting("bias", fuse_conv_bias=True),
        Setting("nhwc+bias", prefer_nhwc=True, fuse_conv_bias=True),
        Setting("graph", cuda_graph=True),
        Setting("graph+nhwc", prefer_nhwc=True, cuda_graph=True),
        Setting("graph+bias", fuse_conv_bias=True, cuda_graph=True),
        Setting("graph+nhwc+bias", prefer_nhwc=True, fuse_conv_bias=True, cuda_graph=True),
    ),
}

# The first is also what `forward` measures; a file given as .onnx has no other form than its own.
VARIANTS = (
    Variant("raw output"),
    Variant("bytes, best class", {"preprocess": True, "best_class": True}),
    Variant("NMS-free", {"nms": False}, head="one2one_cv2"),
    Variant("bytes, NMS-free", {"preprocess": True, "nms": False}, head="one2one_cv2"),
)


def find_settings(device: str, names: tuple[str, ...] = ()) -> tuple[Setting, ...]:
    """Return the declared settings of a device, or those of them that are named.

    Raises:
        UserError: a name that is not in the list of the device.
    """
    declared = {setting.name: setting for setting in SETTINGS[device.partition(":")[0]]}
    for name in names:
        if name not in declared:
            hint = nearest(name, declared) or f"; use some of {', '.join(declared)}"
            raise UserError(f"settings={name} is not in the declared list for {device}{hint}")
    return tuple(declared[name] for name in dict.fromkeys(names)) or tuple(declared.values())
