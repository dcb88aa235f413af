"""The engine thread: it runs one `Model.stream`, which reads its requests from a queue.

The event loop submits and cancels tickets, one for each sequence or beam search. The engine thread takes a ticket from the
queue whenever the batch has room for it, and sends its events (progress, result) to the event loop, all events of a step at
once.
"""

from __future__ import annotations

import asyncio
import logging
import math
import threading
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from time import perf_counter
from typing import Any

from foredraft.engine.draft_length.adaptive_drafter import MAX_DRAFT
from foredraft.engine.generate import Model
from foredraft.engine.params import AUTO, SamplingParams
from foredraft.engine.runtime.requests import Progress, Request, Result
from foredraft.engine.runtime.stream import Stream
from foredraft.errors import UserError
from foredraft.server.errors import ApiError, internal_error
from foredraft.server.logs import log
from foredraft.server.metrics import Metrics
from foredraft.server.settings import ServerSettings

# The server gives up after so many failures of the stream without a result between them.
MAX_FAILURES = 3
# Source tokens of a model that has no limit of its own.
MAX_SOURCE = 4096
# A source with repeated words, so that the lookup drafter drafts.
WARM_UP = "the old bridge will close on monday. the council said a free boat would run until the old bridge is open."


class Failed:
    """The last event of a ticket whose stream has failed."""


Event = Progress | Result | Failed


class Ticket:
    """One sequence or beam search of an HTTP request: its source and settings, and the queue for its events.

    Parameters
    ----------
    index : int
        Among the sequences of its HTTP request.
    source : sequence of int
        Tokens.
    settings : mapping
        Fields of SamplingParams.
    events : asyncio.Queue
        Receives (ticket, event) pairs; the last event is a Result or Failed.
    is_streamed : bool
        Whether to send Progress; a beam search has none.

    Attributes
    ----------
    num_beams : int
        The sequences of the batch that it takes.
    """

    def __init__(self, index: int, source: Sequence[int], settings: Mapping[str, Any], events: asyncio.Queue,
                 is_streamed: bool):
        self.index, self.source, self.settings = index, source, settings
        self.events, self.is_streamed, self.num_beams = events, is_streamed, settings.get("num_beams", 1)
        self.submitted, self.started, self.first_token, self.last_token = perf_counter(), 0.0, 0.0, 0.0

    def __str__(self) -> str:
        """Its name in error messages."""
        return "the prompt" if self.index == 0 else f"prompt {self.index + 1}"


def most_drafted(model: Model, settings: ServerSettings) -> int:
    """The largest `draft_tokens` that a request may have."""
    is_adaptive = model.drafter.capabilities.adaptive
    default = AUTO if is_adaptive else model.settings.get("draft_tokens", SamplingParams.draft_tokens)
    draft_tokens = default if settings.draft_tokens is None else settings.draft_tokens
    return MAX_DRAFT if draft_tokens == AUTO else draft_tokens


