"""A headless Chromium, driven over its DevTools protocol."""

import base64
import itertools
import json
import shutil
import subprocess
import time
import urllib.request
from contextlib import contextmanager
from pathlib import Path

from websockets.sync.client import connect

#: Names of the browser, as systems have them.
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def find_chromium():
    """The path of the browser."""
    for name in NAMES:
        if path := shutil.which(name):
            return path
    raise FileNotFoundError(
        f"the tests of pages need a browser, none of {', '.join(NAMES)} is on the path: apt-get install chromium"
    )


@contextmanager
def open_page(path, profile, size=(1200, 900), scheme="light"):
    """A :class:`Tab` with a file, in a browser of its own that ends with it.

    Args:
        path: The file.
        profile: An empty folder for the browser.
        size: Of the window.
        scheme: light or dark.
    """
    flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]
    flags += [f"--user-data-dir={profile}", "--remote-debugging-port=0", "--disable-background-networking"]
    process = subprocess.Popen(
        [find_chromium(), *flags, "about:blank"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        tab = Tab(_await_address(process, Path(profile) / "DevToolsActivePort"))
        tab.send("Page.enable")
        tab.send("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        width, height = size
        tab.send(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        tab.send("Page.navigate", url=Path(path).resolve().as_uri())
        tab.await_event("Page.loadEventFired")
        yield tab
        tab.socket.close()
    finally:
        process.terminate()
        process.wait(timeout=30)


def _await_address(process, file, seconds=120):
    """The socket of the first tab, once the browser has written its port."""
    deadline = time.monotonic() + seconds
    while not (file.exists() and file.read_text().count("\n")):
        assert process.poll() is None, f"the browser ended with {process.returncode}"
        assert time.monotonic() < deadline, f"the browser did not start within {seconds} s"
        time.sleep(0.05)
    port = file.read_text().splitlines()[0]
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/json/list", timeout=60) as response:
        [address] = [tab["webSocketDebuggerUrl"] for tab in json.load(response) if tab["type"] == "page"]
    return address


class Tab:
    """A page that is open.

    Args:
        address: Its socket.
    """

    def __init__(self, address):
        self.socket = connect(address, max_size=None, open_timeout=60)
        self.numbers = itertools.count(1)
        self.events = []

    def send(self, method, **parameters):
        """Send a command and return its result."""
        number = next(self.numbers)
        self.socket.send(json.dumps({"id": number, "method": method, "params": parameters}))
        while (message := json.loads(self.socket.recv(timeout=120))).get("id") != number:
            self.events.append(message["method"])
        assert "error" not in message, message
        return message["result"]

    def await_event(self, name):
        """Wait for something that the page reports, unless it has already."""
        while name not in self.events:
            self.events.append(json.loads(self.socket.recv(timeout=120))["method"])

    def evaluate(self, expression):
        """The value of a JavaScript expression."""
        result = self.send("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def press(self, key):
        """Press and release a key, of those that write nothing: ArrowRight, Home …"""
        codes = {"End": 35, "Home": 36, "ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40}
        for kind in ("keyDown", "keyUp"):
            self.send("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=codes[key])

    def click(self, x, y):
        """Click with the left button at a place of the window."""
        for kind in ("mousePressed", "mouseReleased"):
            self.send("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def screenshot(self, path):
        """Write the whole page as a PNG."""
        picture = self.send("Page.captureScreenshot", captureBeyondViewport=True)
        Path(path).write_bytes(base64.b64decode(picture["data"]))
