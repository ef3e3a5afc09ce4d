"""Every name of Ultralytics that is not its public interface and that this package leans on.

When one of these tests fails, Ultralytics has moved something: mend the place that the message names, then the range of
versions in pyproject.toml.
"""

import importlib
import inspect
import re

import pytest
import ultralytics

PRIVATE = {
    "ultralytics.nn.tasks": {
        "parse_model": "nn/parser.py",
        "guess_model_scale": "nn/zoo.py",
        "load_checkpoint": "engine/checkpoint.py",
        "torch_safe_load": "engine/unpickle.py",
        "BaseModel": "nn/parser.py",
        "_SafeLoad.activation": "nn/parser.py",
        "DetectionModel.is_fused": "engine/checkpoint.py",
        "DetectionModel.fuse": "nn/model.py",
    },
    "ultralytics.engine.model": {
        "Model._new": "engine/model.py",
        "Model._load": "engine/model.py",
        "Model._reset_ckpt_args": "engine/model.py",
        "Model._check_is_pytorch_model": "engine/model.py",
        "Model.task_map": "engine/model.py",
    },
    "ultralytics.engine.trainer": {
        "BaseTrainer._build_train_pipeline": "engine/trainer.py",
        "BaseTrainer.check_resume": "engine/trainer.py",
        "BaseTrainer.build_optimizer": "engine/trainer.py",
        "BaseTrainer.final_eval": "engine/trainer.py",
        "BaseTrainer.get_dataset": "engine/trainer.py",
        "BaseTrainer._setup_train": "engine/trainer.py",
        "BaseTrainer._setup_scheduler": "engine/trainer.py",
        "BaseTrainer._load_checkpoint_state": "engine/trainer.py",
        "BaseTrainer._get_warmup_iterations": "engine/loop.py",
        "BaseTrainer._handle_nan_recovery": "engine/loop.py",
        "BaseTrainer._model_train": "engine/loop.py",
        "BaseTrainer._clear_memory": "engine/loop.py",
        "BaseTrainer._get_memory": "engine/loop.py",
        "BaseTrainer.save_metrics": "engine/loop.py",
        "BaseTrainer.optimizer_step": "engine/trainer.py",
        "BaseTrainer.label_loss_items": "engine/loop.py",
    },
    "ultralytics.data.build": {
        "InfiniteDataLoader.reset": "engine/trainer.py",
        "build_dataloader": "engine/trainer.py",
        "seed_worker": "engine/trainer.py",
    },
    "ultralytics.utils.loss": {
        "v8DetectionLoss.get_assigned_targets_and_loss": "engine/static_loss.py",
        "v8DetectionLoss.bbox_decode": "engine/static_loss.py",
        "BboxLoss.forward": "engine/static_loss.py",
        "E2ELoss.decay": "engine/static_loss.py",
    },
    "ultralytics.utils.tal": {
        "TaskAlignedAssigner.select_topk_candidates": "engine/static_loss.py",
        "TaskAlignedAssigner.select_highest_overlaps": "engine/static_loss.py",
        "TaskAlignedAssigner.select_candidates_in_gts": "engine/static_loss.py",
        "bbox2dist": "engine/static_loss.py",
    },
    "ultralytics.optim": {"MuSGD": "engine/fast_step.py"},
    "ultralytics.optim.muon": {"muon_update": "engine/fast_step.py"},
    "ultralytics.utils.callbacks": {"get_default_callbacks": "engine/trainer.py"},
    "ultralytics.utils.callbacks.tensorboard": {"callbacks": "engine/trainer.py"},
    "ultralytics.utils.callbacks.mlflow": {"callbacks": "engine/trainer.py"},
    "ultralytics.utils.callbacks.wb": {"callbacks": "engine/trainer.py"},
    "ultralytics.models.yolo.detect": {
        "DetectionTrainer.set_model_names_for_load": "engine/trainer.py",
        "DetectionTrainer.build_dataset": "engine/trainer.py",
        "DetectionValidator.init_metrics": "engine/validator.py",
        "DetectionValidator.postprocess": "engine/validator.py",
        "DetectionValidator.pred_to_json": "engine/validator.py",
        "DetectionValidator.get_stats": "engine/validator.py",
        "DetectionValidator.gather_stats": "engine/validator.py",
        "DetectionValidator.get_dataloader": "engine/validator.py",
        "DetectionValidator.finalize_metrics": "engine/validator.py",
        "DetectionValidator.print_results": "engine/validator.py",
        "DetectionPredictor.setup_source": "engine/predictor.py",
        "DetectionPredictor.postprocess": "engine/predictor.py",
        "DetectionPredictor.construct_results": "engine/predictor.py",
        "DetectionPredictor.get_obj_feats": "engine/predictor.py",
    },
    "ultralytics.engine.validator": {
        "BaseValidator.__call__": "engine/validator.py",
        "BaseValidator.on_plot": "engine/validator.py",
        "AutoBackend": "engine/validator.py",
        "get_torch_device_backend": "engine/validator.py",
    },
    "ultralytics.data.augment": {"Albumentations": "data/dataset.py"},
    "ultralytics.utils.instance": {"Instances.convert_bbox": "data/augment.py"},
    "ultralytics.data.loaders": {"LoadImagesAndVideos._append_image": "engine/predictor.py"},
    "ultralytics.data.utils": {"check_det_dataset": "engine/offline.py"},
    "ultralytics.data.dataset": {
        "load_dataset_cache_file": "engine/offline.py",
        "YOLODataset.get_img_files": "data/dataset.py",
        "YOLODataset.get_labels": "data/dataset.py",
        "YOLODataset.build_transforms": "data/dataset.py",
        "YOLODataset.load_image": "data/dataset.py",
    },
    "ultralytics.engine.exporter": {
        "export_formats": "engine/arguments.py",
        "validate_args": "engine/arguments.py",
        "FP16_FORMATS": "engine/export_keys.py",
        "FP32_UNSUPPORTED_FORMATS": "engine/export_keys.py",
    },
    "ultralytics.utils.torch_utils": {
        "parse_device": "engine/arguments.py",
        "unwrap_model": "engine/trainer.py",
        "strip_optimizer": "engine/trainer.py",
        "init_seeds": "engine/trainer.py",
        "torch_distributed_zero_first": "engine/trainer.py",
        "ModelEMA.update_attr": "engine/fast_step.py",
    },
    "ultralytics.utils.metrics": {
        "DetMetrics.process": "engine/validator.py",
        "Metric.map": "engine/validator.py",
        "ConfusionMatrix": "engine/validator.py",
    },
    "ultralytics.utils.nms": {"non_max_suppression": "engine/validator.py"},
    "ultralytics.utils.patches": {"_image_open": "engine/offline.py", "imread": "data/device/cache.py"},
    "ultralytics.cfg": {"get_save_dir": "engine/launch.py"},
    "ultralytics.utils.dist": {"generate_ddp_file": "engine/launch.py", "ddp_cleanup": "engine/launch.py"},
    "ultralytics.utils.events": {"events": "engine/offline.py"},
    "ultralytics.utils": {"USER_CONFIG_DIR": "engine/offline.py", "SETTINGS": "engine/offline.py"},
}

