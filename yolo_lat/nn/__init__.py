"""Blocks, heads and whole models; importing it lets Ultralytics build YAMLs that name them."""

from yolo_lat.nn.blocks import ELA2d, ELABlock, ELALayer, Gate, GatedFFN, HyperLink, PlainFFN
from yolo_lat.nn.body import LocalBlock, PixelStem
from yolo_lat.nn.cross_scale import CrossScaleELA, Level
from yolo_lat.nn.experts import RoutedFFN
from yolo_lat.nn.head import LatDetect
from yolo_lat.nn.model import LatModel
from yolo_lat.nn.published import PaperDetect, PaperELA
from yolo_lat.nn.zoo import load_model_yaml, model_names

__all__ = [
    "CrossScaleELA",
    "ELA2d",
    "ELABlock",
    "ELALayer",
    "Gate",
    "GatedFFN",
    "HyperLink",
    "LatDetect",
    "LatModel",
    "Level",
    "LocalBlock",
    "PaperDetect",
    "PaperELA",
    "PixelStem",
    "PlainFFN",
    "RoutedFFN",
    "load_model_yaml",
    "model_names",
]
