"""A real browser for tests of pages: Chromium without a window, driven by selenium; and a server for what it opens.

Tests that use it are marked `browser`. Where there is no selenium, Chromium or driver, they are skipped.
"""

from __future__ import annotations

import contextlib
import functools
import http.server
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
PATIENCE = 120  # seconds until a page that does not do what it should fails its test


class Page:
    """The page that a browser shows.

    Attributes:
        driver: selenium's.
    """

    def __init__(self, driver):
        self.driver = driver

    def look(self, width: int = 1280, height: int = 900, dark: bool = False) -> None:
        """Sets the size of the window, and what the system prefers."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        still = {"name": "prefers-reduced-motion", "value": "reduce"}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme, still]})

    def run(self, script: str, *arguments: object) -> object:
        """Runs a script in the page; returns what it returns."""
        return self.driver.execute_script(script, *arguments)

    def settle(self) -> None:
        """Waits until every picture in an open dialog is decoded and what changed is drawn."""
        self.driver.execute_async_script(
            "const done = arguments[0];"
            "const images = [...document.querySelectorAll('dialog[open] img')].map((image) => image.decode());"
            "Promise.all(images).then(() => requestAnimationFrame(() => requestAnimationFrame(done)));"
        )

    def wait_for(self, condition: Callable[[], object]) -> object:
        """Returns what a condition returns as soon as that is true."""
        from selenium.webdriver.support.ui import WebDriverWait

        return WebDriverWait(self.driver, PATIENCE, 0.05).until(lambda _: condition())

    def find(self, selector: str):
        """Returns the first element of a selector."""
        return self.driver.find_element("css selector", selector)

    def text(self, identifier: str) -> str:
        """Returns the text of an element, as far as the page shows it."""
        return self.find(f"#{identifier}").text

    def texts(self, selector: str) -> list[str]:
        """Returns the text of each element of a selector, hidden ones too."""
        return self.run("return [...document.querySelectorAll(arguments[0])].map((e) => e.textContent)", selector)

    def press(self, *keys: str) -> None:
        """Presses keys, wherever the focus is: those of selenium by name, such as ARROW_LEFT, others as they are."""
        from selenium.webdriver import ActionChains, Keys

        ActionChains(self.driver).send_keys(*(getattr(Keys, key, key) for key in keys)).perform()

    def point(self, selector: str, across: float = 0, down: float = 0) -> None:
        """Moves the pointer to so many pixels from the middle of an element."""
        from selenium.webdriver import ActionChains

        element = self.find(selector)
        ActionChains(self.driver).move_to_element_with_offset(element, round(across), round(down)).perform()

    def pixels(self, selector: str) -> np.ndarray:
        """Returns what an element looks like: (H, W, 3) uint8 RGB."""
        self.settle()
        png = np.frombuffer(self.find(selector).screenshot_as_png, np.uint8)
        return cv2.cvtColor(cv2.imdecode(png, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)

    def errors(self) -> list[str]:
        """Returns the errors that the console got since it was last asked."""
        return [entry["message"] for entry in self.driver.get_log("browser") if entry["level"] == "SEVERE"]


@contextlib.contextmanager
def open_browser(*flags: str) -> Iterator[Page]:
    """Yields the page of a browser, which is closed at the end; skips the test where none is installed."""
    selenium = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    driver_path = shutil.which("chromedriver")
    if not browser or not driver_path:
        pytest.skip("no Chromium or chromedriver: apt-get install chromium chromium-driver")
    options = selenium.ChromeOptions()
    options.binary_location = browser
    for flag in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", *flags):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    # The driver's path is given, or selenium would look for one on the network.
    driver = selenium.Chrome(options=options, service=selenium.ChromeService(driver_path))
    try:
        yield Page(driver)
    finally:
        driver.quit()


def luminance(color: str) -> float:
    """Returns the relative luminance of #rrggbb. Source: WCAG 2.2."""
    parts = [int(color.strip()[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))


def contrast(first: str, second: str) -> float:
    """Returns the contrast ratio of two colors. Source: WCAG 2.2."""
    low, high = sorted((luminance(first), luminance(second)))
    return (high + 0.05) / (low + 0.05)


@contextlib.contextmanager
def plain_server(folder: Path) -> Iterator[str]:
    """Serves a folder as any static server does; yields its address."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args: object) -> None:
            pass

    handler = functools.partial(Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/"
        finally:
            server.shutdown()
