"""Adaptive draft lengths against fixed ones and plain decoding, with useful drafters and a useless one.

    python -m foredraft.bench.studies.adaptive --data articles.jsonl --limit 100 --drafter lookup
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from foredraft.bench.harness import measure
from foredraft.bench.harness.cases import describe
from foredraft.bench.harness.methods import drafting_method
from foredraft.bench.harness.record import common_fields
from foredraft.bench.harness.settings import Settings
from foredraft.bench.report.tables import Table, number
from foredraft.cli import options
from foredraft.cli.measuring import counting, finish, open_model, read_articles, run_script
from foredraft.engine.draft_length.adaptive_drafter import WIDEST
from foredraft.engine.params import AUTO
from foredraft.engine.protocols import Capabilities, Drafter
from foredraft.engine.state import DecodeState, Draft, DraftBudget

PLAIN, BLOCK, ORACLE = "plain", "auto, block", "oracle"


class Wrong(Drafter):
    """Another drafter's drafts at their cost, with every token changed: point masses that are almost never accepted."""

    capabilities = Capabilities(point_masses=True)

    def __init__(self, drafter: Drafter, vocab_size: int):
        self.drafter, self.vocab_size, self.name = drafter, vocab_size, drafter.name
        self.admit, self.release = drafter.admit, drafter.release

    def draft(self, state: DecodeState, budget: DraftBudget | None = None) -> Draft:
        drafted = self.drafter.draft(state, budget)
        return Draft((drafted.tokens + 1) % self.vocab_size, drafted.lengths, drafted.dense & False, drafted.proposer)


def lengths(model, sources: Sequence[Sequence[int]], settings: Settings, draft_tokens: Sequence[int],
            on_batch: Callable[[], None] = lambda: None) -> list[dict]:
    """A record for plain decoding, each K and "auto"; block verification of sampled drafts; and the oracle, if there are K.

    `speed_up`: measure.speed_up of decoding over plain decoding. `differ`: articles whose tokens are not plain decoding's;
    None for sampled drafts, which use other random numbers. `of_best`, `of_oracle`: tokens a second of "auto" over those of
    the best K and of the oracle. settings.draft_tokens is not used.
    """
    fixed = sorted({*draft_tokens, WIDEST}) if draft_tokens else []
    methods = {PLAIN: drafting_method(model.with_drafter(None), settings, 0)}
    methods |= {str(K): drafting_method(model, settings, K) for K in (*fixed, AUTO)}
    dense = settings.do_sample and not model.drafter.capabilities.point_masses
    if dense:
        methods[BLOCK] = drafting_method(model, settings, AUTO, verification="block")
    samples = measure.measure(methods, sources, settings, end_token=model.target.end_token, on_batch=on_batch)
    rows = []
    for name, taken in samples.items():
        found = measure.acceptance(taken)
        rows.append({
            "draft_tokens": name, "speed_up": measure.speed_up(samples[PLAIN], taken, with_encoding=False),
            "tokens_per_second": measure.tokens_per_second(taken, with_encoding=False),
            "tokens_per_step": found["tokens_per_step"], "drafted_per_step": found["drafted"] / found["steps"],
            "rate": found["rate"], "seconds": measure.seconds(taken),
            "differ": None if dense and name != PLAIN else measure.differing(samples[PLAIN], taken)})
    if fixed:
        rows.append(oracle(samples[PLAIN], {K: samples[str(K)] for K in fixed}, settings.batch_size))
        rates = {row["draft_tokens"]: row["tokens_per_second"]["median"] for row in rows}
        for row in rows:
            if row["draft_tokens"] in (AUTO, BLOCK):
                row["of_best"] = rates[row["draft_tokens"]] / max(rates[str(K)] for K in fixed)
                row["of_oracle"] = rates[row["draft_tokens"]] / rates[ORACLE]
    return rows


def oracle(plain: measure.Samples, fixed: dict[int, measure.Samples], batch_size: int) -> dict:
    """An oracle that drafts exactly the tokens that are accepted, or none where plain steps are cheaper.

    Acceptances are those of the widest K; costs are fitted to all runs. `costs`, in ms: a plain step, a further position of
    a pass, a call of the drafter, a drafted token. In a batch the sequences share calls; here a call is divided by the batch
    size, so the speed is an upper bound.
    """
    known = _counts(plain)
    base = known["verify"] / known["passes"]
    runs = [_counts(samples) for samples in fixed.values()]
    further = np.array([run["drafted"] / run["passes"] for run in runs])
    dearer = np.array([run["verify"] / run["passes"] - base for run in runs])
    row = max(float(further @ dearer / (further @ further)), 0.0) if further.any() else 0.0
    calls = np.array([(run["draft"] / run["passes"], run["drafted"] / max(run["covered"], 1)) for run in runs])
    each, call = np.polyfit(calls[:, 1], calls[:, 0], 1) if len(np.unique(calls[:, 1])) > 1 else (0.0, calls[:, 0].mean())
    each, call = max(float(each), 0.0), max(float(call), 0.0)
    trace = runs[-1]
    # steps with so many accepted drafts, and the cost of emitting them by a draft or by plain steps
    at = np.array([*trace["accepted_at"], 0], float)
    found, accepted = at[:-1] - at[1:], np.arange(1, len(at))
    drafts, plainly = (call + accepted * each) / batch_size + accepted * row, accepted * base / batch_size
    seconds = trace["passes"] * base + float(found @ np.minimum(drafts, plainly))
    drafted, undrafted = (float(found @ (accepted * which)) for which in (drafts < plainly, drafts >= plainly))
    steps = trace["steps"] + undrafted
    rate = trace["emitted"] / seconds
    over = rate / measure.tokens_per_second(plain, with_encoding=False)["median"]
    return {"draft_tokens": ORACLE, "tokens_per_second": {"median": rate}, "speed_up": {"median": over}, "rate": 1.0,
            "tokens_per_step": trace["emitted"] / steps, "drafted_per_step": drafted / steps,
            "costs": {"step": base * 1e3, "position": row * 1e3, "call": call * 1e3, "token": each * 1e3}, "differ": None}


