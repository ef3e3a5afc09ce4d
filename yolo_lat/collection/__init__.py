"""Detection over large collections on Ray Data: streamed, restartable, and every image accounted for; no torch.

A run passes through `options` (what is asked for), `sources` (the list of inputs, and reading them), `worker` (an
actor that decodes and detects), `run_folder` (finished parts, restart), `run` (the parts in turn) and `results` (COCO
JSON and the list of failures, made of the parts).
"""

from yolo_lat.collection.options import CollectionOptions
from yolo_lat.collection.run import resume_collection, run_collection

__all__ = ["CollectionOptions", "resume_collection", "run_collection"]
