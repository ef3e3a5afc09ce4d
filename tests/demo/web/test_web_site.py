"""The site's files: what Python tells the page of a model, which models it refuses, and the static folder."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import onnx
import pytest
from hand_made_onnx import NAMES, colour_detector, fixed_output, raw_output
from web_site import stand_in

from yolo_lat import __version__
from yolo_lat.demo.web.models import describe
from yolo_lat.demo.web.server import POLICY
from yolo_lat.demo.web.site import RUNTIMES, STATIC, VENDOR, build_site, write_site
from yolo_lat.errors import UserError


@pytest.fixture
def vendor(tmp_path):
    return stand_in(tmp_path / "vendor")


@pytest.fixture
def model(tmp_path):
    return colour_detector(tmp_path / "colours.onnx")


def test_what_the_page_is_told_of_a_model(model):
    assert describe(model) == {
        "bytes": model.stat().st_size,
        "input": {"name": "images", "dtype": "float32", "channels_last": False},
        "output": {"name": "output0", "kind": None},
        "imgsz": [64, 64],
        "dynamic": False,
        "stride": 32,
        "names": {"0": "red", "1": "green", "2": "blue"},
    }


@pytest.mark.parametrize(
    ("options", "dtype", "channels_last", "kind"),
    [
        ({"dtype": np.float16}, "float16", False, None),
        ({"takes_bytes": True}, "uint8", True, None),
        ({"best_class": True, "batch": 1}, "float32", False, "best-class"),
    ],
    ids=["half", "bytes", "best-class"],
)
def test_forms_of_models(tmp_path, options, dtype, channels_last, kind):
    told = describe(colour_detector(tmp_path / "m.onnx", **options))
    assert told["input"] == {"name": "images", "dtype": dtype, "channels_last": channels_last}
    assert told["output"]["kind"] == kind


def test_a_model_of_dynamic_size_and_one_without_names(tmp_path):
    metadata = NAMES | {"imgsz": "[64, 96]", "stride": "16"}
    free = fixed_output(tmp_path / "free.onnx", raw_output(), metadata, ("batch", 3, "height", "width"))
    told = describe(free)
    assert (told["dynamic"], told["imgsz"], told["stride"]) == (True, [64, 96], 16)
    nameless = fixed_output(tmp_path / "nameless.onnx", raw_output(3), {"task": "detect"})
    assert describe(nameless)["names"] == {"0": "0", "1": "1", "2": "2"}


def weights_elsewhere(folder):
    proto = onnx.load(colour_detector(folder / "whole.onnx"))
    onnx.save(proto, folder / "apart.onnx", save_as_external_data=True, location="weights.bin", size_threshold=512)
    return folder / "apart.onnx"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: folder / "absent.onnx", "absent.onnx is not a file; pass the path of an .onnx model"),
        (
            lambda folder: fixed_output(folder / "b4.onnx", raw_output(batch=4), NAMES, (4, 3, 64, 64)),
            "b4.onnx takes 4 pictures at a time and the page shows one; export it with batch=1 or dynamic=true",
        ),
        (
            lambda folder: fixed_output(folder / "seg.onnx", raw_output(), NAMES | {"task": "segment"}),
            "seg.onnx has task 'segment'",
        ),
        (
            lambda folder: fixed_output(folder / "s.onnx", raw_output(), NAMES | {"stride": "'a'"}),
            "s.onnx is of an unknown kind; export the model again",
        ),
        (weights_elsewhere, "as the page has to; save it as one file that holds its weights"),
    ],
    ids=["absent", "batch", "task", "stride", "weights elsewhere"],
)
def test_unusable_models_are_refused_in_one_sentence(tmp_path, vendor, make, message):
    with pytest.raises(UserError, match=re.escape(message)) as refused:
        build_site([make(tmp_path)], vendor=vendor)
    assert "\n" not in str(refused.value)


def test_a_text_that_is_no_model_is_refused(tmp_path, vendor):
    (tmp_path / "text.onnx").write_text("no model")
    with pytest.raises(UserError, match=r"cannot open .*text\.onnx"):
        build_site([tmp_path / "text.onnx"], vendor=vendor)


def test_what_is_missing_is_said(tmp_path, model, vendor):
    (vendor / RUNTIMES["webgpu"][2]).unlink()
    with pytest.raises(UserError, match=r"asyncify\.wasm is missing; with npm installed, run 'python tools/build_web"):
        build_site([model], vendor=vendor)


def test_other_mistakes(model, vendor):
    with pytest.raises(UserError, match=r"needs a model; pass model=best\.onnx"):
        build_site([], vendor=vendor)
    with pytest.raises(UserError, match=r"conf=0 is beyond the page's slider; pass a number from 0\.01 to 1"):
        build_site([model], conf=0, vendor=vendor)


def test_the_site_holds_every_file_of_the_page_and_the_models(tmp_path, model, vendor):
    (tmp_path / "other").mkdir()
    twin = colour_detector(tmp_path / "other/colours.onnx")
    odd = colour_detector(tmp_path / "été #1.onnx")
    site = build_site([model, twin, odd], conf=0.4, vendor=vendor)
    pages = {file.name for file in STATIC.iterdir() if file.is_file()}
    assert {name for name in site if "/" not in name} == pages | {"models.json"}
    assert {name for name in site if name.startswith("vendor/")} == {f"vendor/{file.name}" for file in vendor.iterdir()}
    manifest = json.loads(site["models.json"].read())
    assert manifest["version"] == __version__
    assert manifest["limits"] == {"conf": 0.4, "iou": 0.7, "max_det": 300}
    assert manifest["runtimes"] == {"wasm": 3, "webgpu": 3}
    files = [entry["file"] for entry in manifest["models"]]
    assert files == ["models/colours.onnx", "models/colours-2.onnx", "models/t-1.onnx"]
    assert [site[file].read() for file in files] == [path.read_bytes() for path in (model, twin, odd)]
    assert manifest["models"][0]["names"]["2"] == "blue"


def test_the_folder_holds_the_same(tmp_path, model, vendor):
    site = build_site([model], vendor=vendor)
    folder = write_site(site, tmp_path / "new/site")
    written = {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    assert written == {name: asset.read() for name, asset in site.items()}
    assert [path.name for path in folder.parent.iterdir()] == ["site"]
    with pytest.raises(UserError, match="site exists already; name a new folder or remove that one"):
        write_site(site, folder)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot be written .*; choose another folder"):
        write_site(site, tmp_path / "file/site")


def test_folders_beside_the_site_stay_as_they_are(tmp_path, model, vendor):
    site = build_site([model], vendor=vendor)
    for name in ("site", "other"):
        (tmp_path / f"{name}.partial").mkdir()
        (tmp_path / f"{name}.partial/mine.txt").write_text("x")
    assert not (write_site(site, tmp_path / "site") / "mine.txt").exists()
    model.unlink()
    with pytest.raises(UserError, match="other cannot be written"):
        write_site(site, tmp_path / "other")
    for name in ("site", "other"):
        assert [file.name for file in (tmp_path / f"{name}.partial").iterdir()] == ["mine.txt"]
    assert {path.name for path in tmp_path.iterdir()} == {"vendor", "site", "site.partial", "other.partial"}


def test_the_page_names_no_other_host_and_the_same_policy():
    for file in STATIC.iterdir():
        if file.is_file():
            addresses = re.findall(r"(?:https?:)?//[\w.-]+\.\w+[^\s\"]*", file.read_text(encoding="utf-8"))
            assert set(addresses) <= {"http://www.w3.org/2000/svg"}, file.name
    html = (STATIC / "index.html").read_text(encoding="utf-8")
    assert f'content="{POLICY}"' in html
    assert not re.search(r"<script>|style=|\son\w+=", html)
    named = set(re.findall(r'(?:src|href)="([^"]+)"', html))
    assert {name for name in named if not name.startswith("vendor/")} <= {file.name for file in STATIC.iterdir()}


def test_what_comes_from_npm_is_pinned_and_named():
    root = Path(__file__).resolve().parents[3]  # not where the package is installed: wheels have neither
    npm = root / "yolo_lat/demo/web/npm"
    package, lock = (json.loads((npm / name).read_text()) for name in ("package.json", "package-lock.json"))
    versions = package["dependencies"] | package["devDependencies"]
    for name, version in versions.items():
        entry = lock["packages"][f"node_modules/{name}"]
        assert (entry["version"], entry["integrity"][:7]) == (version, "sha512-")
    assert not any("resolved" in entry for entry in lock["packages"].values())
    version = versions["onnxruntime-web"]
    assert f"onnxruntime-web {version}" in (root / "docs/web.md").read_text()
    if VENDOR.is_dir():
        assert (VENDOR / "NOTICE").read_text().startswith(f"onnxruntime-web {version}, licence MIT, ")
        assert (VENDOR / "LICENSE").read_text().startswith("MIT License")
