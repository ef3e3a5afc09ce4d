"""What is told about the server, by metrics, health, OpenAPI, help and errors; and the files for containers."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from openapi_spec_validator import validate
from prometheus_client.parser import text_string_to_metric_families
from serving import encoded, serving, squares

from yolo_lat import missing_package
from yolo_lat.cli_modes import MODES
from yolo_lat.cli_parse import parse, parse_value
from yolo_lat.cli_serve import RUN_SERVE
from yolo_lat.errors import UserError
from yolo_lat.serve.server import bind, is_loopback, notices
from yolo_lat.serve.settings import ServeSettings

ROOT = Path(__file__).resolve().parents[2]
DOCKERFILES = sorted((ROOT / "docker").glob("Dockerfile.*"))


def test_metrics_count_what_happened(model):
    with serving(model) as running:
        for _ in range(3):
            running.detect(encoded(squares(0)))
        running.detect(b"no picture")
        running.client.get("/nowhere/" + "x" * 50)
        text = running.client.get("/metrics")
        samples = running.metrics()
    kinds = {family.name: family.type for family in text_string_to_metric_families(text.text)}
    assert kinds.items() >= {
        ("yolo_lat_requests", "counter"),
        ("yolo_lat_request_seconds", "histogram"),
        ("yolo_lat_batch_size", "histogram"),
        ("yolo_lat_inference_seconds", "histogram"),
        ("yolo_lat_queue_length", "gauge"),
        ("yolo_lat_in_flight", "gauge"),
        ("yolo_lat_pictures", "gauge"),
    }
    assert text.headers["content-type"].startswith("text/plain")
    assert samples["yolo_lat_requests_total{path=/detect,status=200}"] == 3
    assert samples["yolo_lat_requests_total{path=/detect,status=415}"] == 1
    assert samples["yolo_lat_requests_total{path=other,status=404}"] == 1
    assert samples["yolo_lat_request_seconds_count{path=/detect}"] == 4
    assert samples["yolo_lat_batch_size_sum"] == 3
    assert samples["yolo_lat_in_flight"] == 1  # the one that asks
    assert samples["yolo_lat_queue_length"] == 0


def test_health_names_what_runs(running):
    health = running.client.get("/health").json()
    assert health["provider"] == "CPUExecutionProvider"
    assert (health["status"], health["model"], health["imgsz"]) == ("ok", "colours.onnx", [64, 64])
    assert health["queue"] == {"waiting": 0, "busy": 0, "limit": 64}
    assert health["uptime_seconds"] > 0


def test_draining_is_shown(model):
    with serving(model) as running:
        running.service.draining = True
        assert running.client.get("/ready").status_code == 503
        assert running.client.get("/health").json()["status"] == "draining"
        refused = running.detect(encoded(squares(0)))
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "5")


def test_openapi_is_valid_and_says_what_is_sent(running):
    described = running.client.get("/openapi.json").json()
    validate(described)
    detect = described["paths"]["/detect"]["post"]
    assert {p["name"] for p in detect["parameters"]} == {"conf", "iou", "max_det", "format"}
    assert set(detect["requestBody"]["content"]) >= {"image/jpeg", "image/webp", "multipart/form-data"}
    assert set(detect["responses"]) == {"200", "400", "408", "413", "415", "422", "500", "503", "504"}
    assert not re.search("https?://(?!swagger|json-schema)", json.dumps(described))


@pytest.mark.slow
def test_what_openapi_describes_is_what_comes(running):
    """Requests that schemathesis makes up from the description, at most 40 for each path."""
    schemathesis = pytest.importorskip("schemathesis")
    from schemathesis.specs.openapi.checks import positive_data_acceptance

    schema = schemathesis.openapi.from_url(f"http://127.0.0.1:{running.port}/openapi.json")
    operations = [result.ok() for result in schema.get_all_operations()]
    assert len(operations) == 4
    for operation in operations:

        @settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
        @given(case=operation.as_strategy())
        def check(case):
            # Bytes that it makes up are no pictures, so they are refused, as described.
            case.call_and_validate(excluded_checks=[positive_data_acceptance])

        check()


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"port": 65536}, "port=65536 is out of range; pass a whole number from 0 to 65535"),
        ({"port": "http"}, "port=http is out of range"),
        ({"conf": 0}, "conf=0 is out of range; pass a number from 0.01 to 1"),
        ({"box_vote": 1.5}, "box_vote=1.5 is out of range; pass a number from 0 to 1"),
        ({"box_vote": True}, "box_vote=True is out of range"),
        ({"queue": 2.5}, "queue=2.5 is out of range; pass a whole number"),
        ({"max_batch": 0}, "max_batch=0 is out of range"),
        ({"threads": "high"}, "threads=high is out of range; pass a whole number from 1 to 1024"),
        ({"threads": 2.5}, "threads=2.5 is out of range"),
        ({"wait_ms": True}, "wait_ms=True is out of range"),
        ({"timeout": float("nan")}, "timeout=nan is out of range"),
        ({"max_megapixels": 90}, "max_megapixels=90 is out of range; pass a number from 0.001 to 89"),
        (
            {"model": Path("best.pt")},
            "model=best.pt is no .onnx file; make one of weights: yolo-lat export model=best.pt",
        ),
    ],
)
def test_settings_are_checked(values, words):
    with pytest.raises(UserError, match=f"^{re.escape(words)}"):
        ServeSettings(**{"model": Path("best.onnx"), **values})


def test_the_help_shows_the_defaults_of_the_settings():
    defaults = ServeSettings(Path("best.onnx"))
    for key in MODES["serve"].keys:
        if key.default:
            assert parse_value(key.default) == getattr(defaults, key.name), key.name
    assert {key.name for key in MODES["serve"].keys} == set(ServeSettings.__dataclass_fields__)


def test_the_command_line_hands_over_its_keys(monkeypatch):
    handed = []
    monkeypatch.setattr("yolo_lat.serve.server.run", handed.append)
    RUN_SERVE["serve"](parse(MODES["serve"], ["model=a.onnx", "imgsz=[320, 640]", "wait_ms=0.5", "max_batch=none"]))
    assert handed == [ServeSettings(Path("a.onnx"), imgsz=[320, 640], wait_ms=0.5)]
    RUN_SERVE["serve"](parse(MODES["serve"], ["model=a.onnx", "device=0"]))
    assert handed[1:] == [ServeSettings(Path("a.onnx"), device="cuda:0")]
    with pytest.raises(UserError, match=r"serve needs model=, for example: yolo-lat serve model=best\.onnx"):
        RUN_SERVE["serve"]({})


@pytest.mark.parametrize("host", ["256.1.1.1", "no such host", "192.0.2.1"])
def test_hosts_that_are_not_ours(host):
    with pytest.raises(UserError, match=f"cannot listen on host={host} port=0"):
        bind(host, 0)


def test_a_warning_where_others_can_reach_it(running):
    assert [is_loopback(a) for a in ("127.0.0.1", "127.8.8.8", "::1", "0.0.0.0", "::", "192.0.2.1")] == [True] * 3 + [
        False
    ] * 3
    assert len(notices(running.service, "::1", 80)) == 1
    serving_line, warning = notices(running.service, "0.0.0.0", 8000)
    assert serving_line.endswith("POST to http://0.0.0.0:8000/detect")
    assert warning.startswith("warning: 0.0.0.0 is reached from other machines, and there is no password;")


@pytest.mark.parametrize("package", ["fastapi", "uvicorn", "python_multipart", "prometheus_client"])
def test_a_missing_package_names_the_extra(package, tmp_path):
    code = f"import sys; sys.modules['{package}'] = None; from yolo_lat.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, "serve", "model=best.onnx"], capture_output=True, text=True, timeout=60, cwd=ROOT
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        f"yolo-lat: error: this needs {package}, which is not installed; run: pip install 'yolo-lat[serve]'\n"
    )
    assert "yolo-lat[serve]" in str(missing_package(ModuleNotFoundError(name=f"{package}.inner")))


def hadolint() -> str:
    found = shutil.which("hadolint") or shutil.which("hadolint", path=str(Path(sys.executable).parent))
    return found or pytest.skip("hadolint is not installed")


@pytest.mark.parametrize("file", DOCKERFILES, ids=lambda file: file.name)
def test_docker_files_pass_the_linter(file):
    done = subprocess.run([hadolint(), str(file)], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "")


def test_the_linter_finds_faults(tmp_path):
    (tmp_path / "Dockerfile").write_text("FROM python\nRUN cd /tmp && apt-get install curl\n")
    done = subprocess.run([hadolint(), str(tmp_path / "Dockerfile")], capture_output=True, text=True, timeout=60)
    assert {"DL3006", "DL3003", "DL3008"} <= set(re.findall(r"DL\d+", done.stdout))


@pytest.mark.parametrize("file", DOCKERFILES, ids=lambda file: file.name)
def test_docker_files_keep_what_the_guide_promises(file):
    lines = re.sub(r"\\\n\s*", "", file.read_text()).splitlines()
    rows = [tuple(line.split(" ", 1)) for line in lines if line and not line.startswith("#")]
    of = {kind: [text for name, text in rows if name == kind] for kind in {name for name, _ in rows}}
    assert all(re.match(r"python:3\.\d+\.\d+-slim-\w+( AS \w+)?$", base) for base in of["FROM"])
    assert not {"0", "root"} & set(of["USER"])
    assert rows.index(("USER", of["USER"][-1])) < rows.index(("ENTRYPOINT", of["ENTRYPOINT"][0]))
    assert len(of["HEALTHCHECK"]) == 1
    assert "/ready" in of["HEALTHCHECK"][0]
    entry = json.loads(of["ENTRYPOINT"][0]) + json.loads(of["CMD"][0])
    assert entry[:2] == ["yolo-lat", "serve"]
    keys = parse(MODES["serve"], entry[2:])
    assert (keys["host"], keys["port"]) == ("0.0.0.0", 8000)
    assert of["EXPOSE"] == ["8000"]
    extra = "serve,cuda" if file.suffix == ".cuda" else "serve"
    assert f"'.[{extra}]'" in " ".join(of["RUN"])


def test_the_build_context_holds_what_the_package_needs():
    """`.dockerignore` starts from nothing, so each name that the build reads stands in it, and they exist."""
    first, *rest = [line for line in (ROOT / ".dockerignore").read_text().split("\n") if line and line[0] != "#"]
    assert first == "*"
    allowed = {line[1:] for line in rest if line.startswith("!")}
    assert allowed == {"LICENSE", "README.md", "cfg", "datasets.yaml", "pyproject.toml", "weights", "yolo_lat"}
    assert all((ROOT / name).exists() for name in allowed)
    for file in DOCKERFILES:
        copied = re.findall(r"^COPY (.*) \./.*$", file.read_text(), re.MULTILINE)
        assert {name for names in copied for name in names.split()} == allowed


@pytest.mark.skipif(not shutil.which("curl"), reason="curl is not installed")
def test_the_guides_requests_run(running, tmp_path):
    (tmp_path / "street.jpg").write_bytes(encoded(squares(0), ".jpg"))
    guide = (ROOT / "docs/serve.md").read_text()
    lines = re.findall(r"^curl .*$", guide, re.MULTILINE)
    assert len(lines) == 3
    for line in lines:
        command = line.replace("127.0.0.1:8000", f"127.0.0.1:{running.port}")
        done = subprocess.run(
            ["curl", "--silent", "--fail", *shlex.split(command)[1:]], capture_output=True, cwd=tmp_path
        )
        assert done.returncode == 0
    assert (tmp_path / "detections.jpg").read_bytes().startswith(b"\xff\xd8\xff")


def test_the_guide_names_the_defaults():
    defaults = ServeSettings(Path("best.onnx"))
    guide = (ROOT / "docs/serve.md").read_text()
    for name, value in re.findall(r"^\| `(\w+)` \| ([\d.]+)", guide, re.MULTILINE):
        assert float(value) == getattr(defaults, name), name
    docker = re.findall(r"^docker build -f (\S+) .*$", guide, re.MULTILINE)
    assert [ROOT / name for name in docker] == DOCKERFILES


def test_the_load_test_is_the_guides(tmp_path):
    """The rows of the guide are those of the record, which a real run wrote."""
    record = json.loads((ROOT / "docs/results/serve-cpu.json").read_text())
    guide = (ROOT / "docs/serve.md").read_text()
    rows = {(row["imgsz"], row["connections"], row["batching"]): row for row in record["rows"]}
    shown = re.findall(r"^\| (\d+) \| (\d+) \| (.*) \|$", guide, re.MULTILINE)
    assert len(shown) == len(rows) / 2
    for imgsz, connections, cells in shown:
        off, on = (rows[int(imgsz), int(connections), batching] for batching in (False, True))
        wanted = [
            *(f"{row['per_second']:.0f}" for row in (off, on)),
            f"{on['gain']:.2f}",
            *(f"{row['p50_ms']:.0f} / {row['p99_ms']:.0f}" for row in (off, on)),
            *(f"{row['cpu_ms']:.1f}" for row in (off, on)),
            f"{on['mean_batch']:.1f}",
            f"{on['errors'] / on['requests']:.0%}",
        ]
        assert cells.split(" | ") == wanted
    assert all(row["refused"] == row["sent"] for row in record["refused"])
    assert record["alive_after_refusals"]
    assert record["exit_status_after_sigterm"] == [0, 0] * len({row["imgsz"] for row in record["rows"]})


@pytest.mark.slow
def test_the_load_test_runs(model, tmp_path):
    """A short run, of pictures made here; minutes long only on a busy machine."""
    for i in range(4):
        (tmp_path / f"{i}.jpg").write_bytes(encoded(squares(i), ".jpg"))
    out = tmp_path / "out.json"
    words = [out, model, tmp_path, "--imgsz", "64", "--connections", "1,4", "--requests", "20", "--rounds", "1"]
    subprocess.run([sys.executable, ROOT / "tools/serve_load.py", *map(str, words)], check=True, timeout=300, cwd=ROOT)
    record = json.loads(out.read_text())
    assert [row["errors"] for row in record["rows"]] == [0] * 4
    assert all(row["refused"] == row["sent"] for row in record["refused"])
    assert str(tmp_path) not in out.read_text()
