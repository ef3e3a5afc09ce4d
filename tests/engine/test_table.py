"""The table of sizes."""

from __future__ import annotations

from yolo_lat.engine import table
from yolo_lat.nn import LatModel, load_model_yaml
from yolo_lat.nn.complexity import count_gflops, count_parameters


def test_table_gives_what_the_models_have(monkeypatch) -> None:
    monkeypatch.setattr(table, "model_names", lambda: ["yolo-lat-p"])
    monkeypatch.setattr(table, "BASELINES", ("yolov8n.yaml",))
    rows = table.size_table(imgsz=320)
    cells = [list(column.cells) for column in rows.columns]
    assert cells[0] == ["yolo-lat-p", "yolov8n"]
    for i, name in enumerate(["yolo-lat-p", "yolov8n.yaml"]):
        model = LatModel(load_model_yaml(name), verbose=False)
        assert cells[1][i] == f"{count_parameters(model):,}"
        model.deploy()
        assert cells[2][i] == f"{count_parameters(model):,}"
        assert cells[3][i] == f"{count_gflops(model, 320):.2f}"


def test_baselines_have_their_published_sizes() -> None:
    """Ultralytics publishes 3.2 M parameters and 8.7 GFLOPs at 640 px for YOLOv8n, 2.4 M and 5.4 for YOLO26n."""
    for name, millions, gflops in (("yolov8n.yaml", 3.2, 8.7), ("yolo26n.yaml", 2.4, 5.4)):
        model = LatModel(load_model_yaml(name), nc=80, verbose=False).deploy()
        assert round(count_parameters(model) / 1e6, 1) == millions
        assert abs(count_gflops(model, 640) - gflops) < 0.1
