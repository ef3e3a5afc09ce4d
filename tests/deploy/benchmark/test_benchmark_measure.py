"""Timing by laws: who runs when, what the clock sees, and what ratios and choices follow from it."""

import weakref
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from yolo_lat.deploy.benchmark.measure import Search, interleave, ratio, timed
from yolo_lat.deploy.benchmark.record import Result
from yolo_lat.deploy.benchmark.run import summarise
from yolo_lat.deploy.benchmark.settings import SETTINGS, VARIANTS, Setting
from yolo_lat.errors import UserError

MS = 1_000_000


class World:
    """A clock that contenders move, and a log of what they did."""

    def __init__(self) -> None:
        self.now, self.log = 0, []

    def clock(self) -> int:
        return self.now


class Fake:
    """A contender of known cost; laying out an input takes long, and must not be counted."""

    provider = "fake"

    def __init__(self, world: World, name: str, cost_ms: float, fails_at: int | None = None) -> None:
        self.world, self.name, self.cost_ms, self.left = world, name, cost_ms, fails_at

    def prepare(self, turn: int) -> None:
        self.turn = turn
        self.world.now += 1000 * MS

    def run(self) -> None:
        if self.left is not None:
            self.left -= 1
            if self.left < 0:
                raise UserError(f"{self.name} is out of memory")
        self.world.log.append((self.name, self.turn))
        self.world.now += int(self.cost_ms * MS)


def test_the_clock_sees_the_run_alone():
    world = World()
    assert timed(Fake(world, "a", 2.5), range(3), world.clock) == [2.5, 2.5, 2.5]


def test_rounds_are_interleaved_and_warm_up_is_not_timed():
    world = World()
    contenders = {name: Fake(world, name, cost) for name, cost in (("a", 1), ("b", 2), ("c", 3))}
    blocks = []
    times, errors = interleave(contenders, 3, 4, 20, world.clock, lambda: blocks.append(len(world.log)))
    assert errors == {}
    assert {name: found.tolist() for name, found in times.items()} == {
        name: [[cost] * 4] * 3 for name, cost in (("a", 1), ("b", 2), ("c", 3))
    }
    order = [name for i, (name, _) in enumerate(world.log) if i == 0 or world.log[i - 1][0] != name]
    assert order == list("abc") * 4  # a warm-up round, then three
    counts = np.diff([0, *blocks]).tolist()
    assert counts == [20] * 3 + [2 + 4] * 9
    turns = [turn for name, turn in world.log if name == "b"][20:]
    assert turns == [turn for i in range(3) for turn in (0, 1, *range(4 * i, 4 * i + 4))]  # a new input each time


def test_a_contender_that_fails_leaves_the_others():
    world = World()
    contenders = {"a": Fake(world, "a", 1), "b": Fake(world, "b", 2, fails_at=12), "c": Fake(world, "c", 3)}
    times, errors = interleave(contenders, 3, 5, 5, world.clock)
    assert errors == {"b": "b is out of memory"}
    assert {name: found.shape for name, found in times.items()} == {"a": (3, 5), "c": (3, 5)}


positive = st.floats(0.01, 1000)


@given(arrays(float, (5, 7), elements=positive), arrays(float, 5, elements=positive), st.floats(0.1, 10))
def test_a_drift_from_round_to_round_cancels(reference, drift, speed):
    model = reference / speed
    found = ratio(reference * drift[:, None], model * drift[:, None])
    assert found.rounds == pytest.approx([speed] * 5, abs=1e-3)
    assert found.low <= found.median <= found.high


@given(arrays(float, (5, 7), elements=positive), arrays(float, (5, 7), elements=positive))
def test_ratios_are_of_the_medians_of_the_same_round(a, b):
    found = ratio(a, b)
    each = np.median(a, axis=1) / np.median(b, axis=1)
    assert found.rounds == pytest.approx(each.tolist(), abs=1e-4)
    assert (found.low, found.high) == pytest.approx((each.min(), each.max()), abs=1e-4)
    assert found.median == pytest.approx(np.median(each), abs=1e-4)


def test_a_slow_round_of_both_does_not_move_the_ratio():
    quick, slow = np.full((5, 9), 1.0), np.full((5, 9), 3.0)
    quick[2:], slow[2:] = 10, 30
    slow[4] = 60
    found = ratio(slow, quick)
    assert (found.median, found.low, found.high) == (3, 3, 6)


@given(arrays(float, (5, 10), elements=positive))
def test_summaries_are_of_all_runs(times):
    result = Result("a")
    summarise(result, times)
    every = sorted(times.ravel())
    assert result.p5_ms <= result.median_ms <= result.p95_ms
    assert result.median_ms == pytest.approx((every[24] + every[25]) / 2, abs=1e-5)
    assert result.p5_ms == pytest.approx(every[2] + 0.45 * (every[3] - every[2]), abs=1e-5)
    assert len(result.rounds_ms) == 5


