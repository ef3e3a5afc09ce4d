"""Train small language models that differ in one thing, and compare how they learn.

    python tools/study_sequence.py run OUT.json [--size small|paper] [--variants A,B] [--seeds 0,1,2] [--device cpu]
    python tools/study_sequence.py join OUT.json PART.json PART.json ...
    python tools/study_sequence.py draw OUT.json FIGURE.png [ROUTING.png]
    python tools/study_sequence.py list

Text is the source code of Python's own standard library, every 20th file held out, cut into words, blanks and single
signs; the commonest pieces are tokens and the rest is spelled in bytes. OUT.json gets one entry a run as soon as it is
finished; runs that it has are not repeated, so that a study may be interrupted, and goes on on a machine with the same
library (the text's hash is compared). Several processes, each with a file of its own, share a GPU well; `join` makes
one record of theirs. Entries hold the loss on held-out text along the way, in nats a token, and at the
end the loss when every prediction is made from its past alone, which is what a model that looks ahead cannot do.
`--commit` is for a copy of the tree without its history.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import re
import shlex
import statistics
import sys
import sysconfig
import time
from collections import Counter
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from yolo_lat.deploy.benchmark.environment import describe_machine, versions
from yolo_lat.ela import KERNELS, routing_table
from yolo_lat.ela.lm import LanguageModel, LMConfig

LEARNING_RATE, WEIGHT_DECAY, WARM_UP, CLIP, BALANCE = 2e-3, 0.1, 0.05, 1.0, 0.01
HELD_OUT_EVERY = 20  # files
EVALUATIONS = 20  # along a run
PREFIXES = 16  # lengths at which every prediction is made from its past alone
PIECE = re.compile(r"[A-Za-z_]+|[0-9]|\n *| +|.", re.DOTALL)
KINDS = {"word": r"[A-Za-z_]+", "digit": r"[0-9]", "line break, indentation": r"\n *| +", "bracket": r"[()\[\]{}]"}
OTHER_KIND = "other sign"


@dataclass(frozen=True)
class Size:
    """The shape of all models, and how long they learn.

    Attributes:
        model: of which variants change one thing.
        length: tokens of a sequence.
        sequences: of the training text.
        epochs: passes over them.
        batch: sequences a step.
        held_out: sequences of the text that is not learned.
    """

    model: LMConfig
    length: int
    sequences: int
    epochs: int
    batch: int
    held_out: int


SIZES = {
    "small": Size(LMConfig(vocabulary=2048, width=128, layers=2, hidden=128), 256, 1024, 4, 16, 64),
    "paper": Size(LMConfig(), 3500, 129, 30, 8, 16),  # section 4
}


def variants(base: LMConfig) -> dict[str, LMConfig]:
    """Return what is compared, by name: a base, and each of its parts exchanged."""
    changed = {
        "ela": base,
        "ela, residual": replace(base, link="residual"),
        "softmax": replace(base, attention="softmax"),
        "softmax, residual": replace(base, attention="softmax", link="residual"),
        "ela, causal lobe": replace(base, lobe="causal"),
        "ela, lobe that sees ahead": replace(base, lobe="bidirectional"),
        "ela, inner bias": replace(base, bias="inner"),
        "ela, no bias": replace(base, bias=None),
    }
    return changed | {f"ela, {name}": replace(base, attention=name) for name in KERNELS if name != base.attention}


@dataclass(frozen=True)
class Text:
    """Tokens to learn from and tokens held out, (sequences, length) int64 each, and what tokens are written like."""

    learned: Tensor
    held_out: Tensor
    pieces: list[str]
    about: dict[str, Any]


def read_text(size: Size) -> Text:
    """Cut the standard library into sequences.

    Raises:
        ValueError: the library has too little text for a study of this size.
    """
    root = Path(sysconfig.get_path("stdlib"))
    skipped = {"site-packages", "dist-packages", "test", "tests", "idlelib"}
    files = [file for file in sorted(root.rglob("*.py")) if not skipped & set(file.relative_to(root).parts)]
    texts = [file.read_text(encoding="utf-8", errors="replace") for file in files]
    held = [i % HELD_OUT_EVERY == HELD_OUT_EVERY // 2 for i in range(len(files))]
    sides = ["".join(text for text, out in zip(texts, held, strict=True) if out == side) for side in (False, True)]
    counts = Counter(PIECE.findall(sides[0]))
    pieces = [f"<{i}>" for i in range(256)] + [p for p, _ in counts.most_common(size.model.vocabulary - 256)]
    numbers = {piece: number for number, piece in enumerate(pieces) if number >= 256}
    cut = []
    for side, wanted in zip(sides, (size.sequences, size.held_out), strict=True):
        tokens: list[int] = []
        for piece in PIECE.findall(side):
            tokens += [numbers[piece]] if piece in numbers else piece.encode()
        found = len(tokens) // (size.length + 1)
        if found < wanted:
            raise ValueError(f"{root} has {found} sequences of {size.length + 1} tokens, and the study needs {wanted}")
        places = np.linspace(0, found - 1, wanted).round().astype(int)  # from all of the text
        cut.append(torch.tensor(tokens[: found * (size.length + 1)]).reshape(found, -1)[places])
    about = {
        "from": f"the standard library of Python {sys.version.split()[0]}",
        "files": len(files),
        "characters": [len(side) for side in sides],
        "sha256": hashlib.sha256(torch.cat([x.flatten() for x in cut]).numpy().tobytes()).hexdigest(),
    }
    return Text(*cut, pieces, about)


def train(config: LMConfig, size: Size, text: Text, seed: int, device: str, progress: Progress) -> dict[str, Any]:
    """Train one model and return its entry."""
    torch.manual_seed(seed)
    model = LanguageModel(config).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), LEARNING_RATE, (0.9, 0.95), weight_decay=WEIGHT_DECAY)
    order = np.random.default_rng(seed)
    batches = math.ceil(size.sequences / size.batch)
    steps, done = size.epochs * batches, 0
    half = torch.autocast(device, torch.bfloat16, enabled=device != "cpu")
    curve, began = [], time.perf_counter()
    task = progress.add_task(f"seed {seed}", total=steps)
    for _ in range(size.epochs):
        for rows in np.array_split(order.permutation(size.sequences), batches):
            share = done / steps
            rate = min(share / WARM_UP, 0.55 + 0.45 * math.cos(math.pi * share))
            for group in optimizer.param_groups:
                group["lr"] = LEARNING_RATE * max(rate, 1 / steps)
            tokens = text.learned[rows].to(device)
            with half:
                output = model(tokens[:, :-1])
                loss = F.cross_entropy(output.logits.flatten(0, 1).float(), tokens[:, 1:].flatten())
            optimizer.zero_grad()
            (loss + BALANCE * output.balance).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
            optimizer.step()
            done += 1
            if done % max(steps // EVALUATIONS, 1) == 0 or done == steps:
                with half:
                    curve.append([done * size.batch * size.length, held_out_loss(model, text.held_out, size, device)])
                progress.update(task, description=f"seed {seed}, held-out loss {curve[-1][1]:.3f}")
            progress.advance(task)
    seconds = time.perf_counter() - began
    progress.remove_task(task)
    with half:
        alone = past_alone(model, text.held_out, device)
        routed = routing(model, text, device)
    return {
        "seed": seed,
        "parameters": sum(p.numel() for p in model.parameters()),
        "seconds": round(seconds, 1),
        "curve": curve,
        "held_out_loss": curve[-1][1],
        **alone,
        "routing": routed,
    }


@torch.no_grad()
def held_out_loss(model: LanguageModel, tokens: Tensor, size: Size, device: str) -> float:
    """Return the mean loss, nats a token, of all positions predicted at once."""
    losses = []
    for rows in tokens.split(size.batch):
        rows = rows.to(device)
        logits = model(rows[:, :-1]).logits.flatten(0, 1).float()
        losses.append(F.cross_entropy(logits, rows[:, 1:].flatten(), reduction="none"))
    return float(torch.cat(losses).mean())


@torch.no_grad()
def past_alone(model: LanguageModel, tokens: Tensor, device: str, sequences: int = 16) -> dict[str, float]:
    """Return the loss of the same predictions made at once, and each from a text that ends before what is predicted."""
    tokens = tokens[:sequences].to(device)
    ends = np.linspace(tokens.shape[1] // PREFIXES, tokens.shape[1] - 1, PREFIXES).astype(int)
    all_at_once = model(tokens[:, :-1]).logits.float()
    together, apart = [], []
    for end in ends:
        logits = model(tokens[:, :end]).logits[:, -1].float()
        apart.append(F.cross_entropy(logits, tokens[:, end]))
        together.append(F.cross_entropy(all_at_once[:, end - 1], tokens[:, end]))
    return {
        "loss_at_once": float(torch.stack(together).mean()),
        "loss_from_the_past_alone": float(torch.stack(apart).mean()),
    }


@torch.no_grad()
def routing(model: LanguageModel, text: Text, device: str) -> dict[str, Any]:
    """Return for each layer the share of every kind of token that goes to each expert."""
    kinds = [*KINDS, OTHER_KIND]
    of_piece = [next((n for n, k in enumerate(KINDS.values()) if re.fullmatch(k, p)), len(KINDS)) for p in text.pieces]
    tokens = text.held_out[:8, :-1].to(device)
    groups = torch.tensor(of_piece, device=device)[tokens.flatten()]
    layers = [routing_table(layer, groups, len(kinds)).tolist() for layer in model(tokens).routing]
    return {"kinds": kinds, "layers": [[[round(x, 4) for x in row] for row in layer] for layer in layers]}


def run(args: argparse.Namespace) -> None:
    """Train what OUT.json has not, and write it after every run."""
    size, text = SIZES[args.size], read_text(SIZES[args.size])
    known = variants(size.model)
    names = args.variants.split(";") if args.variants else list(known)
    if unknown := [name for name in names if name not in known]:
        raise ValueError(f"there is no variant '{unknown[0]}'; `list` shows those there are")
    rest = (f" --variants {shlex.quote(args.variants)}" if args.variants else "") + f" --device {args.device}"
    record = {
        "command": f"python tools/study_sequence.py run {args.out.name} --size {args.size} --seeds {args.seeds}{rest}",
        "machine": describe_machine("cpu" if args.device == "cpu" else "cuda:0", torch.get_num_threads()),
        "versions": versions(args.commit),
        "text": text.about,
        "size": asdict(size),
        "optimizer": {"name": "AdamW", "lr": LEARNING_RATE, "weight_decay": WEIGHT_DECAY, "clip": CLIP},
        "balance_weight": BALANCE,
        "runs": [],
    }
    if args.out.is_file():
        earlier = json.loads(args.out.read_text())
        if [earlier["text"], earlier["size"]] != json.loads(json.dumps([text.about, asdict(size)])):
            raise ValueError(f"{args.out} holds runs on another text or of another size; give a new file")
        record["runs"] = earlier["runs"]
    finished = {(entry["variant"], entry["seed"]) for entry in record["runs"]}
    jobs = [(name, seed) for seed in map(int, args.seeds.split(",")) for name in names if (name, seed) not in finished]
    with Progress(console=Console(stderr=True)) as progress:
        whole = progress.add_task("runs", total=len(jobs))
        for name, seed in jobs:
            progress.update(whole, description=name)
            entry = train(known[name], size, text, seed, args.device, progress)
            record["runs"].append({"variant": name, **entry})
            part = args.out.with_name(args.out.name + ".part")
            part.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
            part.replace(args.out)
            progress.advance(whole)
    Console().print(table(record))


def join(args: argparse.Namespace) -> None:
    """Write the runs of several records of the same study into one, by variant and seed, each with its commit."""
    parts = [json.loads(file.read_text(encoding="utf-8")) for file in args.parts]
    for part in parts:
        commit = part["versions"].pop("commit", None)
        part["runs"] = [{"commit": commit} | run for run in part["runs"]]
    record = parts[0]
    for file, part in zip(args.parts, parts, strict=True):
        if differing := [key for key in ("text", "size", "optimizer", "versions") if part[key] != record[key]]:
            raise ValueError(f"{file} differs from {args.parts[0]} in {differing[0]}; join records of one study")
    order = list(variants(SIZES["paper"].model))
    runs = [run for part in parts for run in part["runs"]]
    record["runs"] = sorted(runs, key=lambda run: (run["seed"], order.index(run["variant"])))
    if len({(run["variant"], run["seed"]) for run in runs}) < len(runs):
        raise ValueError(f"{args.parts[0]} and the others hold a run twice; give each once")
    record["command"] = "; ".join(part["command"] for part in parts)
    args.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    Console().print(table(record))


def table(record: dict[str, Any]) -> Table:
    """Return mean and standard deviation over seeds of every variant."""
    shown = Table("variant", "parameters", "seeds", "held-out loss", "from the past alone", "tokens to the base's loss")
    rows = grouped(record)
    goal = mean_curve(rows["ela, residual"])[-1][1] if "ela, residual" in rows else None
    for name, entries in rows.items():
        losses, honest = ([e[key] for e in entries] for key in ("held_out_loss", "loss_from_the_past_alone"))
        reached = next((n for n, loss in mean_curve(entries) if goal is not None and loss <= goal), None)
        shown.add_row(
            name,
            f"{entries[0]['parameters'] / 1e6:.2f} M",
            str(len(entries)),
            spread(losses),
            spread(honest),
            "not reached" if reached is None else f"{reached / 1e6:.2f} M",
        )
    return shown


def grouped(record: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Return the entries of every variant."""
    rows: dict[str, list[dict[str, Any]]] = {}
    for entry in record["runs"]:
        rows.setdefault(entry["variant"], []).append(entry)
    return rows


