"""Ship the weights of a finished training: measure them, then write the file, its model card and its registry entry.

    python tools/add_weights.py RUN NAME DATA.yaml --data-name voc12 --about ABOUT.yaml [--default] [--replace]

RUN is the folder of a training, with args.yaml and weights/best.safetensors, and where they are there results.csv and
metrics.json; that of a study is STATE/KEY/train. The twelve numbers of card and registry are what `yolo-lat val` finds
here and now on DATA's validation split at the size of the training; if RUN's metrics.json says another AP, by more than
0.005, nothing is written. ABOUT.yaml (tools/cards has those of the weights that ship) says what no file knows:

    data: what the images are, where they come from, and under which licence
    note: one sentence for `yolo-lat info weights`
    limits: [sentences, what the weights are not good for]
    commit: of the code that trained; left out if a study noted it, or nobody did
    hardware: what it was trained on

`--latency RECORD.json` puts what a benchmark measured for the same model on the card. `--default` makes it the model of
`yolo-lat predict` without one. Everything is prepared in a folder beside and moved into place at the end, the registry
last, so that no entry names a file that is not there.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml
from ultralytics.utils import DEFAULT_CFG_DICT

from yolo_lat import YOLOLAT, __version__
from yolo_lat.data.reader import read_split
from yolo_lat.data.registry import load_dataset
from yolo_lat.engine.recipe import read_recipe
from yolo_lat.engine.table import count_deployed
from yolo_lat.errors import UserError
from yolo_lat.nn import load_model_yaml, model_names
from yolo_lat.pretrained import REGISTRY, read_registry, sha256

FOLDER = Path(__file__).resolve().parent.parent / "weights"
LARGEST_MB = 25
SAME_AP = 0.005
# Keys that a card has elsewhere, or that say where and not how.
ELSEWHERE = {
    *("mode", "model", "data", "cfg", "device", "workers"),
    *("project", "name", "exist_ok", "save_dir", "plots", "verbose"),
}
THE_MODEL = ("backbone", "head", "scale", "reg_max", "activation")
RECIPE = ("cfg", "epochs", "imgsz", "batch", "optimizer", "lr0", "seed", "pretrained")


def main() -> None:
    """Check, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("name")
    parser.add_argument("data", type=Path)
    parser.add_argument("--data-name", required=True, help="the data in a word, as in NAME")
    parser.add_argument("--about", type=Path, required=True)
    parser.add_argument("--latency", type=Path)
    parser.add_argument("--default", action="store_true")
    parser.add_argument("--replace", action="store_true")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--folder", type=Path, default=FOLDER)
    given = parser.parse_args()
    try:
        add(given)
    except UserError as error:
        print(f"add_weights: {error}", file=sys.stderr)
        sys.exit(2)


def add(given: argparse.Namespace) -> None:
    """Add the weights of one run.

    Raises:
        UserError: a run, name or file that cannot be used, or numbers that are not those of the run.
    """
    registry = read_registry(given.folder)
    if given.name in registry["weights"] and not given.replace:
        raise UserError(f"{given.name} is in {given.folder / REGISTRY} already; add --replace, or choose another name")
    weights = _existing(given.run / "weights/best.safetensors")
    if weights.stat().st_size > LARGEST_MB * 1e6:
        raise UserError(f"{weights}: {weights.stat().st_size / 1e6:.1f} MB, and at most {LARGEST_MB} MB ship")
    args = yaml.safe_load(_existing(given.run / "args.yaml").read_text(encoding="utf-8"))
    about = noted_commit(given.run) | read_about(given.about)
    model = YOLOLAT(weights)
    coco = measure(model, given.data, args["imgsz"], given.device)
    check_against(given.run, coco)
    parameters, gflops = count_deployed(model.model, args["imgsz"])
    facts = {
        "file": f"{given.name}.safetensors",
        "sha256": sha256(weights),
        "model": model_of(model, weights),
        "data": given.data_name,
        "classes": [model.names[i] for i in sorted(model.names)],
        "imgsz": args["imgsz"],
        "epochs": epochs_of(given.run, args),
        "seed": args["seed"],
        "parameters": parameters,
        "coco": coco,
        "note": about["note"],
    }
    more = {"gflops": gflops, "mb": weights.stat().st_size / 1e6, "splits": split_sizes(given.data)}
    latency = latency_lines(given.latency, facts["model"])
    default = given.name if given.default or registry["default"] is None else registry["default"]
    entries = {**registry["weights"], given.name: facts}
    content = json.dumps({"default": default, "weights": dict(sorted(entries.items()))}, indent=1) + "\n"
    card = make_card(given.name, facts, more, args, about, latency)
    given.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=given.folder, prefix=".adding-") as work:
        written = {facts["file"]: weights.read_bytes(), f"{given.name}.md": card.encode(), REGISTRY: content.encode()}
        for name, data in written.items():
            (Path(work) / name).write_bytes(data)
        for name in written:
            (Path(work) / name).replace(given.folder / name)
    print(f"{given.name}: AP {coco['AP']:.4f}, AP50 {coco['AP50']:.4f}; {given.folder / facts['file']}")


