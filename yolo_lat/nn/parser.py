"""Model YAMLs that mix Ultralytics' rows with ours.

Ultralytics has no registry of modules: `ultralytics.nn.tasks.parse_model` knows its own rows and their channel rules by
heart. So it goes on parsing them: every row of ours is handed to it as a placeholder of the right width, behind probes
that report the widths of its inputs, and is replaced by the real module afterwards. A YAML without rows of ours goes to
Ultralytics untouched.
"""

from __future__ import annotations

import copy
import importlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from ultralytics.nn import tasks
from ultralytics.nn.modules import Conv
from ultralytics.utils import LOGGER
from ultralytics.utils.ops import make_divisible

from yolo_lat.data.faults import shown
from yolo_lat.errors import UserError, nearest
from yolo_lat.nn.blocks import ELABlock, HyperLink
from yolo_lat.nn.body import LocalBlock, PixelStem
from yolo_lat.nn.cross_scale import CrossScaleELA, Level
from yolo_lat.nn.head import LatDetect
from yolo_lat.nn.published import PaperDetect, PaperELA


@dataclass(frozen=True)
class Row:
    """How a module of ours is built from its YAML row.

    Attributes:
        module: called as module(c1, c2, *args), c1 a list of widths when `many`.
        many: takes several feature maps: a list of rows, or one row that returns a list.
        repeats: the row's repeat count, scaled by depth, follows c2.
        optional: a small depth may scale the repeat count to 0, which leaves out what the block does.
        levels: returns a list of maps, one for each input.
        head: called as module(nc, reg_max, end2end, widths), as Ultralytics calls `Detect`.
    """

    module: Callable[..., nn.Module]
    many: bool = False
    repeats: bool = False
    optional: bool = False
    levels: bool = False
    head: bool = False


ROWS: dict[str, Row] = {
    "PixelStem": Row(PixelStem),
    "LocalBlock": Row(LocalBlock, repeats=True, optional=True),
    "ELABlock": Row(ELABlock, repeats=True),
    "HyperLink": Row(HyperLink, many=True),
    "CrossScaleELA": Row(CrossScaleELA, many=True, levels=True),
    "Level": Row(Level, many=True),
    "LatDetect": Row(LatDetect, many=True, head=True),
    "PaperELA": Row(PaperELA),
    "PaperDetect": Row(PaperDetect, many=True, head=True),
}

_stock_parse_model = tasks.parse_model


def parse_model(d: dict[str, Any], ch: int, verbose: bool = True) -> tuple[nn.Sequential, list[int]]:
    """Build the layers of a model YAML; a drop-in for `ultralytics.nn.tasks.parse_model`.

    Args:
        d: model YAML with `scale` set.
        ch: input channels.
        verbose: log a line for each row.

    Returns:
        The layers, and the sorted indices of those whose output a later row reads.

    Raises:
        UserError: an unknown row, or one that cannot be built; the message names file and row.
    """
    activation = Conv.default_act  # of the whole process; Ultralytics restores it only when nothing fails
    d = dict(d)
    try:
        if given := d.pop("activation", None):  # Ultralytics would evaluate it, whatever it is
            Conv.default_act = _activation(given, d.get("yaml_file", "model YAML"))
        if all(_is_stock(row[2]) for row in d["backbone"] + d["head"] if isinstance(row, list) and len(row) == 4):
            try:
                return _stock_parse_model(d, ch, verbose)
            except Exception as error:  # of any kind, as rows are not checked there
                raise _Parser(d).located(error, ch) from error
        return _Parser(d).build(ch, verbose)
    finally:
        Conv.default_act = activation


def install() -> None:
    """Make Ultralytics build YAMLs with our rows too, so that its own commands take our checkpoints."""
    tasks.parse_model = parse_model