class Engine:
    """Decodes tickets on a thread of its own.

    Public methods are called on the event loop's thread; `warm_up` is called before the event loop runs.
    """

    def __init__(self, model: Model, settings: ServerSettings, metrics: Metrics):
        self.model, self.settings, self.metrics = model, settings, metrics
        self.most_drafted = most_drafted(model, settings)
        self.most_beams = max(settings.num_beams, model.settings.get("num_beams", 1))
        # a model without a limit would spend the square of a long source's length on it, and all others wait
        self.source_limit = settings.max_source or model.source_limit or MAX_SOURCE
        self._lock = threading.Condition()
        self._waiting: deque[Ticket] = deque()
        self._running: set[Ticket] = set()
        self._is_closing, self._has_failed = False, False
        self._outbox: list[tuple[Ticket, Event]] = []
        self._stream: Stream | None = None
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        # Stream.cancel blocks until the running step ends; the event loop must not block
        self._cancellers = ThreadPoolExecutor(16, "cancel")
        # end times of the last sequences, for Retry-After
        self._ends: deque[float] = deque(maxlen=64)

    def _open(self, requests: Any) -> Stream:
        s = self.settings
        own = {} if s.draft_tokens is None else {"draft_tokens": s.draft_tokens}
        # a stream has batch_size * num_beams sequences, and requests without beams may use all of them
        return self.model.stream(requests, truncation=False, batch_size=math.ceil(s.batch_size / self.most_beams),
                                 max_source=s.max_source, kv_memory=s.kv_memory, max_new_tokens=s.max_tokens,
                                 num_beams=self.most_beams, num_return_sequences=1, **own)

    def warm_up(self) -> None:
        """Compile the kernels that requests use, alone and in batches, so that no request waits for a compilation.

        UserError: the server's settings are refused by the model.
        """
        plain: dict[str, Any] = dict(max_new_tokens=min(12, self.settings.max_tokens), num_beams=1)
        sampled = plain | dict(do_sample=True, top_p=0.9)
        rules = sampled | dict(
            top_k=50, min_p=0.001, typical_p=0.95, repetition_penalty=1.1, encoder_repetition_penalty=1.1,
            no_repeat_ngram_size=3, encoder_no_repeat_ngram_size=8, logprobs=2, suppress_tokens=[2])
        count = min(2, self.settings.batch_size)
        runs = [[plain], [plain] * count, [sampled], [plain, sampled][:count], [rules], [plain | dict(logprobs=2)]]
        if self.most_beams > 1:
            runs += [[plain | dict(num_beams=2)], [sampled | dict(num_beams=2)]]
        for settings in runs:
            for result in self._open([Request(WARM_UP, **one) for one in settings]):
                if result.error is not None:
                    raise result.error

    def start(self) -> None:
        """Start the engine thread."""
        self._loop = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        return self._thread is not None and self._thread.is_alive() and not self._has_failed

    @property
    def is_ready(self) -> bool:
        """Whether requests are accepted."""
        return self.is_alive and not self._is_closing

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    @property
    def num_running(self) -> int:
        return len(self._running)

    @property
    def _free(self) -> int:
        """Sequences of the batch that nothing runs in; below 0 where a search has more beams than the batch sequences."""
        return self.settings.batch_size - sum(ticket.num_beams for ticket in self._running)

    def submit(self, tickets: Sequence[Ticket]) -> None:
        """Queue all tickets, or none. ApiError: the queue is full, or the server stops."""
        with self._lock:
            if not self.is_ready:
                raise ApiError(503, "the server is stopping or has failed; try again later", code="unavailable",
                               headers={"retry-after": "5"})
            if len(self._waiting) + len(tickets) > self.settings.max_queue + max(self._free, 0):
                self.metrics.refused.inc()
                raise ApiError(429, f"the queue is full: {len(self._waiting)} sequences wait; try again later",
                               code="queue_full", headers={"retry-after": str(self._retry_after())})
            self._waiting.extend(tickets)
            self._lock.notify_all()

    def _retry_after(self) -> int:
        """Seconds until half of the queue is decoded, at the rate of the last sequences; 1 to 60."""
        if len(self._ends) < 2:
            return 1
        rate = (len(self._ends) - 1) / max(perf_counter() - self._ends[0], 1e-3)
        return min(max(math.ceil(len(self._waiting) / 2 / rate), 1), 60)

    def cancel(self, tickets: Sequence[Ticket]) -> None:
        """Drop tickets. Their sequences become free after the running step."""
        with self._lock:
            for ticket in tickets:
                if ticket in self._running and self._stream is not None:
                    self._cancellers.submit(self._stream.cancel, ticket)
                elif ticket in self._waiting:
                    self._waiting.remove(ticket)

    async def stop(self) -> None:
        """Accept no more requests, finish the queued and running ones, and end the thread."""
        with self._lock:
            self._is_closing = True
            self._lock.notify_all()
        if self._thread is not None:
            await asyncio.to_thread(self._thread.join, self.settings.shutdown_timeout)
            if self._thread.is_alive():
                with self._lock:
                    left = [*self._waiting, *self._running]
                self.cancel(left)
                await asyncio.to_thread(self._thread.join, self.settings.shutdown_timeout)
        self._cancellers.shutdown(wait=False)

    def _requests(self) -> Iterator[Request | None]:
        """The stream's input: a request when a sequence is free, None while the stream should go on without one."""
        while True:
            with self._lock:
                self._lock.wait_for(lambda: self._waiting or self._running or self._is_closing)
                ticket = None
                if self._waiting and (self._waiting[0].num_beams <= self._free or not self._running):
                    ticket = self._waiting.popleft()
                    ticket.started = perf_counter()
                    self._running.add(ticket)
                elif self._is_closing and not self._waiting:
                    return
            yield None if ticket is None else Request(
                ticket.source, id=ticket, on_progress=self._reporter(ticket) if ticket.is_streamed else None,
                **ticket.settings)

    def _reporter(self, ticket: Ticket):
        return lambda progress: self._send(ticket, progress) if progress.token_ids else None

    def _run(self) -> None:
        failures = 0
        while failures < MAX_FAILURES:
            try:
                with self._open(self._requests()) as stream:
                    self._stream = stream
                    for result in stream:
                        failures = 0
                        self._finish(result)
                return
            except Exception as error:
                failures += 1
                log("engine failed", logging.ERROR, error)
                self._fail(failures == MAX_FAILURES)

    def _finish(self, result: Result) -> None:
        with self._lock:
            self._running.discard(result.id)
        self._ends.append(perf_counter())
        self._send(result.id, result)

    def _fail(self, is_last: bool) -> None:
        """Send Failed to the running tickets; after the last failure also to the queued ones."""
        with self._lock:
            lost = [*self._running]
            self._running.clear()
            if is_last:
                self._has_failed = True
                lost += self._waiting
                self._waiting.clear()
        for ticket in lost:
            self._send(ticket, Failed())

    def _send(self, ticket: Ticket, event: Event) -> None:
        self._outbox.append((ticket, event))
        if len(self._outbox) == 1:
            try:
                self._loop.call_soon_threadsafe(self._deliver)
            except RuntimeError:
                # the event loop is closed, and with it every connection
                self._outbox.clear()

    def _deliver(self) -> None:
        """Put the events sent since the last call into their queues. Runs on the event loop."""
        events, self._outbox = self._outbox, []
        at = perf_counter()
        for ticket, event in events:
            self.metrics.observe(ticket, event, at)
            ticket.events.put_nowait((ticket, event))


