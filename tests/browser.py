"""A headless Chromium, driven over its DevTools pipe: what a page requests, what it complains about, and pictures."""

import base64
import json
import os
import shutil
import subprocess
from contextlib import contextmanager

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
FLAGS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--remote-debugging-pipe")


def find_browser():
    """The browser of HGSP_BROWSER, else one on PATH, else None."""
    return os.environ.get("HGSP_BROWSER") or next(filter(None, map(shutil.which, NAMES)), None)


class Browser:
    """One tab; ``events`` are all that it has reported."""

    def __init__(self, send, receive):
        self._send, self._receive, self._sent = send, receive, 0
        self.events = []
        self._session = None
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Network", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method, **arguments):
        self._sent += 1
        message = {"id": self._sent, "method": method, "params": arguments}
        if self._session:
            message["sessionId"] = self._session
        self._send.write(json.dumps(message).encode() + b"\0")
        self._send.flush()
        while (answer := self._next()).get("id") != self._sent:
            self.events.append(answer)
        assert "error" not in answer, answer
        return answer["result"]

    def open(self, url, width, height, dark=False, media=""):
        """Load a page in a window of this size and wait until it is complete."""
        self.events.clear()
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.call("Emulation.setDeviceMetricsOverride", **size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", media=media, features=[scheme])
        self.call("Page.navigate", url=url)
        while not any(event["method"] == "Page.loadEventFired" for event in self.events):
            self.events.append(self._next())

    def evaluate(self, expression):
        return self.call("Runtime.evaluate", expression=expression, returnByValue=True)["result"].get("value")

    def picture(self, path, whole=False):
        data = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)["data"]
        path.write_bytes(base64.b64decode(data))

    def requests(self):
        """URLs asked for, but for those inside the page."""
        urls = [e["params"]["request"]["url"] for e in self.events if e["method"] == "Network.requestWillBeSent"]
        return [url for url in urls if not url.startswith("data:")]

    def complaints(self):
        methods = ("Log.entryAdded", "Runtime.consoleAPICalled", "Runtime.exceptionThrown")
        return [event for event in self.events if event["method"] in methods]

    def _next(self):
        message = bytearray()
        while (byte := self._receive.read(1)) != b"\0":
            assert byte, "the browser has gone"
            message += byte
        return json.loads(message)


@contextmanager
def browser(path, profile):
    """Start the browser; its pipe is file descriptors 3 and 4."""
    (to_read, to_write), (from_read, from_write) = os.pipe(), os.pipe()
    # the shell puts the ends in their places: file descriptors of this process may be 3 or 4 themselves
    script = f'exec "$@" 3<&{to_read} 4>&{from_write}'
    command = ["bash", "-c", script, "bash", path, *FLAGS, f"--user-data-dir={profile}"]
    process = subprocess.Popen(command, pass_fds=(to_read, from_write), stderr=subprocess.DEVNULL)
    os.close(to_read)
    os.close(from_write)
    with os.fdopen(to_write, "wb") as send, os.fdopen(from_read, "rb") as receive:
        try:
            yield Browser(send, receive)
        finally:
            process.kill()
            process.wait()
