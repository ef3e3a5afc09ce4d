"""Values that a key does not take are refused in one line, by the real engine where it is that which checks them."""

from __future__ import annotations

import pytest

SIZES = ("[]", "None", "1e400")
ONCE = "epochs=1 imgsz=96 device=cpu workers=0 plots=False"
REFUSED = {
    "data check DATA": ("workers=abc", "workers=-1"),
    "data split DATA directory=new": ("train=abc", "train=None", "val=abc", "test=abc"),
    "data show DATA": ("samples=abc", "samples=1.5", "split=[]", "file=None"),
    "data preview DATA": ("samples=abc", "samples=1.5", "seed=abc", "seed=1.5", "cfg=1", "split=[]", "file=None"),
    "compare one two": ("confidence=abc",),
    f"train model=MODEL data=DATA {ONCE}": (
        *("cfg=1", "resume=1.5", "distill_model=1", "batch=1.5", "batch=True", "seed=-1", "seed=99999999999"),
        *("copy_paste_mode=abc", "classes=abc"),
    ),
    "train model=MODEL data=DATA epochs=1": tuple(f"imgsz={size}" for size in SIZES),
    "val model=MODEL data=DATA": ("batch=0", "batch=-1", "batch=1.5", *(f"imgsz={size}" for size in SIZES)),
    "predict model=MODEL source=IMAGES imgsz=96": ("batch=0", "batch=-1", "classes=abc", "classes=[0,abc]"),
    "predict model=MODEL": ("source=1.5",),
    "predict model=MODEL source=IMAGES": tuple(f"imgsz={size}" for size in SIZES),
    "export model=MODEL": ("batch=0", "batch=1.5", *(f"imgsz={size}" for size in SIZES)),
    "info model=yolo-lat-p": tuple(f"imgsz={size}" for size in SIZES),
    "info table": ("imgsz=None",),
    "quickstart": ("seed=99999999999",),
}
BELOW_A_FILE = (
    "compare one two json=plain/x.json",
    "compare one two figure=plain/x.png",
    "data convert DATA format=coco directory=plain/x",
    "data split DATA directory=plain/x",
)


@pytest.fixture
def refused(run, command):
    """Run a command in which words in capitals stand for what the fixtures made; returns its one line of error."""
    made = {"DATA": run.data, "IMAGES": run.data.parent / "images/val", "MODEL": run.best}

    def refuse(words: str) -> str:
        for name, path in made.items():
            words = words.replace(name, str(path))
        done = command(*words.split())
        assert done.status == 2
        assert done.err.startswith("yolo-lat: error: ")
        assert done.err.count("\n") == 1
        return done.err.removeprefix("yolo-lat: error: ")

    return refuse


@pytest.mark.parametrize(
    ("words", "given"), [(words, given) for words, several in REFUSED.items() for given in several]
)
def test_a_value_that_a_key_does_not_take_is_named(refused, tmp_path, words, given):
    assert refused(f"{words} {given}").startswith(given.partition("=")[0] + "=")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("below", ["plain/", "plain/and/deeper/"])
@pytest.mark.parametrize("words", BELOW_A_FILE)
def test_a_place_below_a_file_is_refused(refused, tmp_path, words, below):
    (tmp_path / "plain").write_text("mine")
    assert "plain" in refused(words.replace("plain/", below))
    assert (tmp_path / "plain").read_text() == "mine"
    assert [path.name for path in tmp_path.iterdir()] == ["plain"]
