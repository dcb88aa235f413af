"""Errors as answers: OpenAI's shape, and TGI's on TGI's routes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from starlette.responses import Response

INTERNAL = "the server failed; the request may be sent again"


class ApiError(Exception):
    """An error that the client receives.

    Parameters
    ----------
    status : int
    message : str
    param : str or None
        The field of the request that is wrong.
    code : str or None
    headers : mapping
        Of the answer.
    """

    def __init__(self, status: int, message: str, param: str | None = None, code: str | None = None,
                 headers: Mapping[str, str] | None = None):
        super().__init__(message)
        self.status, self.message, self.param, self.code, self.headers = status, message, param, code, dict(headers or {})

    @property
    def type(self) -> str:
        """OpenAI's name of the kind of error."""
        kinds = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}
        return kinds.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")

    def body(self) -> dict[str, Any]:
        """In OpenAI's shape."""
        return {"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.code}}

    def tgi_body(self) -> dict[str, Any]:
        """In TGI's shape."""
        kinds = {429: "overloaded", 503: "overloaded"}
        kind = kinds.get(self.status, "generation" if self.status >= 500 else "validation")
        return {"error": self.message, "error_type": kind}

    def response(self, tgi: bool = False) -> Response:
        if not tgi:
            return json_response(self.body(), self.status, self.headers)
        # TGI's status of what is wrong with a request
        return json_response(self.tgi_body(), 422 if self.status == 400 else self.status, self.headers)


def render(content: Any) -> bytes:
    """JSON in ASCII: half of a surrogate pair from a client cannot fail here."""
    return json.dumps(content, separators=(",", ":")).encode()


def json_response(content: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    return Response(render(content), status, dict(headers or {}), "application/json")


def internal_error() -> ApiError:
    """The text that clients receive when the server itself failed."""
    return ApiError(500, INTERNAL, code="internal_error")
