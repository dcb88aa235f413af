"""Draft lengths that adapt against fixed ones and against plain decoding, with useful drafters and with a useless one."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from foredraft.bench import measure
from foredraft.bench.methods import drafting_method
from foredraft.bench.settings import Settings
from foredraft.engine.config import AUTO
from foredraft.engine.decode import Drafter
from foredraft.engine.state import DecodeState, Draft

PLAIN, BLOCK = "plain", "auto, block"


class Wrong:
    """Another drafter's drafts and their cost, each id changed to its neighbour: point masses that hardly ever stand."""

    point_masses = True

    def __init__(self, drafter: Drafter, vocab_size: int):
        self.drafter, self.vocab_size, self.name = drafter, vocab_size, drafter.name
        self.admit, self.release = drafter.admit, drafter.release

    def draft(self, state: DecodeState) -> Draft:
        drafted = self.drafter.draft(state)
        return Draft((drafted.tokens + 1) % self.vocab_size, drafted.lengths, drafted.dense & False, drafted.origin)


def lengths(model, sources: Sequence[Sequence[int]], settings: Settings, draft_tokens: Sequence[int],
            on_batch: Callable[[], None] = lambda: None) -> list[dict]:
    """A row for plain decoding, for every K, for "auto", and above temperature 0 with sampled drafts for blocks.

    `ratio`: ids a second of decoding over plain decoding's, its median over the passes and its 95 % bootstrap interval over
    batches that took turns. `differ`: articles whose ids are not plain decoding's; None where sampled drafts have noise of
    their own. settings.draft_tokens is not read.
    """
    methods = {PLAIN: drafting_method(model.with_drafter(None), settings, 0)}
    methods |= {str(K): drafting_method(model, settings, K) for K in (*draft_tokens, AUTO)}
    dense = settings.do_sample and not getattr(model.drafter, "point_masses", False)
    if dense:
        methods[BLOCK] = drafting_method(model, settings, AUTO, verification="block")
    samples = measure.measure(methods, sources, settings, end_token=model.target.end_token, on_batch=on_batch)
    rows = []
    for name, taken in samples.items():
        found = measure.acceptance(taken)
        rows.append({
            "draft_tokens": name, "ratio": ratio(samples[PLAIN], taken),
            "tokens_per_second": measure.tokens_per_second(taken, with_encoding=False),
            "tokens_per_round": found["tokens_per_round"], "drafted_per_round": found["drafted"] / found["rounds"],
            "rate": found["rate"], "seconds": measure.seconds(taken),
            "differ": None if dense and name != PLAIN else measure.differing(samples[PLAIN], taken)})
    return rows


def ratio(reference: measure.Samples, other: measure.Samples, resamples: int = 2000) -> dict[str, float]:
    """Ids a second over those of `reference`: the median over the passes, and low, high: its 95 % interval over batches."""
    def sums(samples, of):
        return np.array([[of(sample) for sample in one] for one in samples])  # [repeats, batches]

    count = len(other[0])
    drawn = np.random.default_rng(0).multinomial(count, np.full(count, 1 / count), size=resamples).T
    weights = np.concatenate((np.ones((count, 1)), drawn), 1)
    ours, theirs = (sums(samples, lambda sample: sample.tokens) @ weights / (sums(samples, measure.decode_seconds) @ weights)
                    for samples in (other, reference))
    found = np.median(ours / theirs, axis=0)
    low, high = np.percentile(found[1:], [2.5, 97.5])
    return {"median": float(found[0]), "low": float(low), "high": float(high)}
