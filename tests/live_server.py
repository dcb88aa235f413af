"""A server of foredraft in a thread, on a free port of this machine."""

from __future__ import annotations

import json
import logging
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from time import sleep
from typing import Any

import uvicorn

import foredraft
from foredraft.server.app import create_app
from foredraft.server.engine import Engine
from foredraft.server.logs import JsonLines
from foredraft.server.run import bind
from foredraft.server.settings import ServerSettings

PATIENCE = 60.0
TEXTS = [f"w{5 + i} w9 w{30 + i} " * (1 + i % 7) for i in range(23)]


@dataclass
class Live:
    """A server that runs."""

    url: str
    engine: Engine
    lines: list[str]
    stop: Any

    def call(self, path: str, body: Any = None, headers: dict[str, str] | None = None, method: str | None = None,
             raw: bytes | None = None) -> tuple[int, Any, dict[str, str]]:
        """Status, JSON (or text) and headers of an answer."""
        data = raw if raw is not None else None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, {"content-type": "application/json"} | (headers or {}),
                                         method=method)
        try:
            answer = urllib.request.urlopen(request, timeout=PATIENCE)
        except urllib.error.HTTPError as error:
            answer = error
        with answer:
            text, found = answer.read().decode(), dict(answer.headers.items())
        is_json = found.get("content-type", "").startswith("application/json")
        return answer.status, json.loads(text) if is_json else text, found

    def logged(self) -> list[dict]:
        return [json.loads(line) for line in self.lines]


def wait_until(condition, what: str) -> None:
    for _ in range(int(PATIENCE / 0.01)):
        if condition():
            return
        sleep(0.01)
    raise AssertionError(f"waited in vain: {what}")


@contextmanager
def live(model, is_warm: bool = False, **settings) -> Iterator[Live]:
    """Serve a model in a thread. is_warm: kernels are compiled first, as `foredraft serve` does it."""
    settings = dict(name="tiny", batch_size=4, max_tokens=64, shutdown_timeout=PATIENCE) | settings
    listening = bind("127.0.0.1", 0)
    app = create_app(model, ServerSettings(**settings))
    if is_warm:
        app.state.engine.warm_up()
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False, server_header=False, ws="none"))
    lines: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(JsonLines().format(record))

    logger, keep = logging.getLogger("foredraft.server"), Keep()
    logger.addHandler(keep)
    logger.setLevel(logging.INFO)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()

    def stop() -> None:
        server.should_exit = True
        thread.join(PATIENCE)
        assert not thread.is_alive()

    try:
        wait_until(lambda: server.started, "the server starts")
        yield Live(f"http://127.0.0.1:{listening.getsockname()[1]}", app.state.engine, lines, stop)
    finally:
        stop()
        logger.removeHandler(keep)
        listening.close()


def endless(path):
    """The tiny model; random weights would end a text too early to see anything."""
    model = foredraft.load(path, drafter="lookup")
    model.target.end_token = -1
    return model
