"""The grammar of the command line and the keys that its modes take."""

from __future__ import annotations

import ast
import inspect

import pytest
from hypothesis import given
from hypothesis import strategies as st

from yolo_lat.cli_modes import BARE_KEYS, DEPRECATED_KEYS, HIDDEN_KEYS, MODES, engine_sections
from yolo_lat.cli_parse import merge_fragments, parse, parse_value
from yolo_lat.engine.train_options import OWN_OPTIONS


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("None", None),
        ("none", None),
        ("true", True),
        ("FALSE", False),
        ("42", 42),
        ("-1", -1),
        ("1e-3", 1e-3),
        ("0,1", (0, 1)),
        ("[0,1]", [0, 1]),
        ("cpu", "cpu"),
        ("0,cpu", "0,cpu"),
        ("a.b/c d.pt", "a.b/c d.pt"),
        ("__import__('os').getcwd()", "__import__('os').getcwd()"),
        ("(" * 500, "(" * 500),
    ],
)
def test_value_examples(text, value):
    converted = parse_value(text)
    assert converted == value
    assert type(converted) is type(value)


scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)


@given(st.recursive(scalars, lambda inner: st.lists(inner) | st.tuples(inner, inner), max_leaves=8))
def test_written_values_read_back(value):
    assert repr(parse_value(repr(value))) == repr(value)


@given(
    st.text(alphabet=st.characters(codec="utf-8"), max_size=12)
    | st.text("0123456789.,eE+-_[]() '\"TrueNon", max_size=8)
)
def test_values_are_those_of_ultralytics(text):
    from ultralytics.cfg import smart_value

    assert repr(parse_value(text)) == repr(smart_value(text))


# Grammar


@pytest.mark.parametrize(
    "words",
    [
        ["a=1", "b=2"],
        ["a", "=", "1", "b=2"],
        ["a=", "1", "b=2"],
        ["a", "=1", "half", "b=2"],
        ["imgsz=[480,", "640]", "half"],
        ["imgsz", "=", "[3,", "640,", "640]"],
        ["source=", "rtsp://x?a=1"],
        ["source=http://x?a=", "save"],
        ["a", "="],
        [],
    ],
)
def test_fragments_are_joined_as_ultralytics_joins_them(words):
    from ultralytics.cfg import merge_equals_args

    expected = merge_equals_args(list(words))
    if words == ["source=http://x?a=", "save"]:
        expected = words  # theirs takes the bare key for the end of the address
    assert merge_fragments(words) == expected


def test_brackets_within_file_names_are_left_alone():
    assert merge_fragments(["source=photo[1.jpg", "half"]) == ["source=photo[1.jpg", "half"]
    assert merge_fragments(["fraction=(1,", "2)", "half"]) == ["fraction=(1,2)", "half"]


def test_words_without_a_key_are_those_of_the_mode():
    assert parse(MODES["data check"], ["my data.yaml", "json=a.json"]) == {"data": "my data.yaml", "json": "a.json"}
    part = "coco-subset:train=20,val=5"
    assert parse(MODES["data convert"], [part, "format=yolo"]) == {"data": part, "format": "yolo"}
    words = ["runs/a", "runs/b=c", "seed=3", "d"]
    assert parse(MODES["compare"], words) == {"runs": ["runs/a", "runs/b=c", "d"], "seed": 3}


def test_parse_converts_names_verbatim_and_bare_booleans():
    words = ["model=a.pt", "name=007", "project=None", "device=0,1", "imgsz=640", "half", "save", "source=http://x?a=b"]
    assert parse(MODES["predict"], words) == {
        "model": "a.pt",
        "name": "007",
        "project": None,
        "device": (0, 1),
        "imgsz": 640,
        "half": True,
        "save": True,
        "source": "http://x?a=b",
    }


def test_every_boolean_key_of_ultralytics_may_stand_alone():
    from ultralytics.utils import DEFAULT_CFG_DICT

    bare = {key for key, value in DEFAULT_CFG_DICT.items() if isinstance(value, bool)} | set(BARE_KEYS)
    assert {key.name for key in MODES["train"].accepted().values() if key.stands_alone} == bare | {
        "download",
        "cuda_graph",
        "sync_bn",
        "trust",
    }
    assert parse(MODES["train"], sorted(bare)) == dict.fromkeys(bare, True)


def test_dashes_are_as_good_as_an_equals_sign():
    plain = ["models=a,b", "against=old.json", "rounds=3"]
    for words in (
        plain,
        [f"--{word}" for word in plain],
        ["--models", "a,b", "--against", "old.json", "--rounds", "3"],
    ):
        assert parse(MODES["benchmark"], words) == {"models": "a,b", "against": "old.json", "rounds": 3}
    assert parse(MODES["train"], ["--save", "--epochs", "3"]) == {"save": True, "epochs": 3}


def test_keys_are_those_of_the_installed_ultralytics():
    from ultralytics.utils import DEFAULT_CFG_DICT

    read = {
        key.name: parse_value(key.default) if key.default else None
        for keys in engine_sections().values()
        for key in keys
    }
    assert read == DEFAULT_CFG_DICT
    assert set(HIDDEN_KEYS) <= set(DEFAULT_CFG_DICT)
    assert set(DEFAULT_CFG_DICT) | set(DEPRECATED_KEYS) == set(MODES["train"].accepted()) - {
        "augmentations",
        "download",
        "trust",
        *OWN_OPTIONS,
    }


def test_deprecated_keys_are_those_that_ultralytics_still_handles():
    from ultralytics.cfg import _handle_deprecation

    tree = ast.parse(inspect.getsource(_handle_deprecation))
    popped = {
        call.args[0].value
        for call in ast.walk(tree)
        if isinstance(call, ast.Call)
        and isinstance(call.func, ast.Attribute)
        and call.func.attr == "pop"
        and isinstance(call.args[0], ast.Constant)
    }
    tables = {
        assign.targets[0].id: ast.literal_eval(assign.value)
        if isinstance(assign.value, ast.Set)
        else [key.value for key in assign.value.keys]
        for assign in ast.walk(tree)
        if isinstance(assign, ast.Assign) and isinstance(assign.value, ast.Set | ast.Dict)
    }
    assert popped.union(tables["deprecated_mappings"], tables["removed_keys"]) == set(DEPRECATED_KEYS)
