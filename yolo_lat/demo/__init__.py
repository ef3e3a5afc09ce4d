"""Detection for people to see: in videos, pictures and live streams (extra `demo`), and in the browser (`web`)."""

# Before PyAV: both bring a libxcb of their own, and OpenCV's windows hang in the one of PyAV if that is loaded first
# (github.com/PyAV-Org/PyAV/issues/1050).
import cv2  # noqa: F401