class Generation:
    """The sequences of one HTTP request. `close` cancels the unfinished ones."""

    def __init__(self, engine: Engine, sources: Sequence[Sequence[int]], settings: Sequence[Mapping[str, Any]],
                 is_streamed: bool):
        self.engine, self.events = engine, asyncio.Queue()
        self.tickets = [Ticket(index, source, own, self.events, is_streamed)
                        for index, (source, own) in enumerate(zip(sources, settings, strict=True))]
        self.unfinished = set(self.tickets)
        self.deadline = asyncio.get_running_loop().time() + engine.settings.timeout
        engine.submit(self.tickets)

    async def next(self, patience: float | None = None) -> tuple[int, Progress | Result] | None:
        """The index of a sequence and its next event; None after `patience` seconds without an event.

        ApiError: the request failed, or took longer than the server's timeout.
        """
        until = self.deadline
        if patience is not None:
            until = min(until, asyncio.get_running_loop().time() + patience)
        try:
            async with asyncio.timeout_at(until):
                ticket, event = await self.events.get()
        except TimeoutError:
            if until < self.deadline:
                return None
            raise ApiError(504, f"the request took longer than {self.engine.settings.timeout:g} seconds; ask for "
                           "fewer tokens", code="timeout") from None
        if isinstance(event, Failed):
            self.unfinished.discard(ticket)
            raise internal_error()
        if isinstance(event, Result):
            self.unfinished.discard(ticket)
            if isinstance(event.error, UserError):
                raise ApiError(400, str(event.error), code="invalid_value")
            if event.finish_reason == "cancelled":
                raise ApiError(503, "the server was stopped before the request ended; send it again", code="unavailable")
        return ticket.index, event

    async def results(self) -> list[Result]:
        """Wait for all results. They are in the order of the sequences."""
        found: dict[int, Result] = {}
        while self.unfinished:
            index, event = await self.next()
            if isinstance(event, Result):
                found[index] = event
        return [found[index] for index in range(len(self.tickets))]

    def close(self) -> None:
        """Cancel the unfinished sequences; a second call does nothing."""
        left, self.unfinished = self.unfinished, set()
        if left:
            self.engine.cancel(list(left))