def spread(values: list[float]) -> str:
    """Write mean and standard deviation."""
    return f"{statistics.mean(values):.3f}" + (f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else "")


def mean_curve(entries: list[dict[str, Any]]) -> list[tuple[int, float]]:
    """Return (tokens, loss) with the mean over seeds."""
    curves = [entry["curve"] for entry in entries]
    return [(points[0][0], statistics.mean(loss for _, loss in points)) for points in zip(*curves, strict=True)]


def draw(args: argparse.Namespace) -> None:
    """Draw how the loss falls, and where tokens go."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    record = json.loads(args.out.read_text())
    rows = grouped(record)
    figure, panel = plt.subplots(figsize=(9, 5.5), layout="constrained")
    for number, (name, entries) in enumerate(rows.items()):
        tokens, losses = zip(*mean_curve(entries), strict=True)
        panel.plot(np.array(tokens) / 1e6, losses, ("-", "--", ":")[number // 10 % 3], label=name, color=f"C{number}")
    panel.set(xlabel="tokens learned from, millions", ylabel="loss on held-out text, nats a token")
    panel.legend(fontsize=8)
    figure.savefig(args.figure, dpi=110)
    if args.routing:
        layers = rows["ela"][0]["routing"]
        figure, panels = plt.subplots(1, len(layers["layers"]), figsize=(3.2 * len(layers["layers"]), 2.6), sharey=True)
        for number, (panel, shares) in enumerate(zip(np.atleast_1d(panels), layers["layers"], strict=True)):
            image = panel.imshow(shares, vmin=0, vmax=1, cmap="viridis", aspect="auto")
            panel.set(title=f"layer {number + 1}", xlabel="expert", xticks=range(len(shares[0])))
            panel.set_yticks(range(len(layers["kinds"])), layers["kinds"])
        figure.colorbar(image, ax=panels, label="share of tokens")
        figure.savefig(args.routing, dpi=110, bbox_inches="tight")


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    modes = parser.add_subparsers(dest="mode", required=True)
    running = modes.add_parser("run")
    running.add_argument("out", type=Path)
    running.add_argument("--size", choices=SIZES, default="small")
    running.add_argument("--variants", help="names that `list` shows, between semicolons; all unless given")
    running.add_argument("--seeds", default="0,1,2")
    running.add_argument("--device", default="cpu")
    running.add_argument("--commit")
    joining = modes.add_parser("join")
    joining.add_argument("out", type=Path)
    joining.add_argument("parts", type=Path, nargs="+")
    drawing = modes.add_parser("draw")
    drawing.add_argument("out", type=Path)
    drawing.add_argument("figure", type=Path)
    drawing.add_argument("routing", type=Path, nargs="?")
    modes.add_parser("list")
    args = parser.parse_args()
    if args.mode == "list":
        print("\n".join(variants(LMConfig())))
        return
    try:
        {"run": run, "join": join, "draw": draw}[args.mode](args)
    except ValueError as error:
        print(f"study_sequence.py: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
