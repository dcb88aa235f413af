"""A replica of Ray Serve: one model and one engine, which answer the requests that the gateway passes on."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

from ray import serve
from starlette.types import Message

import foredraft
from foredraft.engine.runtime.continuous_batches import MEMORY_SHARE
from foredraft.memory import available_memory
from foredraft.server.app import create_app
from foredraft.server.logs import configure, log
from foredraft.server.settings import ServerSettings


class Replica:
    """One engine and its application.

    Parameters
    ----------
    loading : dict
        Arguments of `foredraft.load`.
    settings : ServerSettings
    threads : int
        CPU threads of this replica. Unless `kv_memory` is set, its part of the machine's memory is its part of the cores.
    """

    async def __init__(self, loading: dict[str, Any], settings: ServerSettings, threads: int):
        configure()
        if settings.kv_memory is None:
            part = min(threads / (os.cpu_count() or 1), 1)
            settings = replace(settings, kv_memory=int(available_memory() * MEMORY_SHARE * part))
        # the gateway has checked key and host
        self.app = create_app(foredraft.load(**loading), replace(settings, api_key=None), is_local=False)
        self.engine = self.app.state.engine
        self.engine.warm_up()
        self._lifespan = self.app.router.lifespan_context(self.app)
        await self._lifespan.__aenter__()
        self.id = serve.get_replica_context().replica_id.unique_id
        log("serving", model=settings.name, replica=self.id, drafter=self.engine.model.drafter.name)

    async def __del__(self):
        # Ray Serve calls this after the last request, and also where __init__ has failed
        if hasattr(self, "id"):
            await self._lifespan.__aexit__(None, None, None)
            log("stopped", replica=self.id)

    def check_health(self) -> None:
        """Ray Serve calls this regularly, and replaces the replica if it raises an exception."""
        if not self.engine.is_alive:
            raise RuntimeError("the engine has failed")

    def state(self) -> dict[str, Any]:
        """What /health, /ready and /metrics need to know about this replica."""
        engine = self.engine
        return {"id": self.id, "is_alive": engine.is_alive, "is_ready": engine.is_ready,
                "running": engine.num_running, "waiting": engine.num_waiting,
                "metrics": engine.metrics.render(engine).decode()}

    async def __call__(self, scope: dict[str, Any], body: bytes) -> AsyncIterator[list[Message]]:
        """The ASGI messages of the application's response, as many at once as there are."""
        messages: asyncio.Queue[Message | None] = asyncio.Queue()
        request = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive() -> Message:
            if request:
                return request.pop()
            # a client that disconnects cancels this call, and with it the task
            return await asyncio.Future()

        task = asyncio.ensure_future(self.app(scope, receive, messages.put))
        task.add_done_callback(lambda _: messages.put_nowait(None))
        try:
            is_done = False
            while not is_done:
                found = [await messages.get()]
                while not messages.empty():
                    found.append(messages.get_nowait())
                is_done = found[-1] is None
                if ready := [message for message in found if message is not None]:
                    yield ready
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
