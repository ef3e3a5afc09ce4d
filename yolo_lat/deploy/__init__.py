"""Deployment: detection with ONNX Runtime, without torch."""

from yolo_lat.deploy.detections import Detections
from yolo_lat.deploy.onnx_detector import OnnxDetector

__all__ = ["Detections", "OnnxDetector"]
