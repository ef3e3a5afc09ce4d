"""Constant-velocity Kalman filters for many boxes at once, as SORT and ByteTrack use them.

The state of a box is (centre x, centre y, width / height, height) and the velocity of each, in pixels a frame. The
noise grows with the height of the box (Wojke et al., "Simple online and realtime tracking with a deep association
metric", 2017, the values of its published code).
"""

from __future__ import annotations

import numpy as np

_POSITION, _VELOCITY = 1 / 20, 1 / 160  # standard deviations, as shares of the box's height
_MOTION = np.eye(8) + np.eye(8, k=4)
_SEEN = np.eye(4, 8)


def to_measurement(boxes_xyxy: np.ndarray) -> np.ndarray:
    """Return (n, 4) float64 centre x, centre y, aspect ratio and height of (n, 4) boxes."""
    boxes = boxes_xyxy.astype(np.float64)
    size = np.maximum(boxes[:, 2:] - boxes[:, :2], 1e-3)
    centre = (boxes[:, 2:] + boxes[:, :2]) / 2
    return np.concatenate([centre, size[:, :1] / size[:, 1:], size[:, 1:]], axis=1)


def to_boxes(mean: np.ndarray) -> np.ndarray:
    """Return the (n, 4) boxes of (n, 8) states."""
    half = np.stack([mean[:, 2] * mean[:, 3], mean[:, 3]], axis=1) / 2
    return np.concatenate([mean[:, :2] - half, mean[:, :2] + half], axis=1)


def start(measurement: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return means (n, 8) and covariances (n, 8, 8) of boxes (n, 4) that are seen for the first time, at rest."""
    height = measurement[:, 3]
    place, speed = 2 * _POSITION * height, 10 * _VELOCITY * height
    ones = np.ones_like(height)
    deviation = np.stack([place, place, 1e-2 * ones, place, speed, speed, 1e-5 * ones, speed], axis=1)
    mean = np.concatenate([measurement, np.zeros_like(measurement)], axis=1)
    return mean, np.einsum("ni,ij->nij", deviation**2, np.eye(8))


def predict(mean: np.ndarray, covariance: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return where n boxes are expected one frame later."""
    height = mean[:, 3]
    place, speed, ones = _POSITION * height, _VELOCITY * height, np.ones_like(height)
    deviation = np.stack([place, place, 1e-2 * ones, place, speed, speed, 1e-5 * ones, speed], axis=1)
    noise = np.einsum("ni,ij->nij", deviation**2, np.eye(8))
    return mean @ _MOTION.T, _MOTION @ covariance @ _MOTION.T + noise


def update(mean: np.ndarray, covariance: np.ndarray, measurement: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the states of n boxes after each was seen at its measurement (n, 4)."""
    height = mean[:, 3]
    place = _POSITION * height
    deviation = np.stack([place, place, 1e-1 * np.ones_like(height), place], axis=1)
    seen_covariance = covariance[:, :4, :4] + np.einsum("ni,ij->nij", deviation**2, np.eye(4))
    gain = np.linalg.solve(seen_covariance, _SEEN @ covariance).transpose(0, 2, 1)
    corrected = mean + np.einsum("nij,nj->ni", gain, measurement - mean[:, :4])
    return corrected, covariance - gain @ seen_covariance @ gain.transpose(0, 2, 1)
