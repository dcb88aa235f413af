"""Shared by OpenAI's and TGI's routes: the text of each sequence, event streams, and token counts."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import StreamingResponse

from foredraft.engine.drafters.registry import PROPOSERS
from foredraft.engine.runtime.requests import Progress, Result
from foredraft.engine.sampling.recorder import TokenLogprob
from foredraft.server.engine import Generation
from foredraft.server.errors import ApiError, render
from foredraft.server.text import StopCutter, TextStream

T = TypeVar("T")
# seconds without an event after which the server sends a comment, so that proxies keep the connection open
PING = 15.0


class Disconnected(Exception):
    """The client has closed the connection."""


async def unless_disconnected(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`. Disconnected: the client closed the connection before `work` ended."""
    task, watch = asyncio.ensure_future(work), asyncio.ensure_future(_disconnect(request))
    try:
        await asyncio.wait((task, watch), return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise Disconnected
    finally:
        for one in (task, watch):
            one.cancel()
        await asyncio.gather(task, watch, return_exceptions=True)


async def _disconnect(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


class EventStream(StreamingResponse):
    """Server-sent events of a generation. The generation is closed when the response ends, fails or is cancelled."""

    def __init__(self, events: AsyncIterator[bytes], generation: Generation):
        super().__init__(events, media_type="text/event-stream",
                         headers={"cache-control": "no-cache", "x-accel-buffering": "no"})
        self.generation = generation

    async def __call__(self, scope, receive, send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self.generation.close()


def event(content: Any) -> bytes:
    return b"data: " + render(content) + b"\n\n"


async def event_stream(request: Request, generation: Generation,
                       answer: Callable[[int, Progress | Result], Iterator[Any]], end: Callable[[], Iterator[bytes]],
                       error_body: Callable[[ApiError], Any] = ApiError.body) -> EventStream:
    """Stream the objects that `answer` yields for every event of the generation, then the bytes of `end`.

    An error before the first event is raised, so that the response has its status. A later error is sent as the last event.
    """
    try:
        first = await unless_disconnected(request, generation.next())
    except BaseException:
        generation.close()
        raise

    async def events() -> AsyncIterator[bytes]:
        found = first
        try:
            while True:
                if found is None:
                    yield b": ping\n\n"
                else:
                    parts = [event(part) for part in answer(*found)]
                    if parts:
                        yield b"".join(parts)
                if not generation.unfinished:
                    break
                found = await generation.next(PING)
            yield b"".join(end())
        except ApiError as error:
            request.scope["foredraft.log"]["error_code"] = error.code
            yield event(error_body(error))

    return EventStream(events(), generation)


@dataclass
class Choice:
    """The text of one sequence."""

    text_stream: TextStream
    cutter: StopCutter
    text: str = ""
    pieces: list[dict[str, str]] = field(default_factory=list)
    tokens: list[dict[str, Any]] = field(default_factory=list)
    result: Result | None = None

    def add(self, progress: Progress) -> tuple[str, list[dict[str, str]], list[dict[str, Any]]]:
        """The text, the pieces of `details` and the log-probabilities that a step adds."""
        pieces: list[dict[str, str]] = []
        logprobs = []
        for number, (token, proposer) in enumerate(zip(progress.token_ids, progress.proposers, strict=True)):
            if progress.rejected and number == len(progress.token_ids) - 1:
                pieces.append({"text": self.text_stream.peek(progress.rejected), "proposer": "rejected"})
            offset = len(self.text)
            piece = self.text_stream.push(token)
            shown = self.cutter.push(piece)
            self.text += shown
            if shown:
                pieces.append({"text": shown, "proposer": PROPOSERS[proposer]})
            if progress.logprobs is not None:
                logprobs.append(self._logprob(progress.logprobs[number], piece, offset))
        self.tokens += logprobs
        self.pieces += [piece for piece in pieces if piece["proposer"] != "rejected"]
        return "".join(piece["text"] for piece in pieces if piece["proposer"] != "rejected"), pieces, logprobs

    def finish(self, result: Result) -> str:
        """Keep the result, and return the rest of the text."""
        self.result = result
        rest = self.cutter.push(self.text_stream.flush()) + self.cutter.flush()
        self.text += rest
        return rest

    def complete(self, result: Result) -> Choice:
        """Add a result that was not streamed."""
        self.add(Progress(result.token_ids, result.proposers, [], result.logprobs))
        self.finish(result)
        return self

    def _logprob(self, entry: TokenLogprob, piece: str, offset: int) -> dict[str, Any]:
        tokenizer = self.text_stream.tokenizer
        return {"id": entry.token, "token": token_text(tokenizer, entry.token), "piece": piece, "logprob": entry.logprob,
                "offset": offset,
                "top": [{"id": token, "token": token_text(tokenizer, token), "logprob": logprob}
                        for token, logprob in entry.top]}

    @property
    def finish_reason(self) -> str:
        """OpenAI's finish_reason; "length" also where max_time ended the request."""
        return "stop" if self.result.finish_reason == "stop" else "length"

    @property
    def stats(self) -> dict[str, Any]:
        """Steps, drafted and accepted tokens."""
        stats = self.result.stats
        return {"steps": stats.steps, "drafted": stats.drafted, "tested": stats.tested, "accepted": stats.accepted,
                "tokens": stats.emitted, "tokens_per_step": round(stats.tokens_per_step, 3),
                "acceptance_rate": round(stats.acceptance_rate, 4)}


def token_text(tokenizer: Any, token: int) -> str:
    """The text of a single token; the marker of a word's start becomes a space."""
    return (tokenizer.id_to_token(token) or "").replace("\u2581", " ")


def usage(sources: Sequence[Sequence[int]], outputs: Sequence[Result]) -> dict[str, Any]:
    """OpenAI's usage object of all outputs that were decoded; drafted tokens are counted as predictions."""
    prompt = sum(map(len, sources))
    stats = [one.stats for one in outputs]
    emitted, accepted = sum(one.emitted for one in stats), sum(one.accepted for one in stats)
    return {"prompt_tokens": prompt, "completion_tokens": emitted, "total_tokens": prompt + emitted,
            "completion_tokens_details": {"accepted_prediction_tokens": accepted,
                                          "rejected_prediction_tokens": sum(one.drafted for one in stats) - accepted}}


def log_usage(request: Request, sources: Sequence[Sequence[int]], outputs: Sequence[Result]) -> None:
    """Add token counts and finish reasons to the request's log line."""
    stats = [one.stats for one in outputs]
    request.scope["foredraft.log"] |= {
        "sequences": len(outputs), "prompt_tokens": sum(map(len, sources)),
        "completion_tokens": sum(one.emitted for one in stats), "accepted_tokens": sum(one.accepted for one in stats),
        "finish_reasons": sorted({one.finish_reason for one in outputs})}


def timestamp() -> int:
    return int(time.time())
