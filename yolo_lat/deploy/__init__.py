"""Deployment: detection with ONNX Runtime, without torch."""

from yolo_lat.deploy.onnx_detector import Detections, OnnxDetector

__all__ = ["Detections", "OnnxDetector"]