def model_of(model: YOLOLAT, weights: Path) -> str:
    """Return the name of the shipped model that weights belong to, which has its rows, whatever its file was called.

    Raises:
        UserError: they belong to another, such as a changed one of a study.
    """
    content = model.model.yaml
    for name in model_names():
        origin = load_model_yaml(name)
        if all(origin.get(key) == content.get(key) for key in THE_MODEL) and in_scale(origin) == in_scale(content):
            return name
    raise UserError(f"{weights}: belongs to {content['yaml_file']}, which does not ship; add that to cfg/models first")


def in_scale(content: dict[str, Any]) -> list[float] | None:
    """Return depth, width and channels of a model YAML's own scale, None where it has no scales."""
    return (content.get("scales") or {}).get(content["scale"])


def started_from(args: dict[str, Any]) -> str:
    """Return in words what the training began with."""
    given = [args["model"]] if Path(str(args["model"])).suffix in (".pt", ".safetensors") else []
    given += [args["pretrained"]] if isinstance(args.get("pretrained"), str) else []
    return f"From {Path(str(given[-1])).name}" if given else "From scratch"


def read_about(file: Path) -> dict[str, Any]:
    """Return what no file of a run knows.

    Raises:
        UserError: a key is missing or unknown.
    """
    about = yaml.safe_load(_existing(file).read_text(encoding="utf-8"))
    needed, optional = {"data", "note", "limits"}, {"commit", "hardware"}
    if not isinstance(about, dict) or not needed <= about.keys() <= needed | optional:
        raise UserError(f"{file}: needs the keys data, note and limits, and may have commit and hardware; correct it")
    return about


def noted_commit(run: Path) -> dict[str, Any]:
    """Return `commit` as study.py noted it beside a finished run, or nothing."""
    file = run.parent / "done.json"
    commit = json.loads(file.read_text(encoding="utf-8")).get("commit") if file.is_file() else None
    return {"commit": commit} if commit else {}


def measure(model: YOLOLAT, data: Path, imgsz: int, device: str) -> dict[str, float]:
    """Return COCO's twelve numbers on the validation split, as `yolo-lat val` finds them."""
    with tempfile.TemporaryDirectory() as work:
        arguments = {"imgsz": imgsz, "batch": 16, "device": device, "plots": False, "project": work, "workers": 1}
        return {name: float(value) for name, value in model.val(data=str(data), **arguments).coco.items()}


def check_against(run: Path, coco: dict[str, float]) -> None:
    """Raise UserError if the run itself found another AP."""
    file = run / "metrics.json"
    if file.is_file():
        before = json.loads(file.read_text(encoding="utf-8"))["AP"]
        if abs(before - coco["AP"]) > SAME_AP:
            raise UserError(
                f"{file}: says AP {before:.4f}, and val finds {coco['AP']:.4f}; is this the data of the training?"
            )


def epochs_of(run: Path, args: dict[str, Any]) -> int:
    """Return how many epochs were trained: rows of results.csv, or what args.yaml asked for."""
    file = run / "results.csv"
    return len(file.read_text(encoding="utf-8").splitlines()) - 1 if file.is_file() else int(args["epochs"])


def split_sizes(data: Path) -> dict[str, tuple[int, int]]:
    """Return the number of images and of boxes of both splits."""
    spec = load_dataset(data)
    splits = {split: read_split(spec, split, progress=False).images for split in ("train", "val")}
    return {split: (len(images), sum(len(image.class_ids) for image in images)) for split, images in splits.items()}