class _Parser:
    """One parse: rows go in, Ultralytics builds its own and placeholders, ours replace the placeholders.

    Attributes:
        expanded: the rows that Ultralytics parses: its own, and a placeholder behind width probes for each of ours.
        position: where row i of the YAML stands among them.
        levels: rows that return a list of maps, and how many maps.
    """

    def __init__(self, d: dict[str, Any]) -> None:
        self.d = d
        self.rows: list[list[Any]] = d["backbone"] + d["head"]
        self.file = d.get("yaml_file", "model YAML")
        scales = d.get("scales")
        multiples: list[float] = [d.get("depth_multiple", 1.0), d.get("width_multiple", 1.0), math.inf]
        if scales:
            multiples = scales[d.get("scale") or next(iter(scales))]  # Ultralytics takes the first too
        self.depth, self.width, self.max_channels = multiples
        self.expanded: list[list[Any]] = []
        self.position: list[int] = []
        self.levels: dict[int, int] = {}

    def error(self, i: int, problem: str) -> UserError:
        row = self.rows[i]
        name = shown(row[2] if isinstance(row, list) and len(row) == 4 else row).strip("'")
        return UserError(f"{self.file}, row {i} ({name}): {problem}")

    def check(self) -> None:
        """Refuse rows that nobody knows, before anything is built."""
        for i, row in enumerate(self.rows):
            if not (isinstance(row, list) and len(row) == 4 and isinstance(row[3], list)):
                raise self.error(i, "a row is [from, repeats, module, [arguments]]; write it so")
            sources, n, name = _as_list(row[0]), row[1], str(row[2])
            if not all(isinstance(f, int) and (-i <= f < i or (i == 0 and f == -1)) for f in sources):
                raise self.error(
                    i, f"'from' is {shown(row[0])}; it must name earlier rows by number, -1 the one before"
                )
            if not isinstance(n, int) or n < 1:
                raise self.error(i, f"'repeats' is {shown(n)}; it must be a whole number of at least 1")
            if name not in ROWS and not _is_stock(name):
                known = sorted([*ROWS, *(key for key, value in vars(tasks).items() if _is_module(value))])
                raise self.error(i, f"unknown module {shown(name)}{nearest(name, known)}; ours are {', '.join(ROWS)}")

    def located(self, error: Exception, ch: int) -> UserError:
        """Return what to say of rows of Ultralytics alone that it cannot build."""
        self.check()
        for i, row in enumerate(self.rows):
            try:
                _stock_parse_model({**self.d, "backbone": copy.deepcopy(self.rows[: i + 1]), "head": []}, ch, False)
            except Exception as cause:
                return self.error(i, f"cannot be built with {shown(row[3])} ({_line(cause)}); mend its arguments")
        return UserError(f"{self.file}: cannot be built ({_line(error)}); correct its keys")

    def build(self, ch: int, verbose: bool) -> tuple[nn.Sequential, list[int]]:
        self.check()
        probes: dict[int, list[int]] = {}
        counts = [self._count_levels(i) for i in range(len(self.rows))]
        for i, (sources, n, name, args) in enumerate(self.rows):
            if name not in ROWS:
                self.expanded.append([self._remap(i, sources), n, name, copy.deepcopy(args)])
            else:
                targets = [self._remap(i, f, absolute=True) for f in _as_list(sources)]
                probes[i] = list(range(len(self.expanded), len(self.expanded) + len(targets)))
                self.expanded += [[target, 1, "nn.BatchNorm2d", []] for target in targets]
                self.expanded.append([-1, 1, "Index", [self._placeholder_width(i), 0]])
            self.position.append(len(self.expanded) - 1)

        parsed = self._parse_stock(ch)
        layers: list[Any] = []
        if verbose:
            LOGGER.info(f"\n{'':>3}{'from':>20}{'n':>3}{'params':>10}  {'module':<45}{'arguments':<30}")
        for i, (sources, n, name, args) in enumerate(self.rows):
            module: Any = parsed[self.position[i]]  # Ultralytics keeps i, f, type and np on the module itself
            if name in ROWS:
                module = self._build_ours(i, [parsed[p].num_features for p in probes[i]] * counts[i])
                module.type = f"yolo_lat.nn.{name}"
                module.np = sum(p.numel() for p in module.parameters())
            module.i, module.f = i, sources
            layers.append(module)
            if verbose:
                LOGGER.info(f"{i:>3}{sources!s:>20}{n:>3}{module.np:10.0f}  {module.type:<45}{args!s:<30}")
        save = {f % i for i, row in enumerate(self.rows) for f in _as_list(row[0]) if f != -1}
        return nn.Sequential(*layers), sorted(save)

    def _remap(self, i: int, sources: Any, absolute: bool = False) -> Any:
        """Translate the 'from' of row i into positions among the expanded rows."""
        if isinstance(sources, list):
            return [self._remap(i, f, absolute) for f in sources]
        if sources == -1 and (i == 0 or not absolute):
            return -1
        return self.position[i + sources if sources < 0 else sources]

    def _count_levels(self, i: int) -> int:
        """Return how many maps the source of row i returns, and note how many row i returns itself."""
        sources, _, name, _ = self.rows[i]
        counts = [self.levels.get(i + f if f < 0 else f, 1) for f in _as_list(sources)]
        if name in ROWS and not ROWS[name].many and len(counts) != 1:
            raise self.error(i, f"takes one feature map, not {len(counts)}; join them with HyperLink or Concat first")
        takes_all = name in ROWS and ROWS[name].many and isinstance(sources, int)
        if max(counts) > 1 and not takes_all:
            raise self.error(i, "reads a row that returns several maps; only a row that takes them all, alone, can")
        if takes_all and (i + sources if sources < 0 else sources) not in self.levels:
            raise self.error(i, f"takes a list of maps, and row {sources} returns one; write [[{sources}], ...]")
        if name in ROWS and ROWS[name].levels:
            self.levels[i] = sum(counts)
        return counts[0] if isinstance(sources, int) else 1

    def _scaled(self, i: int) -> int:
        """Return row i's output width, scaled as Ultralytics scales its own rows."""
        args = self.rows[i][3]
        if not args or not isinstance(args[0], int) or isinstance(args[0], bool) or args[0] < 1:
            raise self.error(i, f"the first argument is the output width, a whole number above 0, not {args[:1]}")
        return make_divisible(min(args[0], self.max_channels) * self.width, 8)

    def _placeholder_width(self, i: int) -> int:
        return 1 if ROWS[self.rows[i][2]].head else self._scaled(i)

    def _parse_stock(self, ch: int) -> list[Any]:
        def parse(rows: list[list[Any]]) -> nn.Sequential:
            return _stock_parse_model({**self.d, "backbone": copy.deepcopy(rows), "head": []}, ch, verbose=False)[0]

        try:
            return list(parse(self.expanded))
        except Exception as error:
            for i, end in enumerate(self.position):  # find the row, which the exception does not name
                try:
                    parse(self.expanded[: end + 1])
                except Exception as cause:
                    raise self.error(
                        i, f"cannot be built with {shown(self.rows[i][3])} ({_line(cause)}); mend its arguments"
                    ) from error
            raise UserError(f"{self.file}: cannot be built ({_line(error)}); correct its keys") from error

    def _build_ours(self, i: int, widths: list[int]) -> nn.Module:
        _, n, name, args = self.rows[i]
        row = ROWS[name]
        try:
            if row.head:
                nc = self.d["nc"] if args[:1] == ["nc"] else args[0]
                return row.module(nc, self.d.get("reg_max", 16), bool(self.d.get("end2end")), tuple(widths))
            fewest = 0 if row.optional else 1
            repeats = [max(round(n * self.depth), fewest) if n > fewest else n] if row.repeats else []
            if not row.repeats and n != 1:
                raise ValueError(f"cannot be repeated {n} times; set repeats to 1")
            *plain, named = args[1:] if isinstance(args[-1], dict) else [*args[1:], {}]
            return row.module(widths if row.many else widths[0], self._scaled(i), *repeats, *plain, **named)
        except Exception as error:  # whatever a row's class makes of arguments that are not its own
            raise self.error(i, f"cannot be built with {shown(args)}: {_line(error)}") from error


def _activation(text: Any, file: str) -> nn.Module:
    """Build the module that the key `activation` of a model YAML names; evaluates nothing."""
    try:
        return tasks._SafeLoad.activation(str(text))
    except TypeError as error:
        raise UserError(
            f"{file}, key activation: '{text}' does not call a module of torch.nn with plain values; write for example "
            "nn.SiLU()"
        ) from error


def _line(error: Exception) -> str:
    """Return the message of an error in one line, or what it is where it says nothing."""
    return " ".join(str(error).split())[:300] or type(error).__name__


def _as_list(sources: Any) -> list[Any]:
    return sources if isinstance(sources, list) else [sources]


def _is_stock(name: Any) -> bool:
    """Whether Ultralytics itself knows a row of that name."""
    for prefix, package in {"nn.": "torch.nn", "torchvision.ops.": "torchvision.ops"}.items():
        if str(name).startswith(prefix):
            return _is_module(getattr(importlib.import_module(package), name.removeprefix(prefix), None))
    return _is_module(getattr(tasks, str(name), None))


def _is_module(value: Any) -> bool:
    return isinstance(value, type) and issubclass(value, torch.nn.Module) and not issubclass(value, tasks.BaseModel)


install()
