"""Training, validation, prediction and export on the Ultralytics engine."""