# name, the parameters that we pass or override, and where
PARAMETERS = [
    ("ultralytics.nn.tasks", "parse_model", ["d", "ch", "verbose"], "nn/parser.py"),
    ("ultralytics.engine.model", "Model._new", ["self", "cfg", "task", "verbose"], "engine/model.py"),
    ("ultralytics.engine.model", "Model._load", ["self", "weights", "task"], "engine/model.py"),
    ("ultralytics.engine.trainer", "BaseTrainer._build_train_pipeline", ["self"], "engine/trainer.py"),
    (
        "ultralytics.data.loaders",
        "LoadImagesAndVideos._append_image",
        ["self", "paths", "imgs", "info", "path", "im0", "idx"],
        "engine/predictor.py",
    ),
    (
        "ultralytics.models.yolo.detect",
        "DetectionValidator.pred_to_json",
        ["self", "predn", "pbatch"],
        "engine/validator.py",
    ),
    ("ultralytics.engine.exporter", "validate_args", ["format", "passed_args", "valid_args"], "engine/model.py"),
    ("ultralytics.optim.muon", "muon_update", ["grad", "momentum", "beta", "nesterov"], "engine/fast_step.py"),
    (
        "ultralytics.utils.torch_utils",
        "ModelEMA.__init__",
        ["self", "model", "decay", "tau", "updates"],
        "engine/fast_step.py",
    ),
]