def latency_lines(record: Path | None, model: str) -> list[str]:
    """Return a line for each time that a benchmark's record has for a model of that name."""
    if record is None:
        return []
    content = json.loads(_existing(record).read_text(encoding="utf-8"))
    lines = []
    for cell in content["cells"]:
        found = next((r for r in cell["results"] if r["model"] == model and r["median_ms"] is not None), None)
        if found:
            where = f"{cell['boundary']}, {cell['imgsz']} px, batch {cell['batch']}, {cell['precision']}"
            lines.append(f"{where}: {found['median_ms']:.3f} ms on {content['machine']['device']}")
    return lines


def make_card(
    name: str,
    facts: dict[str, Any],
    more: dict[str, Any],
    args: dict[str, Any],
    about: dict[str, Any],
    latency: list[str],
) -> str:
    """Return the model card in Markdown.

    Args:
        name: of the weights.
        facts: their registry entry.
        more: gflops, mb, and images and boxes of the splits.
        args: of the training.
        about: what `read_about` returns.
        latency: lines of a benchmark's record.
    """
    sizes = "; ".join(f"{split}: {images} images, {boxes} boxes" for split, (images, boxes) in more["splits"].items())
    recipe = Path(str(args["cfg"])).stem if args.get("cfg") else "none"
    shown = {key: args[key] for key in RECIPE if key in args} | {"cfg": recipe} | changes(args, recipe)
    lines = [
        f"# {name}",
        "",
        about["note"],
        "",
        "```console",
        f"yolo-lat predict model={name} source=picture.jpg",
        f"yolo-lat val model={name} data={facts['data']}.yaml imgsz={facts['imgsz']}",
        "```",
        "",
        "| | |",
        "|---|---|",
        f"| model | {facts['model']}, {facts['parameters']:,} parameters and {more['gflops']:.2f} GFLOPs at "
        f"{facts['imgsz']} px as deployed |",
        f"| detects | {', '.join(facts['classes'])} |",
        f"| input | {facts['imgsz']} px |",
        f"| file | `{facts['file']}`, {more['mb']:.2f} MB, float16 |",
        f"| SHA-256 | `{facts['sha256']}` |",
        f"| data | {about['data']} {sizes} |",
        "| licence | AGPL-3.0-or-later, as the code |",
        "",
        "## Numbers",
        "",
        "By pycocotools on the validation split, which is also the split that the best epoch was chosen on. Measured "
        f"by `yolo-lat val` when the weights were added, with yolo-lat {__version__}, torch {version('torch')}, "
        f"ultralytics {version('ultralytics')}, pycocotools {version('pycocotools')}.",
        "",
        "| " + " | ".join(facts["coco"]) + " |",
        "|" + "---|" * len(facts["coco"]),
        "| " + " | ".join(f"{value:.4f}" for value in facts["coco"].values()) + " |",
        "",
        "## Training",
        "",
        f"{started_from(args)}, {facts['epochs']} epochs, seed {facts['seed']}, one run. "
        f"Hardware: {about.get('hardware', 'not recorded')}. "
        + (f"Commit: {about['commit']}." if about.get("commit") else "The commit was not recorded."),
        "",
        "`" + " ".join(f"{key}={value}" for key, value in shown.items()) + "`",
        "",
        "## Latency",
        "",
        *([f"- {line}" for line in latency] or ["Not measured for this model."]),
        *(["", "Measured with 80 classes and random weights; the weights do not change it."] if latency else []),
        "",
        "## Limits",
        "",
        *[f"- {limit}" for limit in about["limits"]],
        "",
    ]
    return "\n".join(lines)


def changes(args: dict[str, Any], recipe: str) -> dict[str, Any]:
    """Return the arguments that differ from the recipe that ships under that name, or else from the defaults."""
    file = FOLDER.parent / f"cfg/train/{recipe}.yaml"
    if not file.is_file():
        return {}
    usual = DEFAULT_CFG_DICT | read_recipe(file)
    changed = {key: args[key] for key in args if key in usual and key not in ELSEWHERE and args[key] != usual[key]}
    return changed | {key: args[key] for key in ("cuda_graph", "amp") if key in args}


def _existing(file: Path) -> Path:
    if not file.is_file():
        raise UserError(f"{file}: no such file; give the folder of a finished training, and files that are there")
    return file


if __name__ == "__main__":
    main()
