"""The settings of `foredraft serve`."""

from __future__ import annotations

from dataclasses import dataclass

from foredraft.engine.params import MAX_BEAMS, MAX_NEW_TOKENS
from foredraft.errors import UserError


@dataclass(frozen=True)
class ServerSettings:
    """The settings of a server.

    Parameters
    ----------
    name : str
        The model's name in requests and responses.
    prefix : str
        Put before a chat's last message where the chat has no system message.
    batch_size : int
        Sequences decoded together, at most; a beam search counts as `num_beams` sequences.
    num_beams : int
        Beams of a request, at most. A checkpoint that has more in its own settings raises it.
    max_tokens : int
        New tokens of a sequence, at most.
    max_source : int or None
        Source tokens of a sequence, at most; None is the model's own limit.
    draft_tokens : int, "auto" or None
        Drafted tokens a step; None is the engine's default.
    kv_memory : int or None
        Bytes for keys and values; None is half of the free memory.
    max_queue : int
        Sequences in the queue, at most; more are refused with status 429.
    max_choices : int
        Sequences of one HTTP request (prompts times samples or beams), at most.
    max_body : int
        Bytes of a request's body, at most.
    api_key : str or None
        The bearer token that clients must send; None asks for none.
    timeout : float
        Seconds of a request, from its submission to its last token.
    body_timeout : float
        Seconds to receive a request's body.
    write_timeout : float
        Seconds for a client to accept a part of the response.
    shutdown_timeout : float
        Seconds to finish running requests when the server is stopped.

    Raises
    ------
    UserError
        A value is out of range.
    """

    name: str = "foredraft"
    prefix: str = ""
    batch_size: int = 16
    num_beams: int = 4
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
        for name, high in (("max_tokens", MAX_NEW_TOKENS), ("max_choices", 1000), ("max_body", 2**31), ("max_queue", 10**6),
                           ("num_beams", MAX_BEAMS)):
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
