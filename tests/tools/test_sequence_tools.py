"""The studies of sequences run, write what they found, and go on where they stopped."""

from __future__ import annotations

import asyncio
import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

TOOLS = Path(__file__).parents[2] / "tools"
sys.path.insert(0, str(TOOLS))

import bench_attention  # noqa: E402
import study_sequence  # noqa: E402
from study_sequence import Size  # noqa: E402

from yolo_lat.ela import causal_attention  # noqa: E402
from yolo_lat.ela.lm import LMConfig  # noqa: E402

TINY = Size(LMConfig(vocabulary=300, width=16, layers=1, heads=2, hidden=16), 32, 8, 2, 4, 4)


@pytest.fixture
def study(monkeypatch, tmp_path):
    """A study of almost nothing, on the text of a small library; returns what runs it and reads what it wrote."""
    monkeypatch.setattr(study_sequence.sysconfig, "get_path", lambda name: Path(asyncio.__file__).parent)
    monkeypatch.setitem(study_sequence.SIZES, "small", TINY)
    monkeypatch.setattr(study_sequence, "PREFIXES", 2)

    def run(*words: str, out: Path = tmp_path / "study.json") -> dict:
        monkeypatch.setattr(sys, "argv", ["study_sequence.py", "run", str(out), *words])
        study_sequence.main()
        return json.loads(out.read_text())

    return run


def test_a_study_goes_on_where_it_stopped_and_is_drawn(study, tmp_path, monkeypatch, capsys):
    first = study("--variants", "ela;ela, lobe that sees ahead", "--seeds", "0")
    record = study("--variants", "ela;ela, residual", "--seeds", "0,1")
    keys = [(entry["variant"], entry["seed"]) for entry in record["runs"]]
    assert sorted(keys) == sorted({*keys}), "a run was repeated"
    assert len(keys) == 5
    assert record["runs"][:2] == first["runs"]
    for entry in record["runs"]:
        assert entry["curve"][-1] == [2 * 8 * 32, entry["held_out_loss"]]
        assert 0 < entry["held_out_loss"] < 7
        assert all(sum(row) == pytest.approx(1, abs=0.01) for row in entry["routing"]["layers"][0] if any(row))
        same = entry["variant"] != "ela, lobe that sees ahead"
        assert (entry["loss_at_once"] == pytest.approx(entry["loss_from_the_past_alone"], abs=1e-5)) == same
    monkeypatch.setattr(
        sys, "argv", ["x", "draw", str(tmp_path / "study.json"), str(tmp_path / "a.png"), str(tmp_path / "b.png")]
    )
    study_sequence.main()
    assert min((tmp_path / name).stat().st_size for name in ("a.png", "b.png")) > 5000


def test_records_of_several_processes_are_joined(study, tmp_path, monkeypatch, capsys):
    parts = [tmp_path / f"{number}.json" for number in range(2)]
    for part, words in zip(parts, (["--variants", "softmax"], ["--variants", "ela;ela, residual"]), strict=True):
        study(*words, "--seeds", "0", out=part)
    out = tmp_path / "all.json"
    monkeypatch.setattr(sys, "argv", ["study_sequence.py", "join", str(out), *map(str, parts)])
    study_sequence.main()
    runs = json.loads(out.read_text())["runs"]
    assert [run["variant"] for run in runs] == ["ela", "ela, residual", "softmax"]
    part = json.loads(parts[0].read_text())
    assert runs[2] == {"commit": part["versions"].get("commit"), **part["runs"][0]}
    monkeypatch.setattr(sys, "argv", ["study_sequence.py", "join", str(out), str(parts[0]), str(parts[0])])
    with pytest.raises(SystemExit):
        study_sequence.main()
    assert "hold a run twice" in capsys.readouterr().err