def _counts(samples: measure.Samples) -> dict:
    """Sums of one pass over the articles: target passes, steps, tokens, seconds of drafting and of the rest without
    encoding."""
    stats, spent = [sample.stats for sample in samples[0]], measure.seconds(samples)
    names = ("passes", "steps", "covered", "drafted", "emitted")
    counts = {name: sum(getattr(one, name) for one in stats) for name in names}
    return counts | {"accepted_at": np.sum([one.accepted_at for one in stats], axis=0).tolist(), "draft": spent["draft"],
                     "verify": spent["verify"] + spent["other"]}


HEADS = ("drafter", "T", "B", "K", "tok/s", "over plain", "tokens/step", "drafted/step", "accepted/tested", "differ",
         "of the best K", "of the oracle")
WIDE = ("tok/s", "drafted/step", "accepted/tested")


def main(
    data: options.Data = None,
    drafter: Annotated[
        list[str] | None, typer.Option(help="A drafter, as for `summarize`; repeatable. Default: lookup and ngram.")] = None,
    temperature: options.TemperatureList = "0,1",
    batch_size: options.BatchSizeList = "1,8",
    draft_tokens: options.DraftTokensList = "1,3,5",
    wrong: Annotated[bool, typer.Option("--wrong/--no-wrong", help="Also each drafter with every token wrong.")] = True,
    target: options.Target = None,
    limit: options.Limit = None,
    repeats: options.Repeats = 3,
    max_new_tokens: options.MaxNewTokens = 128,
    seed: options.Seed = 0,
    out: options.Results = Path("bench/results"),
    as_json: options.Json = False,
    wide: options.Wide = False,
) -> None:
    """Is draft_tokens="auto" never slower than plain decoding, and near the best K and the oracle?"""
    temperatures = options.parse_numbers("--temperature", temperature, float, 0)
    sizes = options.parse_numbers("--batch-size", batch_size, int, 1)
    Ks = options.parse_numbers("--draft-tokens", draft_tokens, int, 1)
    plain = open_model(target)
    articles, rows = read_articles(data, plain, limit), []
    common = common_fields("adaptive", model=plain, data=describe(data, articles)) | {
        "max_new_tokens": max_new_tokens, "repeats": repeats, "seed": seed}
    for spec in drafter or ("lookup", "ngram"):
        model = plain.with_drafter(spec)
        models = {spec: model}
        if wrong:
            models[f"{spec}, wrong"] = plain.with_drafter(Wrong(model.drafter, plain.target.config.vocab_size))
        for name, drafting in models.items():
            for T, B in ((T, B) for T in temperatures for B in sizes):
                settings = Settings(batch_size=B, temperature=T, max_new_tokens=max_new_tokens, repeats=repeats, seed=seed)
                with counting(repeats * -(-len(articles) // B), f"{name} T={T:g} B={B}") as advance:
                    found = lengths(drafting, [case.source for case in articles], settings, Ks if drafting is model else [],
                                    advance)
                rows += [common | {"drafter": name, "temperature": T, "batch_size": B} | row for row in found]
    finish(rows, out, [Table(
        "draft lengths: tokens a second of decoding over plain decoding's (95 % interval over batches)", HEADS,
        list(map(_line, rows)), WIDE,
        "oracle: modelled; each step drafts exactly the tokens that are accepted, at the costs of the runs")], as_json, wide)


def _line(row: dict) -> list[str]:
    over = row["speed_up"]
    bounds = f" ({over['low']:.3f}-{over['high']:.3f})" if "low" in over else ""
    return [row["drafter"], f"{row['temperature']:g}", str(row["batch_size"]), row["draft_tokens"],
            f"{row['tokens_per_second']['median']:,.0f}", f"{over['median']:.3f}{bounds}", number(row["tokens_per_step"]),
            number(row["drafted_per_step"]), number(row["rate"]), "-" if row["differ"] is None else str(row["differ"]),
            *(number(row.get(name)) for name in ("of_best", "of_oracle"))]


if __name__ == "__main__":
    run_script(main)
