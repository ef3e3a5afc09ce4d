"""Write variants of yolo-lat-p, each one change away from it, to see what the change costs.

    python tools/p_variants.py FOLDER

prints the `models=` of a benchmark of them all:

    yolo-lat benchmark models=$(python tools/p_variants.py variants) boundary=forward reference=p
"""

from __future__ import annotations

import sys
from pathlib import Path

import yaml

SOURCE = Path(__file__).resolve().parent.parent / "cfg/models/yolo-lat.yaml"
STEM, STRIDE_4, P3, P4, NECK_P3 = 0, 1, 3, 5, 14  # the stem, and rows of LocalBlocks


def main() -> None:
    """Write the files."""
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    names = []
    for name, content in variants().items():
        path = folder / f"{name}.yaml"
        path.write_text(yaml.safe_dump(content, sort_keys=False, default_flow_style=None), encoding="utf-8")
        names.append(f"{name}={path}")
    print(",".join(names))


def variants() -> dict[str, dict]:
    """Return the YAML of each variant, by name."""
    return {
        "p": source(),
        "patch-stem": edited({STEM: [-1, 1, "Conv", [128, 4, 4, 0]]}),
        "dense-p3": edited({row: [-1, 3, "LocalBlock", [256, 3, False]] for row in (P3, NECK_P3)}),
        "stride-4-block": edited({STRIDE_4: [-1, 2, "LocalBlock", [128, 3]]}),
        "no-p4-block": edited({P4: [-1, 1, "LocalBlock", [384, 5]]}),
        "two-p4-blocks": edited({P4: [-1, 6, "LocalBlock", [384, 5]]}),
        "attention-at-p3": all_levels(),
        "no-attention": no_attention(),
    }


def source() -> dict:
    """Return yolo-lat.yaml with p as its only scale."""
    content = yaml.safe_load(SOURCE.read_text(encoding="utf-8"))
    return {**content, "scales": {"p": content["scales"]["p"]}}


def rows(content: dict) -> list[list]:
    """Return all rows, backbone and head."""
    return [*content["backbone"], *content["head"]]


def with_rows(content: dict, new: list[list]) -> dict:
    """Return the YAML with other rows; the backbone keeps its length."""
    length = len(content["backbone"])
    return {**content, "backbone": new[:length], "head": new[length:]}


def edited(changes: dict[int, list]) -> dict:
    """Return the YAML with some rows replaced."""
    content = source()
    return with_rows(content, [changes.get(i, row) for i, row in enumerate(rows(content))])


def no_attention() -> dict:
    """Return the YAML in which P4 and P5 go on as they are."""
    return edited({i: [level, 1, "nn.Identity", []] for i, level in ((10, 9), (11, 9), (12, 8))})


def all_levels() -> dict:
    """Return the YAML in which P3 joins before attention and queries the state too."""
    content = source()
    neck = [
        *rows(content)[:10],
        [[3, 9], 1, "HyperLink", [256, [1, 2]]],
        [-1, 2, "LocalBlock", [256, 3]],
        [[11, 9, 8], 1, "CrossScaleELA", [256, 4, 8, [1, 2]]],
        [-1, 1, "LatDetect", ["nc"]],
    ]
    return with_rows(content, neck)


if __name__ == "__main__":
    main()
