"""What is printed of the registry: every entry, what of it is here, and what would be fetched."""

import pytest
from rich.console import Console

from yolo_lat.data.listing import describe_entry, registry_table
from yolo_lat.data.registry import registry
from yolo_lat.errors import UserError


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("YOLO_LAT_DATASETS", str(tmp_path))
    return tmp_path


def printed(renderable) -> str:
    console = Console(width=300, record=True, quiet=True)
    with console.capture() as capture:
        console.quiet = False
        console.print(renderable)
    return capture.get()


def row(name: str) -> list[str]:
    """The cells of a row, each in one line."""
    lines = printed(registry_table()).splitlines()
    cells = [[cell.strip() for cell in line.split("│")[1:-1]] for line in lines if "│" in line]
    start = next(i for i, row in enumerate(cells) if row[0] == name)
    end = next((i for i, row in enumerate(cells) if i > start and row[0]), len(cells))
    return [" ".join(filter(None, column)) for column in zip(*cells[start:end], strict=True)]


def test_all_data_sets_are_listed_and_none_is_made(folder):
    text = printed(registry_table())
    assert str(folder) in text
    for name, entry in registry().items():
        assert row(name)[:3] == [name, f"{entry['about']} licence: {entry['licence']}", entry["size"]]
    assert not list(folder.iterdir())


def test_splits_whose_files_are_all_here(folder):
    assert row("coco")[3] == row("coco-subset")[3] == "no"
    assert row("shapes")[3] == "no, made on first use"
    (folder / "coco/images/val2017").mkdir(parents=True)
    assert row("coco")[3] == "no"
    (folder / "coco/annotations").mkdir()
    (folder / "coco/annotations/instances_val2017.json").write_text("{}")
    assert row("coco")[3] == row("coco-subset")[3] == "val"
    (folder / "shapes").mkdir()
    (folder / "shapes/data.yaml").write_text("")
    assert row("shapes")[3] == "train, val"


def test_one_data_set_in_full(folder):
    (folder / "coco/images/val2017").mkdir(parents=True)
    text = printed(describe_entry("coco"))
    assert "Expected" in text
    lines = {line.split("│")[1].strip(): line.split("│")[2].strip() for line in text.splitlines() if "│" in line}
    assert lines[f"{folder}/coco/images/val2017"] == "yes"
    assert lines[f"{folder}/coco/annotations/instances_val2017.json"] == "no"
    assert f"http://images.cocodataset.org/zips/val2017.zip into {folder}/coco/images" in text
    for key in ("about", "licence", "size", "source"):
        assert registry()["coco"][key] in text
    assert "train=10000, val=1000, seed=0" in printed(describe_entry("coco-subset"))
    assert "Nothing to fetch: it is drawn on first use" in printed(describe_entry("shapes"))


def test_own_data_sets_are_listed_with_what_stands_in_them(folder):
    entry = (
        "own: {about: '[bold]ours[/bold]', licence: none, size: 1 GB, path: mine, train: t, val: [v, w], names: [a]}\n"
    )
    (folder / "datasets.yaml").write_text(entry)
    assert row("own")[1] == "[bold]ours[/bold] licence: none"
    for name in "tv":
        (folder / "mine" / name).mkdir(parents=True)
    assert row("own")[3] == "train"
    text = printed(describe_entry("own"))
    assert f"{folder}/datasets.yaml" in text
    assert "Nothing to fetch: put it there yourself." in text
    (folder / "datasets.yaml").write_text(entry.replace("names", "download: http://x.org/mine.zip, names"))
    assert f"http://x.org/mine.zip into {folder}" in printed(describe_entry("own"))


def test_an_unknown_name_is_refused(folder):
    with pytest.raises(UserError, match=r"name=coca: no data set of that name; did you mean 'coco'\?"):
        describe_entry("coca")
