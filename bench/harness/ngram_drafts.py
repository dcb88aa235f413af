"""Acceptance of n-gram drafts on a target's outputs, by training data, order and smoothing, alone and with lookup."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from foredraft.bench.harness.cases import load_cases
from foredraft.bench.harness.replay import first_drafts, replay, steps_of
from foredraft.engine.drafters.lookup import LookupDrafter
from foredraft.engine.drafters.ngram import NgramDrafter
from foredraft.engine.protocols import Drafter
from foredraft.errors import UserError
from foredraft.ngram_native import smooth
from foredraft.ngram_native.count import count
from foredraft.ngram_native.stopping import COST

# smoothings whose probabilities are estimates, which a copy's confidence can be compared with
COMBINED = smooth.INTERPOLATED


def name_of(path: Path) -> str:
    """Name of a pseudo-dataset folder, or of a file of summaries."""
    known = path / "pseudo.json"
    return f"own, T={json.loads(known.read_text())['temperature']:g}" if known.is_file() else path.name


def acceptance(fits: dict[str, tuple[np.ndarray, np.ndarray]], vocab_size: int, sources: Sequence[Sequence[int]],
               texts: Mapping[float, list[list[int]]], orders: Sequence[int], ks: Sequence[int], start_token: int,
               end_token: int, progress: Callable[[], None] = lambda: None) -> list[dict]:
    """A record of alpha and tokens per step for each drafter, fit, temperature and K.

    Parameters
    ----------
    fits : dict
        By the data's name, the tokens [n] and starts [m + 1] that tables are fitted on.
    texts : mapping
        The target's outputs by temperature.

    Returns
    -------
    list of dict
        `tokens_per_pass` is tokens per step over the cost of a step, where a drafted token costs COST of a pass.
        Records of lookup+ngram also have, relative to the better of lookup and ngram, the tokens per step of lookup+ngram
        (`over_better`), of an oracle that picks the better draft of each step (`oracle`), and of one that picks the right
        drafter for each token (`oracle_by_id`). Both oracles draft K tokens in every step.
    """
    ends, rows = (start_token, end_token), []
    plain = {T: _Measured(LookupDrafter, sources, outputs, ks, ends) for T, outputs in texts.items()}
    for T, measured in plain.items():
        rows += measured.rows({"drafter": "lookup", "temperature": T})
    for data, (tokens, starts) in fits.items():
        for order in orders:
            counts = count(tokens, starts, order, vocab_size)
            for smoothing in smooth.SMOOTHINGS:
                table = smooth.fit(counts, smoothing)
                for T, outputs in texts.items():
                    fields = {"data": data, "order": order, "smoothing": smoothing, "temperature": T}
                    part = _Measured(lambda table=table: NgramDrafter(table), sources, outputs, ks, ends)
                    rows += part.rows({"drafter": "ngram", **fields})
                    if smoothing in COMBINED:
                        whole = _Measured(lambda table=table: LookupDrafter(table=table), sources, outputs, ks, ends)
                        beside = _beside(plain[T], part, whole, table, sources, outputs, ends)
                        rows += [row | beside[row["K"]] for row in whole.rows({"drafter": "lookup+ngram", **fields})]
                    progress()
    return rows


def drafts_of_tables(model, fits: dict[str, tuple[np.ndarray, np.ndarray]], test: Path, skip: int, limit: int,
                     orders: Sequence[int], ks: Sequence[int], temperatures: Sequence[float],
                     progress: Callable[[], None] = lambda: None) -> list[dict]:
    """`acceptance` on the target's outputs for `limit` articles of `test` after the first `skip`."""
    articles = load_cases(test, model.tokenizer, limit=skip + limit, max_source=model.source_limit)[skip:]
    if not articles:
        raise UserError(f"{test}: no article is left after --skip {skip}; skip fewer")
    sources = [list(case.source) for case in articles]
    texts = {T: model.generate(sources, draft_tokens=0, batch_size=16, do_sample=T > 0, temperature=T or 1.0,
                               seed=0).token_ids for T in temperatures}
    target = model.target
    return acceptance(fits, target.config.vocab_size, sources, texts, orders, ks, target.start_token, target.end_token,
                      progress)


class _Measured:
    """A drafter's figures along outputs: a replay for each K, and which first drafts are right."""

    def __init__(self, make: Callable[[], Drafter], sources, outputs, ks, ends):
        # all articles in one batch: the confidences that lookup learns depend on the order of batches
        self.by_k = {K: replay(make(), sources, outputs, K, *ends, len(outputs)) for K in ks}
        self.right = first_drafts(make(), sources, outputs, *ends, len(outputs))
        for found in self.by_k.values():
            found["tokens_per_pass"] = found["tokens_per_step"] / (1 + COST * found["drafted_per_step"])

    def rows(self, fields: dict) -> list[dict]:
        alpha = float(np.concatenate(self.right).mean())
        return [fields | {"K": K, "alpha": alpha, **figures} for K, figures in self.by_k.items()]


def _beside(lookup: _Measured, ngram: _Measured, whole: _Measured, table, sources, outputs, ends) -> dict[int, dict]:
    """By K: tokens per step of lookup+ngram and of both oracles, relative to the better of the two."""
    emitted, found = sum(map(len, outputs)), {}
    for K in lookup.by_k:
        better = max(part.by_k[K]["tokens_per_step"] for part in (lookup, ngram))
        chosen = replay(LookupDrafter(cost=0.0), sources, outputs, K, *ends, len(outputs),
                        beside=NgramDrafter(table, cost=0.0))
        steps = sum(steps_of(one | other, K) for one, other in zip(lookup.right, ngram.right, strict=True))
        found[K] = {"over_better": whole.by_k[K]["tokens_per_step"] / better,
                    "oracle": chosen["tokens_per_step"] / better, "oracle_by_id": emitted / steps / better}
    return found
