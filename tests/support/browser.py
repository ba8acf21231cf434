"""Headless Chromium, driven by its DevTools protocol over a pipe."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any, Self

import pytest


class Browser:
    """A page in Chromium, and all that it asks the network for or complains about.

    Skips the test if no `chromium` is on PATH.

    Attributes:
        requests: The addresses that the page loaded.
        complaints: Its errors, and whatever it wrote to the console.
    """

    def __init__(self, profile: Path) -> None:
        program = shutil.which("chromium")
        if program is None:
            pytest.skip("no chromium on PATH: install Debian's package chromium")
        self.requests: list[str] = []
        self.complaints: list[str] = []
        self._last = 0
        self._session: str | None = None
        received, to_browser = os.pipe()
        from_browser, sent = os.pipe()
        # Chromium reads commands from descriptor 3 and writes to descriptor 4.
        script = f'exec "$@" 3<&{received} 4>&{sent}'
        options = [
            "--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run",
            "--remote-debugging-pipe", f"--user-data-dir={profile}", "about:blank",
        ]  # fmt: skip
        self._process = subprocess.Popen(
            ["bash", "-c", script, "bash", program, *options],
            pass_fds=(received, sent),
            stderr=subprocess.DEVNULL,
        )
        os.close(received)
        os.close(sent)
        self._out = os.fdopen(to_browser, "wb", buffering=0)
        self._in = os.fdopen(from_browser, "rb")
        target = self.do("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.do("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Network", "Runtime", "Log"):
            self.do(f"{domain}.enable")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._out.close()  # ends Chromium
        self._in.close()
        self._process.wait()

    def do(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send a command, and return its result."""
        self._last += 1
        command = {"id": self._last, "method": method, "params": parameters}
        if self._session:
            command["sessionId"] = self._session
        self._out.write(json.dumps(command).encode() + b"\0")
        while (message := self._next()).get("id") != self._last:
            pass
        assert "error" not in message, message
        result: dict[str, Any] = message["result"]
        return result

    def open(self, page: Path) -> None:
        """Load a file, and wait for its load event."""
        self.do("Page.navigate", url=page.as_uri())
        while self._next().get("method") != "Page.loadEventFired":
            pass

    def width(self, pixels: int, medium: str = "screen") -> None:
        """Give the page another width, as on a phone, or another medium."""
        self.do(
            "Emulation.setDeviceMetricsOverride",
            width=pixels, height=800, deviceScaleFactor=1, mobile=False,
        )  # fmt: skip
        self.do("Emulation.setEmulatedMedia", media=medium)

    def value(self, expression: str) -> Any:
        """Return the value of a JavaScript expression."""
        result = self.do("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def pdf(self) -> bytes:
        """Print the page."""
        return base64.b64decode(self.do("Page.printToPDF")["data"])

    def _next(self) -> dict[str, Any]:
        """Return the next message, after taking note of what it says."""
        text = bytearray()
        while (byte := self._in.read(1)) != b"\0":
            assert byte, "Chromium ended"
            text += byte
        message: dict[str, Any] = json.loads(text)
        parameters = message.get("params", {})
        match message.get("method"):
            case "Network.requestWillBeSent":
                self.requests.append(parameters["request"]["url"])
            case "Runtime.consoleAPICalled" | "Runtime.exceptionThrown" | "Log.entryAdded":
                self.complaints.append(json.dumps(parameters))
        return message
