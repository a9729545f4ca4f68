"""A real browser for tests: headless Chromium, told what to do over the WebDriver protocol."""

import base64
import contextlib
import json
import re
import shutil
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

CHROMIUM, CHROMEDRIVER = shutil.which("chromium"), shutil.which("chromedriver")

ARGUMENTS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--force-device-scale-factor=1",
)


class Browser:
    """One window."""

    def __init__(self, address: str, profile: str) -> None:
        self._address = address
        options = {"binary": CHROMIUM, "args": [*ARGUMENTS, f"--user-data-dir={profile}"]}
        wanted = {"browserName": "chrome", "goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}
        session = self._post("/session", capabilities={"alwaysMatch": wanted})["sessionId"]
        self._address += f"/session/{session}"

    def open(self, page: Path, *, width: int = 1280, height: int = 900, dark: bool = False) -> None:
        """Load a page from disk and wait until it has drawn everything."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.command("Emulation.setDeviceMetricsOverride", **size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.command("Emulation.setEmulatedMedia", media="", features=[scheme])
        self._post("/url", url=page.absolute().as_uri())
        self.wait("'ready' in document.body.dataset")

    def run(self, script: str, *arguments: Any) -> Any:
        """What a script returns, or what its promise comes to."""
        return self._post("/execute/sync", script=script, args=list(arguments))

    def wait(self, condition: str, seconds: float = 60) -> None:
        """Until it is true."""
        end = time.monotonic() + seconds
        while not self.run(f"return {condition}"):
            if time.monotonic() > end:
                raise TimeoutError(f"{condition} did not come true; the console says {self.console()}")
            time.sleep(0.05)

    def console(self) -> list[str]:
        """What the page has complained of since this was last asked."""
        return [entry["message"] for entry in self._post("/se/log", type="browser") if entry["level"] != "DEBUG"]

    def command(self, name: str, **parameters: Any) -> Any:
        """One of Chromium's own."""
        return self._post("/goog/cdp/execute", cmd=name, params=parameters)

    def screenshot(self, path: Path) -> None:
        """The whole page."""
        path.write_bytes(base64.b64decode(self.command("Page.captureScreenshot", captureBeyondViewport=True)["data"]))

    def point_at(self, x: float, y: float) -> None:
        """Move the mouse there, in pixels of the window."""
        self.command("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def quit(self) -> None:
        with self._request("DELETE", "", None):
            pass

    def _post(self, path: str, **content: Any) -> Any:
        with self._request("POST", path, json.dumps(content).encode()) as response:
            return json.load(response)["value"]

    def _request(self, method: str, path: str, content: bytes | None) -> Any:
        request = urllib.request.Request(self._address + path, content, method=method)
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        return opener.open(request, timeout=120)


@contextlib.contextmanager
def browser() -> Iterator[Browser]:
    """A browser of its own, with an empty profile."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        log = Path(profile, "driver.log")
        with (
            log.open("wb") as output,
            subprocess.Popen([CHROMEDRIVER, "--port=0"], stdout=output, stderr=subprocess.STDOUT) as driver,
        ):
            try:
                window = Browser(f"http://127.0.0.1:{_port(log)}", profile)
                try:
                    yield window
                finally:
                    window.quit()
            finally:
                driver.terminate()


def _port(log: Path) -> int:
    end = time.monotonic() + 30
    while not (found := re.search(r"started successfully on port (\d+)", log.read_text())):
        if time.monotonic() > end:
            raise TimeoutError(f"chromedriver did not start: {log.read_text()}")
        time.sleep(0.05)
    return int(found[1])
