"""Errors as responses, in OpenAI's shape or, on TGI's routes, in TGI's."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from starlette.responses import Response

# without the reason, which may name files of the server
INTERNAL = "the server failed; the request may be sent again"


class ApiError(Exception):
    """An error that is sent to the client.

    Parameters
    ----------
    status : int
    message : str
    param : str or None
        The field of the request that is wrong.
    code : str or None
    headers : mapping
        Added to the response.
    """

    def __init__(self, status: int, message: str, param: str | None = None, code: str | None = None,
                 headers: Mapping[str, str] | None = None):
        super().__init__(message)
        self.status, self.message, self.param, self.code, self.headers = status, message, param, code, dict(headers or {})

    @property
    def type(self) -> str:
        """OpenAI's `type` of this status."""
        kinds = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}
        return kinds.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")

    def body(self) -> dict[str, Any]:
        """OpenAI's error object."""
        return {"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.code}}

    def tgi_body(self) -> dict[str, Any]:
        """TGI's error object."""
        kinds = {429: "overloaded", 503: "overloaded"}
        kind = kinds.get(self.status, "generation" if self.status >= 500 else "validation")
        return {"error": self.message, "error_type": kind}

    def response(self, tgi: bool = False) -> Response:
        if not tgi:
            return json_response(self.body(), self.status, self.headers)
        # TGI answers invalid requests with 422
        return json_response(self.tgi_body(), 422 if self.status == 400 else self.status, self.headers)


def render(content: Any) -> bytes:
    """ASCII JSON: a lone surrogate, which UTF-8 cannot encode, is escaped."""
    return json.dumps(content, separators=(",", ":")).encode()


def json_response(content: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    return Response(render(content), status, dict(headers or {}), "application/json")


def internal_error() -> ApiError:
    """The response to a failure of the server itself."""
    return ApiError(500, INTERNAL, code="internal_error")