class Opener:
    """Opens contenders that sleep as long as `costs` says; None fails."""

    def __init__(self, costs: dict[str, float | None]) -> None:
        self.costs, self.alive = costs, {}

    def __call__(self, setting: Setting, variant) -> Fake:
        if self.costs.get(setting.name) is None:
            raise UserError(f"{setting.name} cannot be opened")
        contender = Fake(World(), setting.name, 0)
        self.alive[setting.name] = weakref.ref(contender)
        return contender


@pytest.fixture
def search(monkeypatch):
    """Build a search whose trials take what an opener says."""

    def build(costs: dict[str, float | None], memory=lambda: None) -> tuple[Search, Opener]:
        opener = Opener(costs)
        monkeypatch.setattr("yolo_lat.deploy.benchmark.measure.timed", lambda c, turns: [costs[c.name] for _ in turns])
        return Search(opener, 2, 3, memory), opener

    return build


CUDA = SETTINGS["cuda"]
GRAPHS = [setting.name for setting in CUDA if setting.cuda_graph]
PLAIN = [setting.name for setting in CUDA if not setting.cuda_graph]


def test_the_declared_list_has_every_combination_once():
    found = {(s.prefer_nhwc, s.fuse_conv_bias, s.cuda_graph) for s in CUDA}
    assert found == set(product((False, True), repeat=3))
    assert len({setting.name for setting in CUDA}) == 8
    options = [setting.session(2) for setting in CUDA]
    assert [(o.prefer_nhwc, o.fuse_conv_bias, o.cuda_graph) for o in options] == [
        (s.prefer_nhwc, s.fuse_conv_bias, s.cuda_graph) for s in CUDA
    ]
    assert {o.threads for o in options} == {2}
    assert not any(o.tf32 for o in options)


def test_layouts_are_tried_with_a_graph_and_the_best_without(search):
    costs = dict.fromkeys(GRAPHS + PLAIN, 5.0) | {"graph+bias": 2.0, "bias": 1.0}
    found, opener = search(costs)
    found.settings(CUDA, VARIANTS[0], exhaustive=False)
    assert [trial.setting for trial in found.trials] == [*GRAPHS, "bias"]
    assert found.choice[0].name == found.best.name == "bias"
    assert [name for name, reference in opener.alive.items() if reference() is not None] == ["bias"]


def test_where_no_graph_can_be_captured_every_layout_is_tried(search):
    found, _ = search(dict.fromkeys(GRAPHS) | dict.fromkeys(PLAIN, 5.0) | {"nhwc": 3.0})
    found.settings(CUDA, VARIANTS[0], exhaustive=False)
    assert [trial.setting for trial in found.trials] == [*GRAPHS, *PLAIN]
    assert [trial.error is None for trial in found.trials] == [False] * 4 + [True] * 4
    assert found.choice[0].name == "nhwc"


def test_settings_that_are_named_are_all_tried(search):
    found, _ = search(dict.fromkeys(GRAPHS + PLAIN, 5.0) | {"default": 1.0})
    found.settings(CUDA[:5], VARIANTS[0], exhaustive=True)
    assert [trial.setting for trial in found.trials] == [setting.name for setting in CUDA[:5]]
    assert found.choice[0].name == "default"


def test_memory_is_what_each_session_adds(search):
    answers = iter([100.0, 130.0, 130.0, 200.0])
    found, _ = search({"default": 1.0, "nhwc": 2.0}, lambda: next(answers))
    found.settings(CUDA[:2], VARIANTS[0], exhaustive=True)
    assert [trial.memory_mb for trial in found.trials] == [30.0, 70.0]


def test_memory_that_is_not_told_is_none(search):
    answers = iter([100.0, None, None, 200.0])
    found, _ = search({"default": 1.0, "nhwc": 2.0}, lambda: next(answers))
    found.settings(CUDA[:2], VARIANTS[0], exhaustive=True)
    assert [(trial.memory_mb, trial.error) for trial in found.trials] == [(None, None)] * 2


def test_a_gpu_that_stops_answering_fails_the_trial(search):
    def memory():
        raise UserError("nvidia-smi fails")

    found, _ = search({"default": 1.0}, memory)
    found.attempt(CUDA[0], VARIANTS[0])
    assert [trial.error for trial in found.trials] == ["nvidia-smi fails"]
    assert found.best is None


def test_nothing_is_chosen_where_all_fail(search):
    found, _ = search({})
    found.settings(CUDA, VARIANTS[0], exhaustive=False)
    assert found.best is found.choice is None
    assert all("cannot be opened" in trial.error for trial in found.trials)
