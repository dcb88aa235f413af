"""Prometheus metrics. A metric that vLLM has too has vLLM's name, so that dashboards made for vLLM work."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from foredraft.engine.runtime.requests import Progress, Result

if TYPE_CHECKING:
    from foredraft.server.engine import Engine, Event, Ticket

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 60, 150, 300)
SHORT = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)
TOKENS = (1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048)


class Metrics:
    """The metrics of one server."""

    def __init__(self, model_name: str):
        self.registry = CollectorRegistry()
        name = {"model_name": model_name}

        def make(kind: type, metric: str, text: str, labels: tuple[str, ...] = (), **own):
            found = kind(metric, text, ("model_name", *labels), registry=self.registry, **own)
            return found if labels else found.labels(**name)

        def labelled(metric, **labels):
            return metric.labels(**name, **labels)

        self._labelled = labelled
        self._running = make(Gauge, "vllm:num_requests_running", "Sequences being decoded.")
        self._waiting = make(Gauge, "vllm:num_requests_waiting", "Sequences in the queue.")
        self._cache = make(Gauge, "vllm:kv_cache_usage_perc", "Fraction of the pages for sources in use, 0 to 1.")
        self._prompt_tokens = make(Counter, "vllm:prompt_tokens", "Source tokens of finished sequences.")
        self._tokens = make(Counter, "vllm:generation_tokens", "New tokens of finished sequences.")
        self._success = make(Counter, "vllm:request_success", "Finished sequences.", ("finished_reason",))
        self._drafts = make(Counter, "vllm:spec_decode_num_drafts", "Steps with a draft.")
        self._drafted = make(Counter, "vllm:spec_decode_num_draft_tokens", "Drafted tokens.")
        self._accepted = make(Counter, "vllm:spec_decode_num_accepted_tokens", "Accepted draft tokens.")
        self._accepted_at = make(Counter, "vllm:spec_decode_num_accepted_tokens_per_pos",
                                 "Accepted draft tokens by position in the draft.", ("position",))
        self._first = make(Histogram, "vllm:time_to_first_token_seconds", "Streamed requests only.", buckets=SECONDS)
        self._between = make(Histogram, "vllm:inter_token_latency_seconds", "Streamed requests only: seconds of a "
                             "step divided by its tokens.", buckets=SHORT)
        self._latency = make(Histogram, "vllm:e2e_request_latency_seconds", "From arrival to last token.", buckets=SECONDS)
        self._queue = make(Histogram, "vllm:request_queue_time_seconds", "Seconds in the queue.", buckets=SECONDS)
        self._prompt_size = make(Histogram, "vllm:request_prompt_tokens", "Source tokens of a sequence.", buckets=TOKENS)
        self._size = make(Histogram, "vllm:request_generation_tokens", "New tokens of a sequence.", buckets=TOKENS)
        self._steps = make(Counter, "foredraft:steps", "Steps of finished sequences.")
        self._tested = make(Counter, "foredraft:tested_tokens", "Draft tokens that were verified.")
        self.refused = make(Counter, "foredraft:requests_refused", "Requests refused because the queue was full.")
        self._answers = make(Counter, "foredraft:http_responses", "Responses by route and status.", ("route", "status"))

    def observe(self, ticket: Ticket, event: Event, at: float) -> None:
        """Count an event; `at` is the time when it reached the event loop."""
        if isinstance(event, Progress):
            if not ticket.first_token:
                ticket.first_token = at
                self._first.observe(at - ticket.submitted)
            else:
                self._between.observe((at - ticket.last_token) / len(event.token_ids))
            ticket.last_token = at
        elif isinstance(event, Result) and event.finish_reason not in ("error", "cancelled"):
            self._finished(ticket, event, at)

    def _finished(self, ticket: Ticket, result: Result, at: float) -> None:
        stats = result.stats
        # stats count the best hypothesis of a beam search; the client receives all of them
        emitted = stats.emitted if result.hypotheses is None else sum(len(one.token_ids) for one in result.hypotheses)
        for counter, count in (
                (self._prompt_tokens, len(ticket.source)), (self._tokens, emitted), (self._steps, stats.steps),
                (self._drafts, stats.covered), (self._drafted, stats.drafted), (self._accepted, stats.accepted),
                (self._tested, stats.tested)):
            counter.inc(count)
        for position, count in enumerate(stats.accepted_at):
            if count:
                self._labelled(self._accepted_at, position=position).inc(count)
        self._labelled(self._success, finished_reason=result.finish_reason).inc()
        self._latency.observe(at - ticket.submitted)
        self._queue.observe(ticket.started - ticket.submitted)
        self._prompt_size.observe(len(ticket.source))
        self._size.observe(emitted)

    def answered(self, route: str, status: int) -> None:
        """Count a response."""
        self._labelled(self._answers, route=route, status=status).inc()

    def render(self, engine: Engine) -> bytes:
        """All metrics in Prometheus' text format."""
        self._running.set(engine.num_running)
        self._waiting.set(engine.num_waiting)
        pool = engine.model.target.cache.pool
        self._cache.set(1 - pool.free / pool.pages if pool.pages else 0)
        return generate_latest(self.registry)
