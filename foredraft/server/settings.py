"""The settings of `foredraft serve`."""

from __future__ import annotations

from dataclasses import dataclass

from foredraft.engine.params import MAX_NEW_TOKENS
from foredraft.errors import UserError


@dataclass(frozen=True)
class ServerSettings:
    """The settings of a server.

    Parameters
    ----------
    name : str
        What clients call the model.
    prefix : str
        Put before the text of a chat message.
    batch_size : int
        The most sequences decoded together.
    max_tokens : int
        The most new tokens that a request may ask for.
    max_source : int or None
        The most source tokens; None is the model's own limit.
    draft_tokens : int, "auto" or None
        K; None is the engine's default.
    kv_memory : int or None
        Bytes for keys and values; None is half of the free memory.
    max_queue : int
        The most sequences that wait; more are refused with status 429.
    max_choices : int
        The most sequences of one HTTP request: prompts times `n`.
    max_body : int
        The most bytes of a request's body.
    api_key : str or None
        What clients must send as bearer token.
    timeout, body_timeout, write_timeout, shutdown_timeout : float
        Seconds for a whole request, for reading its body, for a client to take a part of the answer, and for the requests
        that run when the server is stopped.
    """

    name: str = "foredraft"
    prefix: str = ""
    batch_size: int = 16
    max_tokens: int = 512
    max_source: int | None = None
    draft_tokens: int | str | None = None
    kv_memory: int | None = None
    max_queue: int = 256
    max_choices: int = 64
    max_body: int = 1_000_000
    api_key: str | None = None
    timeout: float = 300.0
    body_timeout: float = 30.0
    write_timeout: float = 60.0
    shutdown_timeout: float = 30.0

    def __post_init__(self):
        for name, high in (("max_tokens", MAX_NEW_TOKENS), ("max_choices", 1000), ("max_body", 2**31), ("max_queue", 10**6)):
            value = getattr(self, name)
            if not 1 <= value <= high:
                raise UserError(f"{name} is {value}; give a number between 1 and {high}")
        if self.batch_size < 1:
            raise UserError(f"batch_size is {self.batch_size}; give a whole number of at least 1")
        for name in ("timeout", "body_timeout", "write_timeout", "shutdown_timeout"):
            if not 0 < getattr(self, name) < float("inf"):
                raise UserError(f"{name} is {getattr(self, name)}; give a number of seconds above 0")
        if self.api_key is not None and not (self.api_key.isascii() and self.api_key.isprintable() and self.api_key.strip()):
            raise UserError("api_key is empty or holds characters that no HTTP header can carry; give printable ASCII")