# what a method's body must still mention, for we rely on what it does, not only on its name
BODIES = [
    ("ultralytics.engine.trainer", "BaseTrainer.train", "self._do_train()", "engine/trainer.py"),
    ("ultralytics.engine.trainer", "BaseTrainer.save_model", "self.last.write_bytes(", "engine/trainer.py"),
    ("ultralytics.engine.trainer", "BaseTrainer.save_model", "self.best.write_bytes(", "engine/trainer.py"),
    (
        "ultralytics.engine.trainer",
        "BaseTrainer._load_checkpoint_state",
        "self.ema = ModelEMA(",
        "engine/trainer.py",
    ),
    ("ultralytics.engine.trainer", "BaseTrainer.optimizer_step", "max_norm=10.0", "engine/fast_step.py"),
    ("ultralytics.data.base", "BaseDataset.load_image", "self.buffer.append(i)", "data/order.py"),
    ("ultralytics.data.augment", "Mosaic.get_indexes", "list(self.dataset.buffer)", "data/order.py"),
    ("ultralytics.utils.loss", "E2ELoss.__call__", "self.o2m", "engine/static_loss.py"),
    (
        "ultralytics.models.yolo.detect",
        "DetectionValidator.update_metrics",
        "self.args.save_json",
        "engine/validator.py",
    ),
    (
        "ultralytics.models.yolo.detect",
        "DetectionValidator.update_metrics",
        "self.pred_to_json(",
        "engine/validator.py",
    ),
    ("ultralytics.engine.validator", "BaseValidator.__call__", "self.get_stats()", "engine/validator.py"),
    (
        "ultralytics.engine.validator",
        "BaseValidator.__call__",
        "self.args.save_json and self.jdict",
        "engine/validator.py",
    ),
    ("ultralytics.data.loaders", "LoadImagesAndVideos.__next__", "self._append_image(", "engine/predictor.py"),
    ("ultralytics.utils.nms", "non_max_suppression", "max_time_img", "engine/validator.py"),
    ("ultralytics.utils.metrics", "Metric.map", "self.all_ap.mean()", "engine/validator.py"),
    ("ultralytics.engine.model", "Model.train", "self.trainer.get_model(weights=weights", "engine/model.py"),
    ("ultralytics.engine.model", "Model.predict", '_smart_load("predictor")', "engine/model.py"),
    ("ultralytics.engine.exporter", "Exporter.__call__", "pt_path", "engine/model.py"),
    (
        "ultralytics.engine.exporter",
        "Exporter.__call__",
        '{"rknn", "ncnn", "executorch", "paddle", "imx", "edgetpu", "qnn"}',
        "engine/export_keys.py",
    ),
    (
        "ultralytics.engine.exporter",
        "Exporter.__call__",
        '{"deepx", "axelera", "imx", "edgetpu", "qnn", "hailo", "xilinx"}',
        "engine/export_keys.py",
    ),
]


def find(module: str, name: str, used_in: str):
    try:
        found = importlib.import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError):
        pytest.fail(
            f"{module}.{name} is gone from Ultralytics {ultralytics.__version__}; mend yolo_lat/{used_in}, its user"
        )
    return found


@pytest.mark.parametrize(
    ("module", "name", "used_in"),
    [(module, name, place) for module, names in PRIVATE.items() for name, place in names.items()],
)
def test_the_name_is_still_there(module, name, used_in):
    find(module, name, used_in)


@pytest.mark.parametrize(("module", "name", "parameters", "used_in"), PARAMETERS)
def test_the_parameters_are_the_same(module, name, parameters, used_in):
    found = list(inspect.signature(find(module, name, used_in)).parameters)
    assert found == parameters, f"{module}.{name} now takes {found}; mend yolo_lat/{used_in}"


@pytest.mark.parametrize(("module", "name", "text", "used_in"), BODIES)
def test_the_method_still_does_what_we_rely_on(module, name, text, used_in):
    found = find(module, name, used_in)
    source = inspect.getsource(found.fget if isinstance(found, property) else found)
    assert text in source, f"{module}.{name} no longer has '{text}'; look at yolo_lat/{used_in}"


def test_validator_has_the_attributes_that_ours_reads():
    from ultralytics.cfg import get_cfg
    from ultralytics.models.yolo.detect import DetectionValidator

    class Probe(DetectionValidator):
        pass

    source = inspect.getsource(DetectionValidator) + inspect.getsource(DetectionValidator.__mro__[1])
    for name in ("jdict", "metrics", "end2end", "nc", "names", "dataloader", "training", "save_dir", "stride", "data"):
        assert f"self.{name}" in source, f"DetectionValidator.{name} is gone; mend yolo_lat/engine/validator.py"
    assert {"save_json", "conf", "iou", "max_det", "single_cls", "agnostic_nms", "fraction"} <= vars(get_cfg()).keys()


def test_our_parser_is_installed_in_their_module():
    from ultralytics.nn import tasks

    from yolo_lat.nn import parser

    assert tasks.parse_model is parser.parse_model


def test_our_loop_tells_callbacks_what_theirs_does():
    """It stands in for `_do_train`: an event that Ultralytics adds there has to be added here."""
    from ultralytics.engine.trainer import BaseTrainer

    from yolo_lat.engine import loop

    def events(source: str) -> set[str]:
        return set(re.findall(r'run_callbacks\("(\w+)"\)', source))

    theirs, ours = events(inspect.getsource(BaseTrainer._do_train)), events(inspect.getsource(loop))
    assert ours == theirs, "mend yolo_lat/engine/loop.py"
