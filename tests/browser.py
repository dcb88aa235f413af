"""A real headless Chromium for tests, spoken to over its debugging pipe: no driver, no port, no other package."""

from __future__ import annotations

import json
import os
import select
import shutil
import subprocess
from pathlib import Path

NAMES = ("chromium", "chromium-browser", "chromium-headless-shell", "google-chrome")
PATIENCE = 60
PROBE = """({
  scroll: document.documentElement.scrollWidth,
  broken: [...document.images].filter(i => !i.complete || !i.naturalWidth).map(i => i.src.slice(0, 80)),
  images: document.images.length,
  svgs: [...document.querySelectorAll('figure svg')].map(s => s.getBoundingClientRect().width),
  ground: getComputedStyle(document.body).backgroundColor, font: getComputedStyle(document.body).fontSize,
  wide: [...document.querySelectorAll('body *')].filter(e => !e.closest('.scroll, svg') &&
        e.getBoundingClientRect().right > window.innerWidth + 1).map(e => e.outerHTML.slice(0, 80)),
})"""


def find() -> str | None:
    return next((path for name in NAMES if (path := shutil.which(name))), None)


class Browser:
    """`with Browser(path) as browser: browser.open(...)`. The pipe carries JSON messages that end in a zero byte."""

    def __init__(self, program: str, profile: Path):
        ours_in, theirs_out = os.pipe()
        theirs_in, ours_out = os.pipe()

        def descriptors() -> None:
            # the browser reads on 3 and writes on 4; moved high first, so that neither covers the other
            high = [os.dup2(theirs_in, 63), os.dup2(theirs_out, 64)]
            os.dup2(high[0], 3)
            os.dup2(high[1], 4)

        self.process = subprocess.Popen(
            [program, "--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe", "--no-first-run",
             "--disable-dev-shm-usage", f"--user-data-dir={profile}", "about:blank"],
            close_fds=False, preexec_fn=descriptors, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        os.close(theirs_in)
        os.close(theirs_out)
        self.reader, self.writer = os.fdopen(ours_in, "rb"), os.fdopen(ours_out, "wb", buffering=0)
        self.rest, self.number, self.events = b"", 0, []

    def __enter__(self) -> Browser:
        target = next(one for one in self.call("Target.getTargets")["targetInfos"] if one["type"] == "page")
        attached = self.call("Target.attachToTarget", targetId=target["targetId"], flatten=True)
        self.session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.tell(f"{domain}.enable")
        return self

    def __exit__(self, *_exc) -> None:
        try:
            # asked to go, it takes its children along; killed, they would go on writing into the profile
            self.call("Browser.close")
            self.process.wait(PATIENCE)
        except (RuntimeError, OSError, subprocess.TimeoutExpired):
            self.process.kill()
            self.process.wait()
        self.reader.close()
        self.writer.close()

    def call(self, method: str, session: str | None = None, **parameters) -> dict:
        """The result of a command; events that come meanwhile are kept in `events`."""
        self.number += 1
        message = {"id": self.number, "method": method, "params": parameters} | ({"sessionId": session} if session else {})
        self.writer.write(json.dumps(message).encode() + b"\0")
        while True:
            answer = self._message()
            if answer.get("id") == self.number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                return answer["result"]
            self.events.append(answer)

    def tell(self, method: str, **parameters) -> dict:
        return self.call(method, self.session, **parameters)

    def _message(self) -> dict:
        while b"\0" not in self.rest:
            ready = select.select([self.reader], [], [], PATIENCE)[0]
            part = os.read(self.reader.fileno(), 1 << 20) if ready else b""
            if not part:
                raise RuntimeError("the browser has left" if ready else f"the browser was silent for {PATIENCE} seconds")
            self.rest += part
        one, self.rest = self.rest.split(b"\0", 1)
        return json.loads(one)

    def open(self, page: Path | str, width: int, dark: bool, height: int = 900) -> dict:
        """Load a page, a file or an address, at a width in CSS pixels and a theme.

        PROBE's findings, `errors` of console and scripts, `loaded`: what was asked for over any scheme but file and data.
        """
        self.tell("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600)
        theme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.tell("Emulation.setEmulatedMedia", features=[theme])
        self.events.clear()
        self.tell("Page.navigate", url=page if isinstance(page, str) else page.resolve().as_uri())
        while not any(event.get("method") == "Page.loadEventFired" for event in self.events):
            self.events.append(self._message())
        found = self.evaluate(PROBE)
        methods = {name: [event["params"] for event in self.events if event.get("method") == name] for name in (
            "Runtime.exceptionThrown", "Log.entryAdded", "Runtime.consoleAPICalled", "Network.requestWillBeSent")}
        urls = [event["request"]["url"] for event in methods.pop("Network.requestWillBeSent")]
        return found | {"errors": [event for events in methods.values() for event in events],
                        "loaded": [url for url in urls if not url.startswith(("file:", "data:"))]}

    def evaluate(self, script: str):
        """The value of an expression, of a promise when it has one."""
        found = self.tell("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        return found["result"].get("value")

    def press(self, key: str, modifiers: int = 0) -> None:
        """A key down and up; modifiers: 1 Alt, 2 Ctrl, 4 Meta, 8 Shift."""
        code = {"Enter": 13, "Escape": 27, "Tab": 9}[key]
        for kind in ("keyDown", "keyUp"):
            self.tell("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code,
                      modifiers=modifiers)

    def screenshot(self, path: Path) -> None:
        """The whole page, as PNG."""
        import base64

        data = self.tell("Page.captureScreenshot", captureBeyondViewport=True, format="png")["data"]
        path.write_bytes(base64.b64decode(data))
