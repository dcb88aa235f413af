"""Timed decoding, and figures from it: one token counter and one clock for all methods.

Methods are interleaved batch by batch in one process, in random order, each on an idle machine, so that a machine that slows
down slows all of them. The tokens that are compared with plain decoding's are those of the timed passes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from foredraft.bench.harness.interleave import orders, wait_until_idle
from foredraft.bench.harness.methods import Method
from foredraft.bench.harness.settings import Settings

PHASES = ("encode", "draft", "verify")


@dataclass(frozen=True)
class Sample:
    """One batch decoded once.

    `outputs`: tokens of each sequence up to the end token. `seconds`: wall time, and `phases` of it. `stats`: DecodeStats or
    None. `proposers`: of each token (indices of engine.drafters.registry.PROPOSERS), or None.
    """

    outputs: list[list[int]]
    seconds: float
    phases: dict[str, float] = field(default_factory=dict)
    stats: object | None = None
    proposers: list[list[int]] | None = None

    @property
    def tokens(self) -> int:
        return sum(map(len, self.outputs))


# [repeat][batch]
Samples = list[list[Sample]]


def until_end(ids: Sequence[int], end_token: int, limit: int) -> list[int]:
    """The tokens up to and with the first end token, `limit` at most. All methods' tokens are counted and compared this
    way."""
    ids = list(ids[:limit])
    return ids[: ids.index(end_token) + 1] if end_token in ids else ids


def batches(sources: Sequence[Sequence[int]], size: int) -> list[list[Sequence[int]]]:
    return [list(sources[start : start + size]) for start in range(0, len(sources), size)]


def measure(methods: Mapping[Any, Method], sources: Sequence[Sequence[int]], settings: Settings, *, end_token: int,
            on_batch: Callable[[], None] = lambda: None, clock: Callable[[], float] = time.perf_counter,
            settle: Callable[[], None] = wait_until_idle, partial: bool = False) -> dict[Any, Samples]:
    """Decode all sources `settings.repeats` times with every method, after an untimed pass over the first batches.

    After an interruption it returns the complete passes, or with `partial` the batches of the first pass that all methods
    have decoded. If there are none, KeyboardInterrupt is raised again.
    """
    names, work = list(methods), batches(sources, settings.batch_size)

    def once(name: str, number: int) -> Sample:
        # one seed for each batch, shared by all methods, so that seeded outputs can be compared
        seed = settings.seed + number * settings.batch_size
        settle()
        start = clock()
        output = methods[name].run(work[number], seed)
        seconds = output.wall if output.wall is not None else clock() - start
        outputs = [until_end(tokens, end_token, settings.max_new_tokens) for tokens in output.token_ids]
        return Sample(outputs, seconds, output.seconds, output.stats, output.proposers)

    for number in range(min(settings.warm_up, len(work))):
        for name in names:
            once(name, number)
    taken = {name: [[] for _ in range(settings.repeats)] for name in names}
    order = orders(names, settings.seed)
    try:
        for repeat in range(settings.repeats):
            for number in range(len(work)):
                for name in next(order):
                    taken[name][repeat].append(once(name, number))
                on_batch()
    except KeyboardInterrupt:
        complete = min(sum(len(one) == len(work) for one in passes) for passes in taken.values())
        if complete:
            return {name: passes[:complete] for name, passes in taken.items()}
        done = min(len(passes[0]) for passes in taken.values())
        if not (partial and done):
            raise
        return {name: [passes[0][:done]] for name, passes in taken.items()}
    return taken


def differing(reference: Samples, other: Samples) -> int:
    """How many articles any pass of `other` decoded to other tokens than the first pass of `reference`."""
    expected = outputs_of(reference[0])
    passes = [outputs_of(one) for one in other]
    return sum(any(one[article] != tokens for one in passes) for article, tokens in enumerate(expected))


def outputs_of(one: Sequence[Sample]) -> list[list[int]]:
    """The outputs of one pass, article by article."""
    return [output for sample in one for output in sample.outputs]


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median and 20th / 80th percentile over the repeats."""
    low, middle, high = np.percentile(values, [20, 50, 80])
    return {"median": float(middle), "p20": float(low), "p80": float(high)}


