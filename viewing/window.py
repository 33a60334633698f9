"""The window of --show."""

from __future__ import annotations

import subprocess
import sys

import cv2
import numpy as np

from utils import StopSignal, UserError
from viewing.video import quiet

SCREEN_WIDTH = 1280  # maximum of a new window, and of videos without --width
TITLE = "Fast-SCNN"


class Window:
    """A window that shows the latest picture. Any thread may set `latest`; the methods belong to the main thread."""

    def __init__(self) -> None:
        self.latest: np.ndarray | None = None  # (H, W, 3) BGR, until it is shown
        self.opened = False
        self.closed = False  # by the user

    def refresh(self, wait_ms: int = 1) -> None:
        """Shows the latest picture, and checks whether the user closed the window or pressed q or escape."""
        picture = self.latest
        if picture is not None:
            self.latest = None
            if not self.opened:
                with quiet():
                    cv2.namedWindow(TITLE, cv2.WINDOW_NORMAL | cv2.WINDOW_KEEPRATIO | cv2.WINDOW_GUI_NORMAL)
                width = min(SCREEN_WIDTH, picture.shape[1])
                cv2.resizeWindow(TITLE, width, picture.shape[0] * width // picture.shape[1])
                self.opened = True
            cv2.imshow(TITLE, picture)
        key = cv2.waitKey(wait_ms) & 0xFF
        gone = self.opened and cv2.getWindowProperty(TITLE, cv2.WND_PROP_VISIBLE) < 1
        self.closed = self.closed or gone or key in (ord("q"), 27)  # 27: escape

    def linger(self, stop: StopSignal) -> None:
        """Keeps the window until it is closed or a signal comes."""
        while not (stop or self.closed):
            self.refresh(wait_ms=100)


def check_display() -> None:
    """Raises UserError if no window opens, tried in another process: without a display, OpenCV ends the process."""
    script = "import cv2; cv2.namedWindow('probe'); cv2.waitKey(1)"
    if subprocess.run([sys.executable, "-c", script], capture_output=True).returncode:
        raise UserError("--show found no display, or OpenCV has no windows; leave it out and look at the written file")
