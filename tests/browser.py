"""Headless Chromium driven over its DevTools protocol: pages as people use them."""

from __future__ import annotations

import base64
import json
import os
import shutil
import signal
import subprocess
import time
import urllib.request
from pathlib import Path
from types import TracebackType
from typing import Any

from websockets.sync.client import connect

KEYS = {" ": ("Space", 32), "Enter": ("Enter", 13), "Tab": ("Tab", 9)}


class Browser:
    """One tab. `said` collects what the console and the network complained about.

    Args:
        folder: for the browser's profile.
    """

    def __init__(self, folder: Path) -> None:
        browser = shutil.which("chromium") or shutil.which("google-chrome")
        assert browser, "pages are tested in Chromium: install the package 'chromium'"
        profile = folder / "profile"
        self._process = subprocess.Popen(
            [browser, "--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run",
             "--disable-background-networking", "--disable-component-update", "--disable-sync",
             "--autoplay-policy=no-user-gesture-required", "--hide-scrollbars",
             "--remote-debugging-port=0", f"--user-data-dir={profile}", "about:blank"],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        file = profile / "DevToolsActivePort"
        _wait(lambda: file.exists() and "\n" in file.read_text(), "the browser did not start")
        with urllib.request.urlopen(f"http://127.0.0.1:{file.read_text().split()[0]}/json") as got:
            target = next(one for one in json.load(got) if one["type"] == "page")
        self._socket = connect(target["webSocketDebuggerUrl"], max_size=None)
        self._number = 0
        self.said: list[str] = []
        for domain in ("Page", "Runtime", "Log", "DOM"):
            self.call(f"{domain}.enable")

    def __enter__(self) -> Browser:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._socket.close()
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def call(self, method: str, **values: Any) -> dict[str, Any]:
        """A command of the protocol and its answer."""
        self._number += 1
        self._socket.send(json.dumps({"id": self._number, "method": method, "params": values}))
        while True:
            message = json.loads(self._socket.recv(timeout=60))
            if message.get("id") == self._number:
                assert "error" not in message, (method, message["error"])
                return dict(message["result"])
            self._note(message)

    def _note(self, message: dict[str, Any]) -> None:
        method, values = message.get("method"), message.get("params", {})
        if method == "Runtime.exceptionThrown":
            self.said.append(json.dumps(values["exceptionDetails"])[:500])
        elif method == "Log.entryAdded" and values["entry"]["level"] in ("error", "warning"):
            self.said.append(f"{values['entry']['text']} {values['entry'].get('url', '')}")
        elif method == "Runtime.consoleAPICalled" and values["type"] in ("error", "warning"):
            self.said.append(json.dumps(values["args"])[:500])

    def run(self, script: str) -> Any:
        """The value of a JavaScript expression, awaited."""
        got = self.call(
            "Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True
        )
        assert "exceptionDetails" not in got, (script, got["exceptionDetails"])
        return got["result"].get("value")

    def until(self, script: str, seconds: float = 60) -> Any:
        """Wait until an expression is true; its value."""
        return _wait(lambda: self.run(script), script, seconds)

    def open(self, address: str) -> None:
        """Load a page and wait until it is there."""
        self.call("Page.navigate", url=address)
        self.until(
            f"location.href.startsWith({json.dumps(address)}) && document.readyState == 'complete'"
        )

    def key(self, name: str) -> None:
        """Press and release a key where the focus is."""
        code, number = KEYS.get(name, (f"Key{name.upper()}", ord(name.upper()[0])))
        text = {"Enter": "\r", "Tab": ""}.get(name, name)
        same = {"key": name, "code": code, "windowsVirtualKeyCode": number}
        self.call("Input.dispatchKeyEvent", type="keyDown", text=text, **same)
        self.call("Input.dispatchKeyEvent", type="keyUp", **same)

    def type(self, words: str) -> None:
        """Text where the focus is."""
        self.call("Input.insertText", text=words)

    def upload(self, selector: str, *files: Path) -> None:
        """Choose files in a file input."""
        root = self.call("DOM.getDocument")["root"]["nodeId"]
        node = self.call("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.call("DOM.setFileInputFiles", nodeId=node, files=[str(file) for file in files])

    def window(self, width: int, height: int = 900, dark: bool = False) -> None:
        """Size in pixels, and whether the page is asked for its dark look."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height,
                  deviceScaleFactor=1, mobile=False)  # fmt: skip
        look = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.call("Emulation.setEmulatedMedia", features=look)

    def screenshot(self, file: Path, height: int = 0) -> None:
        """The page as PNG: whole, or its first `height` pixels."""
        size = self.run("[document.documentElement.clientWidth, "
                        "document.documentElement.scrollHeight]")  # fmt: skip
        clip = {"x": 0, "y": 0, "width": size[0], "height": min(height or size[1], size[1]),
                "scale": 1}  # fmt: skip
        got = self.call("Page.captureScreenshot", clip=clip, captureBeyondViewport=True)
        file.write_bytes(base64.b64decode(got["data"]))

    def faults(self) -> list[str]:
        """What axe-core finds that is serious or critical: rule and first element."""
        import axe_core_python

        script = Path(axe_core_python.__file__).with_name("axe.min.js").read_text(encoding="utf-8")
        if not self.run("typeof axe != 'undefined'"):
            self.call("Runtime.evaluate", expression=script)
        found = self.run("axe.run({ preload: false, resultTypes: ['violations'] })"
                         ".then(found => found.violations)")  # fmt: skip
        return [
            f"{one['id']}: {one['nodes'][0]['html'][:200]}"
            for one in found
            if one["impact"] in ("serious", "critical")
        ]

    def overflow(self) -> list[str]:
        """Elements that stick out of the window, those in their own scrollers left out."""
        return list(
            self.run("""
          [...document.querySelectorAll("main *:not(svg *)")].filter(node => {
            const box = node.getBoundingClientRect();
            return !node.closest(".list") && (box.right > innerWidth + 1 || box.left < -1);
          }).map(node => node.outerHTML.slice(0, 120))""")
        )


def _wait(test: Any, words: str, seconds: float = 60) -> Any:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if value := test():
            return value
        time.sleep(0.02)
    raise AssertionError(f"waited {seconds} s: {words}")
