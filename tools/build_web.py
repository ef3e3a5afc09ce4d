"""Bring onnxruntime-web, in the version that package-lock.json names, to where `yolo-lat demo web` serves it from.

Run `python tools/build_web.py` once in a checkout, with npm and this project installed, before `yolo-lat demo web` or
before building a wheel. With --dev, the tests' axe-core is installed too, in yolo_lat/demo/web/npm/node_modules.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path

import onnxruntime

from yolo_lat.demo.web.site import RUNTIMES, VENDOR

NPM = VENDOR.parents[1] / "npm"
PACKAGE = NPM / "node_modules/onnxruntime-web"
# What is compiled into the .wasm files is licensed as what is compiled into the Python package, which brings the texts.
LICENCES = ("LICENSE", "ThirdPartyNotices.txt")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dev", action="store_true", help="install the packages of the tests too")
    words = parser.parse_args()
    npm = shutil.which("npm")
    if npm is None:
        sys.exit("build_web: npm is not installed; install Node.js 20 or later, which brings it")
    install = [npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund", *([] if words.dev else ["--omit=dev"])]
    if subprocess.run(install, cwd=NPM, check=False).returncode:
        sys.exit("build_web: npm ci failed, as it says above; nothing was copied")
    partial = VENDOR.with_name("vendor.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    for name in sorted({name for names in RUNTIMES.values() for name in names}):
        shutil.copyfile(PACKAGE / "dist" / name, partial / name)
    for name in LICENCES:
        shutil.copyfile(Path(onnxruntime.__file__).with_name(name), partial / name)
    package = json.loads((PACKAGE / "package.json").read_text(encoding="utf-8"))
    (partial / "NOTICE").write_text(notice(package["name"], package["version"], package["license"]), encoding="utf-8")
    shutil.rmtree(VENDOR, ignore_errors=True)
    partial.rename(VENDOR)
    for file in sorted(VENDOR.iterdir()):
        print(f"{file.stat().st_size / 1e6:8.3f} MB  {file.name}")
    print(f"{sum(file.stat().st_size for file in VENDOR.iterdir()) / 1e6:8.3f} MB  in {VENDOR}")


def notice(name: str, version: str, licence: str) -> str:
    """Return the text of the file NOTICE."""
    return (
        f"{name} {version}, licence {licence}, https://www.npmjs.com/package/{name}\n\n"
        "The .mjs and .wasm files beside this one are copied from it unchanged. They are Copyright (c) Microsoft\n"
        "Corporation; LICENSE is their licence, and ThirdPartyNotices.txt lists what ONNX Runtime was compiled from.\n"
    )


if __name__ == "__main__":
    main()