def test_mistakes_of_a_study_take_a_line(study, monkeypatch, capsys):
    study("--variants", "ela", "--seeds", "0")
    for size, words, message in (
        (TINY, ("--variants", "elu"), "there is no variant 'elu'; `list` shows those there are"),
        (replace(TINY, epochs=3), (), "holds runs on another text or of another size; give a new file"),
        (replace(TINY, sequences=10**6), (), "sequences of 33 tokens, and the study needs 1000000"),
    ):
        monkeypatch.setitem(study_sequence.SIZES, "small", size)
        with pytest.raises(SystemExit) as ended:
            study(*words)
        assert ended.value.code == 2
        assert message in capsys.readouterr().err


def test_a_benchmark_of_attention_on_the_cpu(tmp_path, monkeypatch):
    out, figure = tmp_path / "attention.json", tmp_path / "a.png"
    options = ["--device", "cpu", "--lengths", "64,128", "--width", "8", "--features", "16", "--round-seconds", "0.01"]
    for words in ([str(out), *options, "--threads", "1"], ["draw", str(out), str(figure)]):
        monkeypatch.setattr(sys, "argv", ["bench_attention.py", *words])
        bench_attention.main()
    assert figure.stat().st_size > 5000
    record = json.loads(out.read_text())
    found = {(e["method"], e["pass"], e["length"]): e for e in record["results"]}
    assert len(found) == len(record["results"]) == 3 * 3 * 2
    for (method, name, length), entry in found.items():
        assert entry["range"][0] <= entry["median"] <= entry["range"][1]
        if name == "decode" and method == "softmax":
            assert entry["kept_bytes"] == 2 * 4 * length * 8 * 4
        elif name == "decode" and method == "ela":
            assert entry["kept_bytes"] == 4 * (8 * 8 + 2 * 8) * 4


def test_performer_comes_near_softmax_with_many_features():
    generator = torch.Generator().manual_seed(0)
    q, k, v = (0.5 * torch.randn(1, 1, 50, 8, generator=generator) for _ in range(3))
    exact = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
    errors = []
    for features in (16, 4096):
        kernel = bench_attention.FavorPlus(8, features, torch.device("cpu"))
        errors.append(float((causal_attention(q, k, v, kernel)[0] - exact).norm() / exact.norm()))
    assert errors[1] < 0.05 < errors[0]


@pytest.mark.parametrize(("record", "variants"), [("sequence-small-cpu", 11), ("sequence-paper-h200", 10)])
def test_the_guides_tables_are_those_of_the_records(record, variants):
    root = TOOLS.parent
    record = json.loads((root / f"docs/results/{record}.json").read_text())
    guide = (root / "docs/sequence.md").read_text()
    rows = study_sequence.grouped(record)
    assert len(rows) == variants
    assert rows.keys() <= study_sequence.variants(LMConfig()).keys()
    for name, entries in rows.items():
        losses = [
            study_sequence.spread([entry[key] for entry in entries])
            for key in ("held_out_loss", "loss_at_once", "loss_from_the_past_alone")
        ]
        assert f"| {name} | {entries[0]['parameters'] / 1e6:.2f} M | {' | '.join(losses)} |" in guide


@pytest.mark.parametrize("name", ["attention-cpu", "attention-h200"])
def test_the_guides_speeds_are_those_of_the_record(name):
    root = TOOLS.parent
    record = json.loads((root / f"docs/results/{name}.json").read_text())
    guide = (root / "docs/sequence.md").read_text()
    times = {(e["method"], e["length"], e["pass"]): e for e in record["results"] if "median" in e}
    lengths = {entry["length"] for entry in record["results"]}
    assert len(lengths) == 5
    for length in lengths:
        cells = ["softmax takes over 20 s"] * 3
        for number, of_pass in enumerate(bench_attention.PASSES):
            if "softmax_over_this" in (own := times["ela", length, of_pass]):
                cells[number] = f"{own['softmax_over_this']['median']:.1f}"
        for of_pass in bench_attention.PASSES:
            if other := times.get(("flash-linear-attention", length, of_pass)):
                cells.append(f"{other['median'] / times['ela', length, of_pass]['median']:.1f}")
        assert f"| {length:,} | {' | '.join(cells)} |\n" in guide
