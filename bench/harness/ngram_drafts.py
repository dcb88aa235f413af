"""What n-gram tables draft on a target's own outputs, by data, order and smoothing, and what copying and a table do
together."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from foredraft.bench.harness.replay import first_drafts, replay, rounds_of
from foredraft.engine.drafters.lookup import LookupDrafter
from foredraft.engine.drafters.ngram import NgramDrafter
from foredraft.engine.protocols import Drafter
from foredraft.ngram_native import smooth
from foredraft.ngram_native.count import count
from foredraft.ngram_native.query import COST

# Those that a copy's confidence can be compared with: probabilities that are estimates.
COMBINED = smooth.INTERPOLATED


@dataclass(frozen=True)
class Texts:
    """Outputs of the target at one temperature, of the same articles as the others."""

    temperature: float
    outputs: list[list[int]]


def name_of(path: Path) -> str:
    """What to call a folder that `foredraft pseudo` wrote, or a file of summaries."""
    known = path / "pseudo.json"
    return f"own, T={json.loads(known.read_text())['temperature']:g}" if known.is_file() else path.name


def acceptance(fits: dict[str, tuple[np.ndarray, np.ndarray]], vocab_size: int, sources: Sequence[Sequence[int]],
               texts: Sequence[Texts], orders: Sequence[int], ks: Sequence[int], start_token: int, end_token: int,
               progress: Callable[[], None] = lambda: None) -> list[dict]:
    """Rows of alpha and tokens a round. fits: by the data's name, ids [n] and starts [m + 1] that tables are fitted on.
    tokens_per_pass: tokens a round over what a round costs, a drafted id being COST of a pass.

    `lookup+ngram` rows have beside their figures, as multiples of the better part's tokens a round: their own
    (over_better), that of a choice between the two drafts that is right in every round (oracle), and of one that is right
    for every id (oracle_by_id). Both oracles draft K ids whatever they are worth.
    """
    ends, rows = (start_token, end_token), []
    plain = {one.temperature: _Measured(LookupDrafter, sources, one.outputs, ks, ends) for one in texts}
    rows += [found for one in texts for found in plain[one.temperature].rows({"drafter": "lookup"}, one)]
    for data, (tokens, starts) in fits.items():
        for order in orders:
            counts = count(tokens, starts, order, vocab_size)
            for smoothing in smooth.SMOOTHINGS:
                table = smooth.fit(counts, smoothing)
                fields = {"data": data, "order": order, "smoothing": smoothing}
                for one in texts:
                    part = _Measured(lambda table=table: NgramDrafter(table), sources, one.outputs, ks, ends)
                    rows += part.rows({"drafter": "ngram", **fields}, one)
                    if smoothing in COMBINED:
                        whole = _Measured(lambda table=table: LookupDrafter(table=table), sources, one.outputs, ks, ends)
                        beside = _beside(plain[one.temperature], part, whole, table, sources, one.outputs, ends)
                        rows += [row | beside[row["K"]] for row in whole.rows({"drafter": "lookup+ngram", **fields}, one)]
                    progress()
    return rows


class _Measured:
    """A drafter's figures along outputs: by K those of a replay, and which first drafts are right."""

    def __init__(self, make: Callable[[], Drafter], sources, outputs, ks, ends):
        # all articles at once: the confidences that copying learns then hang on no order of batches
        self.by_k = {K: replay(make(), sources, outputs, K, *ends, len(outputs)) for K in ks}
        self.right = first_drafts(make(), sources, outputs, *ends, len(outputs))
        for found in self.by_k.values():
            found["tokens_per_pass"] = found["tokens_per_step"] / (1 + COST * found["drafted_per_step"])

    def rows(self, fields: dict, texts: Texts) -> list[dict]:
        alpha = float(np.concatenate(self.right).mean())
        return [fields | {"temperature": texts.temperature, "K": K, "alpha": alpha, **figures}
                for K, figures in self.by_k.items()]


def _beside(lookup: _Measured, ngram: _Measured, whole: _Measured, table, sources, outputs, ends) -> dict[int, dict]:
    """By K: the combined drafter's and both oracles' tokens a round, over the better part's."""
    emitted, found = sum(map(len, outputs)), {}
    for K in lookup.by_k:
        better = max(part.by_k[K]["tokens_per_step"] for part in (lookup, ngram))
        chosen = replay(LookupDrafter(cost=0.0), sources, outputs, K, *ends, len(outputs),
                        beside=NgramDrafter(table, cost=0.0))
        rounds = sum(rounds_of(one | other, K) for one, other in zip(lookup.right, ngram.right, strict=True))
        found[K] = {"over_better": whole.by_k[K]["tokens_per_step"] / better,
                    "oracle": chosen["tokens_per_step"] / better, "oracle_by_id": emitted / rounds / better}
    return found