def seconds(samples: Samples) -> dict[str, float | None]:
    """Total, encode, draft, verify and other in seconds for all articles: medians over the passes. None: not reported.

    `other` is the rest of a method that reports draft and verify: verification, commit, the host.
    """
    def median(cost: Callable[[Sample], float]) -> float:
        return float(np.median([sum(map(cost, one)) for one in samples]))

    found: dict[str, float | None] = {"total": median(lambda sample: sample.seconds)}
    for phase in PHASES:
        known = all(phase in sample.phases for one in samples for sample in one)
        found[phase] = median(lambda sample, phase=phase: sample.phases[phase]) if known else None
    rest = None if None in found.values() else found["total"] - sum(found[phase] for phase in PHASES)
    return found | {"other": rest}


def decode_seconds(sample: Sample) -> float:
    return sample.seconds - sample.phases["encode"]


def tokens_per_second(samples: Samples, *, with_encoding: bool) -> dict[str, float]:
    """All tokens over all seconds of a pass; `spread` over the passes."""
    cost = (lambda sample: sample.seconds) if with_encoding else decode_seconds
    return spread([sum(sample.tokens for sample in one) / sum(map(cost, one)) for one in samples])


def speed_up(reference: Samples, other: Samples, *, with_encoding: bool, resamples: int = 2000) -> dict[str, float]:
    """Seconds per token of `reference` over those of `other`: `spread` over the passes; low and high: 95 % interval.

    The interval is a bootstrap of the median over batches, which were timed in pairs. Per token, because samples of one
    distribution have different lengths; for equal tokens it is the ratio of the seconds.
    """
    cost = (lambda sample: sample.seconds) if with_encoding else decode_seconds

    def by_batch(samples: Samples) -> tuple[np.ndarray, np.ndarray]:
        return tuple(np.array([[value(sample) for sample in one] for one in samples], float)
                     for value in (cost, lambda sample: sample.tokens))  # [repeats, batches]

    (theirs, their_tokens), (ours, our_tokens) = by_batch(reference), by_batch(other)
    count = ours.shape[1]

    def ratio_of(weights: np.ndarray) -> np.ndarray:
        return (theirs @ weights) / (their_tokens @ weights) * (our_tokens @ weights) / (ours @ weights)

    # how often each batch is drawn in each resample [batches, resamples]
    weights = np.random.default_rng(0).multinomial(count, np.full(count, 1 / count), size=resamples).T
    low, high = np.percentile(np.median(ratio_of(weights), axis=0), [2.5, 97.5])
    return spread(ratio_of(np.ones(count))) | {"low": float(low), "high": float(high)}


def acceptance(samples: Samples) -> dict | None:
    """Acceptance figures of the first pass; None for a method without DecodeStats.

    `rate`: accepted / tested, where tested counts drafts up to and with a step's first rejection. `per_drafted`: accepted /
    drafted (vLLM's draft acceptance rate). `tokens_per_step`: mean acceptance length, the target's own token included.
    `coverage`: share of steps with a draft. `at`: accepted / tested by position in the draft.
    """
    stats = [sample.stats for sample in samples[0]]
    if any(one is None for one in stats):
        return None
    names = ("steps", "covered", "drafted", "tested", "accepted", "emitted")
    steps, covered, drafted, tested, accepted, emitted = (sum(getattr(one, name) for one in stats) for name in names)
    tested_at, accepted_at = (
        np.sum([getattr(one, name) for one in stats], axis=0).tolist() for name in ("tested_at", "accepted_at")
    )
    return {
        "steps": steps, "drafted": drafted, "tested": tested, "accepted": accepted,
        "rate": ratio(accepted, tested), "per_drafted": ratio(accepted, drafted),
        "tokens_per_step": ratio(emitted, steps), "coverage": ratio(covered, steps),
        "at": [ratio(a, t) for a, t in zip(accepted_at, tested_at, strict=True)],
    }


def ratio(part: float, whole: float) -> float | None:
    return float(part / whole) if whole else None
