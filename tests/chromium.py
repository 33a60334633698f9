"""A headless Chromium, for tests of pages. Its driver is the system's: selenium downloads nothing."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DRIVER = shutil.which("chromedriver")
needs_browser = pytest.mark.skipif(
    not (BROWSER and DRIVER), reason="no Chromium or chromedriver: apt-get install chromium chromium-driver"
)


class Page:
    """An open page.

    Attributes:
        driver: selenium's.
    """

    def __init__(self, driver: webdriver.Chrome):
        self.driver = driver

    def open(self, folder: Path, width: int = 1280, height: int = 900, dark: bool = False) -> None:
        """Opens a report from disk, in a window of this size, and waits until it is drawn."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        still = {"name": "prefers-reduced-motion", "value": "reduce"}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme, still]})
        self.driver.get((folder / "index.html").absolute().as_uri())
        self.settle()

    def run(self, script: str, *arguments: object) -> object:
        """Runs a script in the page; returns what it returns."""
        return self.driver.execute_script(script, *arguments)

    def settle(self) -> None:
        """Waits until every picture in view is decoded and what changed is drawn."""
        self.driver.execute_async_script(
            "const done = arguments[0];"
            "const images = [...document.querySelectorAll('dialog[open] img')].map((image) => image.decode());"
            "Promise.all(images).then(() => requestAnimationFrame(() => requestAnimationFrame(done)));"
        )

    def find(self, selector: str) -> WebElement:
        """Returns the first element of a selector."""
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def texts(self, selector: str) -> list[str]:
        """Returns the text of each element of a selector, hidden ones too."""
        return self.run("return [...document.querySelectorAll(arguments[0])].map((e) => e.textContent)", selector)

    def pixels(self, selector: str) -> np.ndarray:
        """Returns what an element looks like: (H, W, 3) uint8 RGB."""
        self.settle()
        png = np.frombuffer(self.find(selector).screenshot_as_png, np.uint8)
        return cv2.cvtColor(cv2.imdecode(png, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)

    def errors(self) -> list[str]:
        """Returns what the console got since it was last asked."""
        return [entry["message"] for entry in self.driver.get_log("browser")]


@contextlib.contextmanager
def browser() -> Iterator[Page]:
    """Yields a page of a browser, which is closed at the end."""
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for flag in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    try:
        yield Page(driver)
    finally:
        driver.quit()
