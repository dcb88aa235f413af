"""Timed decoding, and the sums over it: one counter and one clock for all methods.

The methods take turns batch by batch inside one process, in random order and each after the last one's threads have gone
to sleep, so that a machine that slows down slows all of them. The tokens compared with plain decoding's are those of the
timed passes themselves.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from foredraft.bench.harness.interleave import orders, wait_until_idle
from foredraft.bench.harness.methods import Method
from foredraft.bench.harness.settings import Settings

PHASES = ("encode", "draft", "verify")


@dataclass(frozen=True)
class Sample:
    """One batch decoded once: `rows` of ids up to the end of text, wall `seconds`, `phases` of it, stats or None, proposers of
    the ids (indices of engine.state.PROPOSERS) or None."""

    rows: list[list[int]]
    seconds: float
    phases: dict[str, float] = field(default_factory=dict)
    stats: object | None = None
    proposers: list[list[int]] | None = None

    @property
    def tokens(self) -> int:
        return sum(map(len, self.rows))


# [repeat][batch]
Samples = list[list[Sample]]


def until_end(ids: Sequence[int], end_token: int, limit: int) -> list[int]:
    """What a row really emitted: its ids up to and with the first end token, `limit` at most. Everyone's tokens are
    counted and compared after this."""
    ids = list(ids[:limit])
    return ids[: ids.index(end_token) + 1] if end_token in ids else ids


def batches(sources: Sequence[Sequence[int]], size: int) -> list[list[Sequence[int]]]:
    return [list(sources[start : start + size]) for start in range(0, len(sources), size)]


def measure(methods: Mapping[str, Method], sources: Sequence[Sequence[int]], settings: Settings, *, end_token: int,
            on_batch: Callable[[], None] = lambda: None, clock: Callable[[], float] = time.perf_counter,
            settle: Callable[[], None] = wait_until_idle, partial: bool = False) -> dict[str, Samples]:
    """Decode all sources `settings.repeats` times with every method, after an untimed pass over the first batches.

    Interrupted, it gives the passes that are complete, or with `partial` those batches of the first one that all methods
    have decoded; without any, the interruption goes on.
    """
    names, work = list(methods), batches(sources, settings.batch_size)

    def once(name: str, number: int) -> Sample:
        # one seed a batch: the same for every method, so that seeded outputs can be compared
        seed = settings.seed + number * settings.batch_size
        settle()
        start = clock()
        output = methods[name].run(work[number], seed)
        seconds = output.wall if output.wall is not None else clock() - start
        rows = [until_end(ids, end_token, settings.max_new_tokens) for ids in output.token_ids]
        return Sample(rows, seconds, output.seconds, output.stats, output.proposers)

    for number in range(min(settings.warm_up, len(work))):
        for name in names:
            once(name, number)
    taken = {name: [[] for _ in range(settings.repeats)] for name in names}
    turns = orders(names, settings.seed)
    try:
        for repeat in range(settings.repeats):
            for number in range(len(work)):
                for name in next(turns):
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
    """The gate: how many articles any pass of `other` decoded to other tokens than the first pass of `reference`."""
    expected = [row for sample in reference[0] for row in sample.rows]
    passes = [[row for sample in one for row in sample.rows] for one in other]
    return sum(any(one[article] != row for one in passes) for article, row in enumerate(expected))


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median and 20th / 80th percentile over the repeats."""
    low, middle, high = np.percentile(values, [20, 50, 80])
    return {"median": float(middle), "p20": float(low), "p80": float(high)}


def seconds(samples: Samples) -> dict[str, float | None]:
    """Total, encode, draft, verify and other in seconds for all articles: medians over the passes. None: not told.

    `other` is what is left of a method that tells its draft and verify time: verifications, commits, the host.
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
    """All tokens over all seconds, a pass at a time; `spread` over the passes."""
    cost = (lambda sample: sample.seconds) if with_encoding else decode_seconds
    return spread([sum(sample.tokens for sample in one) / sum(map(cost, one)) for one in samples])


def speed_up(reference: Samples, other: Samples, *, with_encoding: bool, resamples: int = 2000) -> dict[str, float]:
    """Seconds a token of `reference` over those of `other`, totals over totals: `spread` over the passes, and as low / high
    the 95 % bootstrap interval of the median, over batches (their pairs were taken side by side). Per token, because
    samples of one distribution end at different lengths; for the same tokens it is the ratio of the seconds."""
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
    """The drafting figures of one pass (all passes draft alike); None for a method without DecodeStats.

    rate = accepted / tested: of the drafts that the target verified, up to and with a round's first rejection.
    per_drafted = accepted / drafted. tokens_per_step counts the target's own token. coverage: share of rounds with a
    draft. at: accepted / tested by place in the draft, from the first.
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
        "rounds": steps, "drafted": drafted, "tested": tested, "accepted": accepted,
        "rate": ratio(accepted, tested), "per_drafted": ratio(accepted, drafted),
        "tokens_per_step": ratio(emitted, steps), "coverage": ratio(covered, steps),
        "at": [ratio(a, t) for a, t in zip(accepted_at, tested_at, strict=True)],
    }


def ratio(part: float, whole: float) -> float | None:
    return float(part / whole) if whole else None
