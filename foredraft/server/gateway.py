"""The deployment before the replicas: it checks requests, and gives each to a replica, or to another if that one ends."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from typing import Any

from prometheus_client import CollectorRegistry, Counter, generate_latest
from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families
from ray.exceptions import RayError, RayTaskError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from foredraft.server.answers import event
from foredraft.server.errors import ApiError, json_response
from foredraft.server.logs import configure, log
from foredraft.server.metrics import Metrics
from foredraft.server.middleware import Checks
from foredraft.server.settings import ServerSettings
from foredraft.server.tgi import ROUTES

# A request that was lost with this many replicas is probably why they ended.
TRIES = 3
# Seconds to wait for the replicas' states.
STATE_TIMEOUT = 3.0
# The parts of an ASGI scope that can be sent to another process.
SCOPE = ("type", "asgi", "http_version", "method", "scheme", "path", "raw_path", "query_string", "headers", "client",
         "server")
# Headers of a replica's response that the gateway's middleware adds itself.
ADDED = (b"x-request-id", b"x-content-type-options")
# Metrics of the gateway. A replica does not see refused requests, so its own values are left out.
COUNTED_HERE = ("foredraft:http_responses", "foredraft:requests_refused", "foredraft:requests_retried")


class Lost(Exception):
    """The replica ended before its response was complete."""


class Answer:
    """Sends a replica's response to the client. Only a stream is sent before it is complete.

    Until `has_begun`, another replica may answer instead.
    """

    def __init__(self, send: Send):
        self.send, self.held = send, []
        self.is_stream = self.has_begun = self.is_complete = False

    async def __call__(self, message: Message, may_retry: bool) -> None:
        if message["type"] == "http.response.start":
            if message["status"] == 503 and may_retry:
                raise Lost
            headers = [(name, value) for name, value in message["headers"] if name.lower() not in ADDED]
            message = message | {"headers": headers}
            self.is_stream = dict(headers).get(b"content-type", b"").startswith(b"text/event-stream")
        else:
            self.is_complete = not message.get("more_body", False)
        self.held.append(message)
        if self.is_stream or self.is_complete:
            self.has_begun = True
            held, self.held = self.held, []
            for one in held:
                await self.send(one)


class Gateway:
    """The ingress deployment.

    Parameters
    ----------
    replicas : DeploymentHandle
    settings : ServerSettings
    is_local : bool
        Whether the server listens on a loopback address only.
    """

    def __init__(self, replicas: DeploymentHandle, settings: ServerSettings, is_local: bool):
        configure()
        self.settings, self.metrics = settings, Metrics(settings.name)
        self.retried = Counter("foredraft:requests_retried", "Requests that were given to another replica.", ("model_name",),
                               registry=self.metrics.registry).labels(settings.name)
        self._replicas = replicas.options(stream=True)
        self._app = Checks(self._route, settings, self.metrics, is_local)
        # the time limits of the requests that replicas are answering
        self._limits: set[asyncio.Timeout] = set()
        self._is_closing = False

    async def __call__(self, _request: Request) -> Response:
        return Asgi(self._app)

    async def drain(self) -> None:
        """Refuse new requests, and wait for the running ones; after `shutdown_timeout` they end with an error."""
        self._is_closing = True
        await self._finish(self.settings.shutdown_timeout)
        for limit in self._limits:
            limit.reschedule(0)
        await self._finish(5)

    async def _finish(self, patience: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(patience):
                while self._limits:
                    await asyncio.sleep(0.05)

    async def _route(self, scope: Scope, receive: Receive, send: Send) -> None:
        own = {"/health": self._health, "/ready": self._ready, "/metrics": self._metrics}.get(scope["path"])
        if own is not None and scope["method"] == "GET":
            await (await own())(scope, receive, send)
        else:
            await self._forward(scope, receive, send)

    async def _states(self) -> list[dict[str, Any]]:
        try:
            found = await self._replicas.broadcast("state").results_async(timeout_s=STATE_TIMEOUT, return_exceptions=True)
            return [state for state in found if isinstance(state, dict)]
        except (DeploymentUnavailableError, TimeoutError):
            pass
        # broadcast waits for a replica that hangs; ask any one replica instead
        with suppress(DeploymentUnavailableError, RayError, TimeoutError):
            async with asyncio.timeout(STATE_TIMEOUT):
                return [await self._replicas.options(stream=False, method_name="state").remote()]
        return []

    async def _health(self) -> Response:
        """Status 200 while the engine of a replica runs."""
        count = sum(state["is_alive"] for state in await self._states())
        return json_response({"status": "ok" if count else "failed", "replicas": count}, 200 if count else 503)

    async def _ready(self) -> Response:
        """Status 200 while a replica accepts requests."""
        states = [state for state in await self._states() if state["is_ready"]]
        waiting = sum(state["waiting"] for state in states)
        is_ready = bool(states) and not self._is_closing and waiting < self.settings.max_queue * len(states)
        status = "ready" if is_ready else "stopping" if self._is_closing else "busy" if states else "unavailable"
        return json_response({"status": status, "replicas": len(states), "running": sum(s["running"] for s in states),
                              "waiting": waiting}, 200 if is_ready else 503)

    async def _metrics(self) -> Response:
        """The metrics of all replicas, with a label `replica`, and the gateway's own without it."""
        families: dict[str, Metric] = {}

        def add(found: Metric, labels: dict[str, str]) -> None:
            family = families.setdefault(found.name, Metric(found.name, found.documentation, found.type))
            family.samples += [sample._replace(labels=labels | sample.labels) for sample in found.samples]

        for family in self.metrics.registry.collect():
            if family.name in COUNTED_HERE:
                add(family, {})
        for state in await self._states():
            for family in text_string_to_metric_families(state["metrics"]):
                if not family.name.startswith(COUNTED_HERE):
                    add(family, {"replica": state["id"]})
        return Response(generate_latest(Families(families)), media_type="text/plain; version=0.0.4; charset=utf-8")

    async def _forward(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer by a replica. ApiError: none can, and no byte was sent yet. A later error is the stream's last event."""
        # the middleware has read the body whole
        body = b"" if scope["method"] in ("GET", "HEAD", "OPTIONS") else (await receive())["body"]
        sent = {name: scope[name] for name in SCOPE if name in scope}
        # the middleware gives a request without an id one; the replica's log has the same
        line = scope["foredraft.log"]
        sent["headers"] = [*((name, value) for name, value in scope["headers"] if name != b"x-request-id"),
                           (b"x-request-id", line["request_id"].encode())]
        answer = Answer(send)
        try:
            if self._is_closing:
                raise ApiError(503, "the server is stopping; try again later", code="unavailable",
                               headers={"retry-after": "5"})
            limit = asyncio.timeout(self.settings.timeout)
            try:
                async with limit:
                    self._limits.add(limit)
                    for tries in range(TRIES):
                        try:
                            await self._ask(sent, body, answer, may_retry=tries < TRIES - 1)
                            return
                        except Lost:
                            log("replica lost", logging.WARNING, request_id=line["request_id"], tries=tries + 1)
                            if answer.has_begun:
                                break
                            answer = Answer(send)
                            if tries < TRIES - 1:
                                self.retried.inc()
            except TimeoutError:
                if not limit.expired():
                    raise
                raise self._expired() from None
            finally:
                self._limits.discard(limit)
            raise ApiError(503, "the replica that ran the request has ended; send the request again", code="replica_lost",
                           headers={"retry-after": "5"})
        except ApiError as error:
            if not answer.has_begun:
                raise
            line["error_code"] = error.code
            last = event(error.tgi_body() if scope["path"] in ROUTES else error.body())
            await send({"type": "http.response.body", "body": last, "more_body": False})

    def _expired(self) -> ApiError:
        if self._is_closing:
            return ApiError(503, "the server was stopped before the request ended; send it again", code="unavailable")
        return ApiError(504, f"the request took longer than {self.settings.timeout:g} seconds; ask for fewer tokens",
                        code="timeout")

    async def _ask(self, scope: dict[str, Any], body: bytes, answer: Answer, may_retry: bool) -> None:
        """One try. Lost: the replica has ended."""
        response = self._replicas.remote(scope, body)
        try:
            async for messages in response:
                for message in messages:
                    await answer(message, may_retry)
        except RayTaskError:
            raise
        except BackPressureError:
            self.metrics.refused.inc()
            raise ApiError(429, "the queue is full; try again later", code="queue_full",
                           headers={"retry-after": "1"}) from None
        except (RayError, DeploymentUnavailableError):
            raise Lost from None
        finally:
            if not answer.is_complete:
                # cancel raises the error that kept the request from reaching a replica
                with suppress(Exception):
                    response.cancel()
        if not answer.is_complete:
            raise Lost


class Asgi(Response):
    """An ASGI application as the response to a request."""

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def without_id(message: Message) -> None:
            # Ray Serve's proxy adds this header too
            if message["type"] == "http.response.start":
                message = message | {"headers": [pair for pair in message["headers"] if pair[0] != b"x-request-id"]}
            await send(message)

        await self.app(scope, receive, without_id)


class Families(CollectorRegistry):
    """Metrics that were collected elsewhere."""

    def __init__(self, families: dict[str, Metric]):
        super().__init__()
        self.families = families

    def collect(self):
        return self.families.values()
