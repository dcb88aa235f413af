"""ASGI middleware of every request: request id, log line, checks of host, key and body, and failures as responses."""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import logging
import re
from time import perf_counter
from typing import Any
from uuid import uuid4

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from foredraft.server.answers import Disconnected
from foredraft.server.errors import ApiError, internal_error
from foredraft.server.logs import log
from foredraft.server.metrics import Metrics
from foredraft.server.settings import ServerSettings
from foredraft.server.tgi import ROUTES

# routes that need no key
OPEN = ("/", "/health", "/ready", "/metrics", "/openapi.json")
KNOWN = ("/v1/completions", "/v1/chat/completions", "/v1/models", "/generate", "/generate_stream", *OPEN)
# an X-Request-ID that is used; any other one is replaced, so that it cannot forge log lines or headers
REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
# nginx's status for a connection that the client closed; it appears in logs and metrics only
CLIENT_LEFT = 499


class Checks:
    """Checks a request, gives it an id, and logs and counts its response.

    Parameters
    ----------
    app : ASGIApp
    settings : ServerSettings
    metrics : Metrics
    is_local : bool
        Whether the server listens on a loopback address only. Without a key it then accepts local host names only, which
        stops web pages that reach it under a name of theirs (DNS rebinding).
    """

    def __init__(self, app: ASGIApp, settings: ServerSettings, metrics: Metrics, is_local: bool):
        self.app, self.settings, self.metrics = app, settings, metrics
        self.checks_host = is_local and settings.api_key is None
        self.key = None if settings.api_key is None else settings.api_key.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        given = headers.get(b"x-request-id", b"").decode("latin-1")
        request_id = given if REQUEST_ID.fullmatch(given) else f"req-{uuid4().hex}"
        path = scope["path"]
        route = path if path in KNOWN else "/v1/models" if path.startswith("/v1/models/") else "other"
        line: dict[str, Any] = {"request_id": request_id, "method": _method(scope), "route": route}
        scope["foredraft.log"], began = line, perf_counter()
        status = 0

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", request_id.encode()),
                                      (b"x-content-type-options", b"nosniff")]
            async with asyncio.timeout(self.settings.write_timeout):
                await send(message)

        is_tgi = path in ROUTES
        try:
            try:
                self._check(path, scope["method"], headers)
                await self.app(scope, await self._body(scope, headers, receive), answer)
            except ApiError as error:
                line["error_code"] = error.code
                if not status:
                    await error.response(is_tgi)(scope, receive, answer)
            except Disconnected:
                status = CLIENT_LEFT
            except asyncio.CancelledError:
                status = status or CLIENT_LEFT
                raise
            except Exception as error:
                log("request failed", logging.ERROR, error, request_id=request_id)
                line["error_code"] = "internal_error"
                if not status:
                    await internal_error().response(is_tgi)(scope, receive, answer)
        finally:
            self.metrics.answered(route, status)
            quiet = route in ("/health", "/ready", "/metrics") and status == 200
            log("request", logging.DEBUG if quiet else logging.INFO, **line, status=status,
                seconds=round(perf_counter() - began, 4))

    def _check(self, path: str, method: str, headers: dict[bytes, bytes]) -> None:
        """ApiError: the host name or the key is not accepted."""
        if self.checks_host and not is_local_name(headers.get(b"host", b"").decode("latin-1")):
            raise ApiError(403, "this server answers on local host names only; give it an api key to use another name",
                           code="host_not_allowed")
        if self.key is not None and (path not in OPEN or (path == "/" and method == "POST")):
            scheme, _, key = headers.get(b"authorization", b"").partition(b" ")
            # always compared, and in constant time, so that the time says nothing about the key
            is_right = hmac.compare_digest(key.strip(), self.key)
            if scheme.lower() != b"bearer" or not is_right:
                raise ApiError(401, "the api key is missing or wrong; send the header Authorization: Bearer KEY",
                               code="invalid_api_key", headers={"www-authenticate": "Bearer"})

    async def _body(self, scope: Scope, headers: dict[bytes, bytes], receive: Receive) -> Receive:
        """Read the body within its limits of size and time; returns a Receive that yields it."""
        if scope["method"] in ("GET", "HEAD", "OPTIONS"):
            return receive
        most = self.settings.max_body
        too_large = ApiError(413, f"the body is larger than {most} bytes; send less", code="body_too_large")
        length = headers.get(b"content-length", b"0")
        if not length.isdigit() or int(length[:20]) > most:
            raise too_large
        parts, size = [], 0
        try:
            async with asyncio.timeout(self.settings.body_timeout):
                while True:
                    message = await receive()
                    if message["type"] != "http.request":
                        raise Disconnected
                    parts.append(message.get("body", b""))
                    size += len(parts[-1])
                    if size > most:
                        raise too_large
                    if not message.get("more_body", False):
                        break
        except TimeoutError:
            raise ApiError(408, f"the body did not arrive within {self.settings.body_timeout:g} seconds; send it again",
                           code="timeout") from None
        kind = headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
        if kind != b"application/json" and scope["path"] in KNOWN:
            raise ApiError(415, "the body must have the content type application/json", code="unsupported_media_type")
        body: list[bytes] = [b"".join(parts)]

        async def again() -> Message:
            if body:
                return {"type": "http.request", "body": body.pop(), "more_body": False}
            return await receive()

        return again


def _method(scope: Scope) -> str:
    """The method for the log; a client may send any word, so unknown ones become "other"."""
    return scope["method"] if scope["method"] in ("GET", "POST", "HEAD", "OPTIONS", "PUT", "DELETE", "PATCH") else "other"


def is_local_name(host: str) -> bool:
    """Whether a Host header is localhost or a loopback address."""
    name = host.rpartition(":")[0] if re.search(r":\d+$", host) else host
    name = name.strip("[]").rstrip(".").lower()
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False
