"""The window of the demo, and whether this machine can open one."""

from __future__ import annotations

import os
import subprocess
import sys
from threading import Event

import cv2
import numpy as np

from yolo_lat.demo.pipeline import Controls

KEYS = "space pause, n step, s screenshot, +/- threshold, t tracks, q quit"
_TITLE = "yolo-lat demo"
_ESCAPE = 27
# OpenCV ends the process when a display is named but cannot be reached, so another process tries first.
_TRIAL = "import cv2; cv2.namedWindow('trial'); cv2.waitKey(1); cv2.destroyAllWindows()"


def no_display() -> str:
    """Return why no window can be opened here, or an empty string when one can."""
    if sys.platform.startswith("linux") and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        return "no display"
    modules = list(sys.modules)
    if sys.platform.startswith("linux") and "av" in modules and modules.index("av") < modules.index("cv2"):
        return "PyAV was imported before OpenCV, whose windows hang then; import cv2 first"
    try:
        trial = subprocess.run([sys.executable, "-c", _TRIAL], capture_output=True, timeout=30)
    except subprocess.TimeoutExpired:
        return "the display does not answer"
    return "" if trial.returncode == 0 else "OpenCV cannot open a window on the display"


class Window:
    """Show pictures and obey keys: space, n, s, +, -, t, q and Escape.

    Args:
        controls: what the keys change.
        stop: ends a pause when it is set.
    """

    def __init__(self, controls: Controls, stop: Event) -> None:
        self._controls, self._stop = controls, stop
        os.environ.setdefault("QT_LOGGING_RULES", "*.warning=false")  # it misses fonts that no window of ours needs
        cv2.namedWindow(_TITLE, cv2.WINDOW_NORMAL | cv2.WINDOW_KEEPRATIO | cv2.WINDOW_GUI_NORMAL)
        self._sized = False

    def show(self, image_bgr: np.ndarray, wait_s: float = 0.0) -> bool:
        """Show a picture, wait, and as long as the user pauses; True when a screenshot is wanted."""
        if not self._sized:
            cv2.resizeWindow(_TITLE, image_bgr.shape[1], image_bgr.shape[0])
            self._sized = True
        cv2.imshow(_TITLE, image_bgr)
        wanted = self._obey(cv2.waitKey(max(round(1000 * wait_s), 1)))
        while self._controls.paused and not self._controls.quit and not self._stop.is_set():
            key = cv2.waitKey(50)
            if key & 0xFF == ord("n"):
                break
            wanted |= self._obey(key)
        return wanted

    def close(self) -> None:
        """Close the window."""
        cv2.destroyWindow(_TITLE)
        cv2.waitKey(1)

    def _obey(self, key: int) -> bool:
        """Do what a key says; True when it asks for a screenshot."""
        controls, letter = self._controls, chr(key & 0xFF).lower() if key >= 0 else ""
        if letter == " ":
            controls.paused = not controls.paused
        elif letter in {"+", "="}:
            controls.conf = min(round(controls.conf + 0.05, 2), 0.95)
        elif letter in {"-", "_"}:
            controls.conf = max(round(controls.conf - 0.05, 2), controls.lowest)
        elif letter == "t":
            controls.tracks = not controls.tracks
        elif letter == "q" or letter == chr(_ESCAPE) or self._closed():
            controls.quit = True
        return letter == "s"

    def _closed(self) -> bool:
        return bool(cv2.getWindowProperty(_TITLE, cv2.WND_PROP_VISIBLE) < 1)
