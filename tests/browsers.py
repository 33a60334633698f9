"""A real browser for tests: Chromium without a window, driven by selenium; and servers for the pages that it opens."""

from __future__ import annotations

import contextlib
import functools
import http.server
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
PATIENCE = 120  # seconds until a page that does not do what it should fails its test


def start_browser(*flags: str):
    """Returns a browser's WebDriver; skips the test where none is installed."""
    selenium = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    driver = shutil.which("chromedriver")
    if not browser or not driver:
        pytest.skip(f"needs {' or '.join(BROWSERS)}, and chromedriver")
    options = selenium.ChromeOptions()
    options.binary_location = browser
    for flag in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", *flags):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    # The driver's path is given, or selenium would look for one on the network.
    return selenium.Chrome(options=options, service=selenium.ChromeService(driver))


def wait_for(browser, condition: Callable[[], object]) -> object:
    """Returns what a condition returns as soon as that is true."""
    from selenium.webdriver.support.ui import WebDriverWait

    return WebDriverWait(browser, PATIENCE, 0.05).until(lambda _: condition())


def text(browser, identifier: str) -> str:
    """The text of an element that the page shows."""
    from selenium.webdriver.common.by import By

    return browser.find_element(By.ID, identifier).text


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
