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

#: That a browser may take to start or to answer; far more than it takes where a processor is free.
SECONDS = 300
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
def start_chromium(profile):
    """A :class:`Tab` of a browser of its own that ends with it.

    Args:
        profile: An empty folder for the browser.
    """
    flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]
    flags += [f"--user-data-dir={profile}", "--remote-debugging-port=0", "--disable-background-networking"]
    process = subprocess.Popen(
        [find_chromium(), *flags, "about:blank"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        address = _await_address(process, Path(profile) / "DevToolsActivePort")
        with connect(address, max_size=None, open_timeout=SECONDS, ping_interval=None) as socket:
            tab = Tab(socket)
            tab.send("Page.enable")
            yield tab
    finally:
        process.terminate()
        process.wait(timeout=60)


def _await_address(process, file, seconds=SECONDS):
    """The socket of the first tab, once the browser has written its port."""
    deadline = time.monotonic() + seconds
    while not (file.exists() and file.read_text().count("\n")):
        assert process.poll() is None, f"the browser ended with {process.returncode}"
        assert time.monotonic() < deadline, f"the browser did not start within {seconds} s"
        time.sleep(0.05)
    port = file.read_text().splitlines()[0]
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/json/list", timeout=SECONDS) as response:
        [address] = [tab["webSocketDebuggerUrl"] for tab in json.load(response) if tab["type"] == "page"]
    return address


class Tab:
    """A page that is open.

    Args:
        socket: To it.
    """

    def __init__(self, socket):
        self.socket = socket
        self.numbers = itertools.count(1)
        self.events = []

    def send(self, method, **parameters):
        """Send a command and return its result."""
        number = next(self.numbers)
        self.socket.send(json.dumps({"id": number, "method": method, "params": parameters}))
        while (message := json.loads(self.socket.recv(timeout=SECONDS))).get("id") != number:
            self.events.append(message["method"])
        assert "error" not in message, message
        return message["result"]

    def open(self, path, size=(1200, 900), scheme="light"):
        """Show a file.

        Args:
            path: The file.
            size: Of the window.
            scheme: light or dark.
        """
        self.send("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        width, height = size
        mobile = width < 600
        self.send("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=mobile)
        self.events.clear()
        self.send("Page.navigate", url=Path(path).resolve().as_uri())
        while "Page.loadEventFired" not in self.events:
            self.events.append(json.loads(self.socket.recv(timeout=SECONDS))["method"])

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
