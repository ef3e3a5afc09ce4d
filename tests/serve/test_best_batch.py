"""The size of batch that a server finds where the device, or the model, cannot run all."""

from __future__ import annotations

import pytest
from hand_made_onnx import NAMES, fixed_output, raw_output
from onnxruntime.capi.onnxruntime_pybind11_state import RuntimeException
from serving import encoded, serving, squares

from yolo_lat.errors import UserError
from yolo_lat.serve.detector import ServedDetector
from yolo_lat.serve.settings import ServeSettings


@pytest.mark.parametrize("error", [UserError, MemoryError, RuntimeException])
@pytest.mark.parametrize("largest", [1, 4])
def test_a_size_that_does_not_fit_ends_the_search(model, monkeypatch, error, largest):
    now = 0.0

    class Small(ServedDetector):
        def detect(self, frames):
            nonlocal now
            if len(frames) > largest:
                raise error("no memory")
            now += 1
            return []

    monkeypatch.setattr("yolo_lat.serve.detector.time.perf_counter", lambda: now)
    assert Small(ServeSettings(model, threads=1)).max_batch == largest


def test_a_model_that_cannot_run_at_all_is_no_server(model):
    class Broken(ServedDetector):
        def detect(self, frames):
            raise UserError("it cannot run")

    with pytest.raises(UserError, match="it cannot run"):
        Broken(ServeSettings(model, threads=1))


def test_a_model_that_answers_for_one_picture_alone_runs_with_one(tmp_path):
    path = fixed_output(tmp_path / "one.onnx", raw_output(), NAMES, input_shape=("batch", 3, 64, 64))
    with serving(path, max_batch=None) as running:
        assert running.client.get("/health").json()["max_batch"] == 1
        assert len(running.detect(encoded(squares(0))).json()["detections"]) == 1
