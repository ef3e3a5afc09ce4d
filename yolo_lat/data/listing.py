"""What `yolo-lat data list` prints: the data sets known by name, and all about one of them."""

from __future__ import annotations

from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from yolo_lat.data.registry import complete, datasets_dir, registry, tree
from yolo_lat.data.spec import SPLITS
from yolo_lat.errors import UserError, nearest


def registry_table() -> Table:
    """Return all data sets known by name: what they are, their licence and size, and which splits are here.

    Raises:
        UserError: a malformed entry of the user's own.
    """
    table = Table(title=f"Data sets by name; they lie under {datasets_dir()}", title_justify="left", show_lines=True)
    table.add_column("name", no_wrap=True)
    table.add_column("about, licence", ratio=1, overflow="fold")
    for column in ("size", "here"):
        table.add_column(column, max_width=12)
    entries = registry()
    for name in entries:
        entry = complete(entries, name)
        about = f"{entry['about']}\nlicence: {entry['licence']}"
        table.add_row(*map(Text, (name, about, str(entry["size"]), _present(entry))))
    return table


def describe_entry(name: str) -> Group:
    """Return all about one data set: its source and licence, the files it expects, and what a download would fetch.

    Raises:
        UserError: there is no data set of that name.
    """
    entries = registry()
    if name not in entries:
        hint = nearest(name, entries) or f"; use one of {', '.join(entries)}"
        raise UserError(f"name={name}: no data set of that name{hint}")
    entry = complete(entries, name)
    facts = Table.grid(padding=(0, 2))
    keys: tuple[str, ...] = ("about", "licence", "size", "source")
    texts = {key: str(entry[key]) for key in keys if key in entry}
    if "subset" in entry:
        texts["by default"] = ", ".join(f"{key}={value}" for key, value in entry["subset"].items())
    texts |= {"folder": str(datasets_dir() / entry["path"]), "listed in": str(entry["file"]), "here": _present(entry)}
    for key, text in texts.items():
        facts.add_row(Text(key), Text(text))
    parts: list[Table | Text] = [Text(name, style="bold"), facts]
    if files := tree(entry):
        expected = Table("file or folder", "here", title="Expected", title_justify="left")
        for file in files:
            expected.add_row(Text(str(datasets_dir() / file)), "yes" if (datasets_dir() / file).exists() else "no")
        parts.append(expected)
    parts.append(Text("\n".join(_fetched(entry))))
    return Group(*parts)


def _present(entry: dict[str, Any]) -> str:
    """Return which splits have all of their files here."""
    root = datasets_dir() / str(entry["path"])
    if "generate" in entry:
        return "train, val" if (root / "data.yaml").is_file() else "no, made on first use"
    there = []
    for split in SPLITS:
        files = tree({"path": entry["path"], split: entry.get(split)})
        files += [f"{entry['path']}/{file}" for key, file in (entry.get("coco_json") or {}).items() if key == split]
        if files and all((datasets_dir() / file).exists() for file in files):
            there.append(split)
    return ", ".join(there) or "no"


def _fetched(entry: dict[str, Any]) -> list[str]:
    """Return the lines about what `download=true` does."""
    if "generate" in entry:
        return ["Nothing to fetch: it is drawn on first use."]
    if not entry.get("download"):
        return ["Nothing to fetch: put it there yourself."]
    archives = entry["download"] if isinstance(entry["download"], list) else [entry["download"]]
    rows = [archive if isinstance(archive, dict) else {"url": archive, "into": ".."} for archive in archives]
    root = datasets_dir() / str(entry["path"])
    lines = [f"  {row.get('url')} into {(root / str(row.get('into', '.'))).resolve()}" for row in rows]
    return ["download=true fetches", *lines]
