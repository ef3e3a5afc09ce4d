"""Settings of the small trainings that tests run; a module, so that fixtures and tests can import it alike."""

SIZE = 96
EPOCHS = 20  # of the fixture that all tests share
TRAIN = {
    "imgsz": SIZE,
    "batch": 4,
    "nbs": 4,
    "device": "cpu",
    "workers": 0,
    "plots": False,
    "verbose": False,
    "optimizer": "AdamW",
    "lr0": 0.003,
    "warmup_epochs": 0,
    "mosaic": 0.0,
}
