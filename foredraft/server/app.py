"""The ASGI application of a model: its routes, its page, and errors as responses."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from html import escape
from importlib.resources import files

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

import foredraft
from foredraft import embedded
from foredraft.engine.generate import Model
from foredraft.errors import UserError
from foredraft.server import openai, tgi
from foredraft.server.engine import Engine
from foredraft.server.errors import ApiError, json_response
from foredraft.server.metrics import Metrics
from foredraft.server.middleware import Checks
from foredraft.server.settings import ServerSettings

# the text in the page's input field
SAMPLE = "01-harbour-bridge.txt"
# the page loads nothing from other hosts, and no other page may embed it
PAGE_POLICY = ("default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; connect-src 'self'; "
               "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'")


def create_app(model: Model, settings: ServerSettings, is_local: bool = True) -> FastAPI:
    """The ASGI application of a model.

    Parameters
    ----------
    model : Model
        On the CPU, with a tokenizer.
    settings : ServerSettings
    is_local : bool
        Whether the server listens on a loopback address only.

    Returns
    -------
    FastAPI
        `state.engine` is its Engine.

    Raises
    ------
    UserError
        The model has no tokenizer, or is on a GPU.
    """
    if model.tokenizer is None:
        raise UserError(f"{model.path}: there is no tokenizer.json or spiece.model, so texts cannot be read; put one beside "
                        "config.json")
    if model.graphs is not None:
        raise UserError("the server decodes on the CPU only so far; load the model with device 'cpu'")
    metrics = Metrics(settings.name)
    engine = Engine(model, settings, metrics)

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        engine.start()
        try:
            yield
        finally:
            await engine.stop()

    # FastAPI's documentation pages are off: they load scripts from other hosts
    app = FastAPI(title="foredraft", version=foredraft.__version__, lifespan=lifespan, docs_url=None, redoc_url=None,
                  redirect_slashes=False)
    app.state.engine = engine
    app.include_router(openai.routes(engine))
    app.include_router(tgi.routes(engine))
    sample = (embedded.TEXTS / SAMPLE).read_text(encoding="utf-8").strip()
    page = files("foredraft.server").joinpath("page.html").read_text(encoding="utf-8")
    page = page.replace("{{sample}}", escape(sample))

    @app.get("/")
    async def root() -> Response:
        """The page that shows accepted drafts."""
        return Response(page, media_type="text/html; charset=utf-8",
                        headers={"content-security-policy": PAGE_POLICY, "referrer-policy": "no-referrer"})

    @app.get("/health")
    async def health() -> Response:
        """Status 200 while the engine thread runs, 503 after it failed."""
        return json_response({"status": "ok" if engine.is_alive else "failed"}, 200 if engine.is_alive else 503)

    @app.get("/ready")
    async def ready() -> Response:
        """Status 200 while requests are accepted, 503 while the queue is full or the server stops."""
        is_ready = engine.is_ready and engine.num_waiting < settings.max_queue
        return json_response({"status": "ready" if is_ready else "busy" if engine.is_ready else "stopping",
                              "running": engine.num_running, "waiting": engine.num_waiting}, 200 if is_ready else 503)

    @app.get("/metrics")
    async def prometheus() -> Response:
        """Metrics in Prometheus' text format."""
        return Response(metrics.render(engine), media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.exception_handler(ApiError)
    async def api_error(request: Request, error: ApiError) -> Response:
        request.scope["foredraft.log"]["error_code"] = error.code
        return error.response(request.url.path in tgi.ROUTES)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        return await api_error(request, validation_error(error))

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> Response:
        texts = {404: "there is no such route", 405: "this route does not accept this method", 400: "the body is not JSON"}
        code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "invalid_request")
        found = ApiError(error.status_code, texts.get(error.status_code, "the request cannot be answered"), code=code,
                         headers=error.headers)
        return await api_error(request, found)

    app.add_middleware(Checks, settings=settings, metrics=metrics, is_local=is_local)
    return app


def validation_error(error: RequestValidationError) -> ApiError:
    """The first validation error. Its message repeats field names, but no values that the client sent."""
    first = error.errors()[0]
    kind, where = first["type"], [str(part) for part in first["loc"] if part != "body"]
    if kind == "json_invalid":
        return ApiError(400, "the body is not JSON", code="invalid_json")
    param = where[0][:100] if where else None
    name = ".".join(where)[:200]
    if kind == "extra_forbidden":
        return ApiError(400, f"there is no field {name!a}; leave it out", param, "unknown_field")
    if kind == "missing":
        what = f"{name} is missing" if name else "the body is empty"
        return ApiError(400, f"{what}; send it", param, "missing_field")
    message = first["msg"][:1].lower() + first["msg"][1:200]
    return ApiError(400, f"{name or 'the body'}: {message}", param, "invalid_value")
