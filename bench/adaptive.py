"""Draft lengths that adapt against fixed ones and against plain decoding, with useful drafters and with a useless one."""

from __future__ import annotations

from collections.abc import Callable, Sequence

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

    `speed_up`: measure.speed_up of decoding over plain decoding. `differ`: articles whose ids are not plain decoding's; None
    where sampled drafts have noise of their own. settings.draft_tokens is not read.
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
            "draft_tokens": name, "speed_up": measure.speed_up(samples[PLAIN], taken, with_encoding=False),
            "tokens_per_second": measure.tokens_per_second(taken, with_encoding=False),
            "tokens_per_round": found["tokens_per_round"], "drafted_per_round": found["drafted"] / found["rounds"],
            "rate": found["rate"], "seconds": measure.seconds(taken),
            "differ": None if dense and name != PLAIN else measure.differing(samples[PLAIN], taken)})
    return rows
