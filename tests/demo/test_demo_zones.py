"""Zone files and what is counted at them."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from yolo_lat.demo.zones import Event, Shape, Zones, read_zones
from yolo_lat.errors import UserError

LINE = "lines:\n- {name: a, from: [0, 1], to: [5, 6]}\n"
GATE = Shape("gate", ((0.5, 0.0), (0.5, 1.0)))
YARD = Shape("yard", ((60, 60), (100, 60), (100, 100), (60, 100)))


def write(tmp_path, text: str) -> str:
    file = tmp_path / "zones.yaml"
    file.write_text(text)
    return str(file)


def test_a_file_is_read(tmp_path):
    text = LINE + "polygons:\n- name: b\n  points: [[0, 0], [0.5, 0], [0.5, 0.25]]\n"
    lines, polygons = read_zones(write(tmp_path, text))
    assert lines == [Shape("a", ((0.0, 1.0), (5.0, 6.0)))]
    assert polygons[0].pixels((200, 100)).tolist() == [[0, 0], [100, 0], [100, 25]]
    assert lines[0].pixels((200, 100)).tolist() == [[0, 1], [5, 6]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds neither lines: nor polygons:; give at least one of them"),
        ("lines: []", "holds no line and no polygon"),
        ("lines: [", "line 1: not valid YAML"),
        ("line: []", "unknown key 'line'; did you mean 'lines'?"),
        ("circles: []", "unknown key 'circles'; use lines and polygons"),
        ("lines: 3", "lines is no list"),
        ("lines: [3]", "lines[0] is no mapping; give name, from, to"),
        ("lines: [{name: a, from: [0, 0]}]", "lines[0] lacks to; give name, from, to"),
        ("lines: [{name: a, form: [0, 0], to: [1, 1]}]", "unknown key 'form' in lines[0]; did you mean 'from'?"),
        ("lines: [{name: a, from: [0, 0], to: 7}]", "lines[0].from, .to is [[0, 0], 7]; give points as [x, y]"),
        ("lines: [{name: a, from: [0, -1], to: [1, 1]}]", "lines[0].from, .to is [[0, -1], [1, 1]]; give points"),
        ("lines: [{name: a, from: [1, 1], to: [1, 1]}]", "lines[0].from, .to is [[1, 1], [1, 1]]; a line needs two"),
        ("polygons: [{name: a, points: [[0, 0], [1, 1]]}]", "polygons[0].points is [[0, 0], [1, 1]]; a line needs"),
        ("polygons: [{name: a, points: [[0, 0], [1, true]]}]", "polygons[0].points is [[0, 0], [1, True]]; give"),
        (LINE + "- {name: a, from: [0, 1], to: [5, 6]}", "the name 'a' is given twice"),
    ],
)
def test_mistakes_name_the_file_and_the_key(tmp_path, text, message):
    file = write(tmp_path, text)
    with pytest.raises(UserError) as caught:
        read_zones(file)
    assert message in str(caught.value)
    assert str(caught.value).startswith(file)


def step(zones: Zones, objects: dict[int, tuple[float, float]], class_id: int = 0, size=(100, 100)) -> list[Event]:
    """Give objects by number, each where the middle of its lower edge is, in 100 px, scaled to the frame's size."""
    corners = np.array([[x - 5, y - 20, x + 5, y] for x, y in objects.values()], np.float32).reshape(-1, 4)
    classes, numbers = np.full(len(corners), class_id), np.array(list(objects), np.int64)
    return zones.update(corners * np.tile(np.array(size) / 100, 2), classes, numbers, size)


def test_in_is_to_the_left_of_the_way_along_the_line():
    zones = Zones([GATE], [], (100, 100))
    events = [event for x in (20, 40, 60, 80, 60, 40, 20) for event in step(zones, {7: (x, 50)})]
    assert events == [Event("gate", "in", 0, 7), Event("gate", "out", 0, 7)]


def test_who_trembles_on_one_side_or_walks_past_the_end_is_not_counted():
    zones = Zones([Shape("gate", ((50, 0), (50, 30)))], [], (100, 100))
    events = [event for x in (40, 45, 44, 49, 41) for event in step(zones, {1: (x, 20)})]
    events += [event for x in (40, 60, 80) for event in step(zones, {2: (x, 90)})]
    assert events == []


def test_a_walk_at_random_is_counted_as_by_hand():
    rng = np.random.default_rng(0)
    zones, expected, at = Zones([GATE], [], (100, 100)), Counter(), {n: (20.0 + 10 * n, 50.0) for n in range(6)}
    for _ in range(300):
        after = {n: (float(np.clip(x + rng.normal(0, 15), 2, 98)), y) for n, (x, y) in at.items()}
        for n in at:
            if (at[n][0] > 50) != (after[n][0] > 50):
                expected["in" if after[n][0] > 50 else "out"] += 1
        step(zones, at)
        at = after
    step(zones, at)
    assert {what: count.total() for what, count in zones.counts["gate"].items()} == expected


def test_counts_go_by_class():
    zones = Zones([GATE], [], (100, 100))
    for x in (20, 80):
        step(zones, {1: (x, 50)}, class_id=3)
    for x in (80, 20):
        step(zones, {2: (x, 50)}, class_id=4)
    assert zones.counts["gate"] == {"in": Counter({3: 1}), "out": Counter({4: 1})}
    assert zones.text("gate") == "in 1, out 1"


def test_entering_and_leaving_an_area():
    zones = Zones([], [YARD], (100, 100))
    events = [event for x in (20, 80, 82, 20, 80) for event in step(zones, {1: (x, 80)})]
    assert [event.what for event in events] == ["entered", "left", "entered"]


def test_who_vanished_inside_is_forgotten_in_the_end(monkeypatch):
    monkeypatch.setattr("yolo_lat.demo.zones._FORGET_FRAMES", 50)
    zones = Zones([], [YARD], (100, 100))
    for number in range(500):
        assert [event.what for event in step(zones, {number: (80, 80)})] == ["entered"]
    assert len(zones._inside[0]) < 60


def test_objects_without_a_number_are_not_counted():
    zones = Zones([GATE], [YARD], (100, 100))
    assert [event for x in (20, 80) for event in step(zones, {-1: (x, 80)})] == []


@pytest.mark.parametrize("size", [(100, 100), (50, 50), (320, 180)])
def test_zones_stay_in_place_when_the_resolution_changes(size):
    zones = Zones([GATE], [YARD], (100, 100))
    step(zones, {1: (20, 80)})
    events = step(zones, {1: (80, 80)}, size=size)
    assert [(event.zone, event.what) for event in events] == [("gate", "in"), ("yard", "entered")]
    outlines = {shape.name: points.tolist() for shape, points in zones.outlines(size)}
    assert outlines["gate"] == [[size[0] / 2, 0], [size[0] / 2, size[1]]]
