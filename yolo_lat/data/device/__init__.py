"""Training data that lives on the device: decoded images in its memory, augmented there a batch at a time."""

from yolo_lat.data.device.cache import DeviceCache, build_cache
from yolo_lat.data.device.loader import DeviceLoader, flat, letterboxed
from yolo_lat.data.device.plan import Augment

__all__ = ["Augment", "DeviceCache", "DeviceLoader", "build_cache", "flat", "letterboxed"]
