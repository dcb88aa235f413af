"""Big Little Decoder (Kim et al. 2023), LOSSY: what its thresholds gain in speed and cost in ROUGE."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from foredraft.bench.harness import measure
from foredraft.bench.harness.bench_run import Rouge
from foredraft.bench.harness.cases import Case
from foredraft.bench.harness.methods import drafting_method
from foredraft.bench.harness.settings import Settings

PLAIN, LOSSLESS = "plain", "lossless"


def thresholds(model, cases: Sequence[Case], settings: Settings, grid: Sequence[tuple[float, float]],
               on_batch: Callable[[], None] = lambda: None) -> list[dict]:
    """A row for plain decoding, for lossless drafts of settings.draft_tokens, and for every (fallback, rollback) of `grid`.

    Lossless rows have `speed_up` over plain decoding (None where a token differs). Lossy ones have none: `lossy` names their
    policy, `over_plain` and `over_lossless` compare ids a second of unequal outputs. `differ`: articles whose ids are not
    plain decoding's; `rouge`: compare.Rouge; `length`: ids of a summary.
    """
    methods = {PLAIN: drafting_method(model.with_drafter(None), settings, 0),
               LOSSLESS: drafting_method(model, settings, settings.draft_tokens)}
    methods |= {f"{fallback:g},{rollback:g}": drafting_method(model, settings, settings.draft_tokens,
                                                              big_little=(fallback, rollback))
                for fallback, rollback in grid}
    samples = measure.measure(methods, [case.source for case in cases], settings, end_token=model.target.end_token,
                              on_batch=on_batch)
    rouge = Rouge(model.tokenizer, [case.reference for case in cases])
    rows = []
    for name, taken in samples.items():
        found, differ = measure.acceptance(taken), measure.differing(samples[PLAIN], taken)
        lossy = taken[0][0].stats.lossy
        ids = [row for sample in taken[0] for row in sample.rows]
        row = {"method": name, "lossy": lossy, "differ": differ, "rouge": rouge(ids),
               "tokens_per_second": measure.tokens_per_second(taken, with_encoding=False),
               "tokens_per_step": found["tokens_per_step"], "drafted_per_step": found["drafted"] / found["rounds"],
               "rate": found["rate"], "length": sum(map(len, ids)) / len(ids)}
        if lossy:
            row |= {f"over_{other}": measure.speed_up(samples[other], taken, with_encoding=False)
                    for other in (PLAIN, LOSSLESS)}
        else:
            row["speed_up"] = measure.speed_up(samples[PLAIN], taken, with_encoding=False) if differ == 0 else None
        rows.append(row)
    return rows
