"""Adaptive draft lengths against fixed ones and plain decoding, with useful drafters and with useless ones.

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
from foredraft.engine.draft_length.adaptive_drafter import MAX_DRAFT
from foredraft.engine.params import AUTO
from foredraft.engine.protocols import Capabilities, Drafter
from foredraft.engine.state import DecodeState, Draft, DraftBudget

# names of the methods, beside the fixed K
PLAIN, BLOCK, ORACLE = "plain", "auto, block", "oracle"


class Wrong(Drafter):
    """Drafts of another drafter with every token changed: the same cost, almost nothing accepted. All are point masses."""

    capabilities = Capabilities(point_masses=True)

    def __init__(self, drafter: Drafter, vocab_size: int):
        self.drafter, self.vocab_size, self.name = drafter, vocab_size, drafter.name
        self.admit, self.release = drafter.admit, drafter.release

    def draft(self, state: DecodeState, budget: DraftBudget | None = None) -> Draft:
        drafted = self.drafter.draft(state, budget)
        return Draft((drafted.tokens + 1) % self.vocab_size, drafted.lengths, drafted.dense & False, drafted.proposer)


def measure_lengths(model, sources: Sequence[Sequence[int]], settings: Settings, draft_tokens: Sequence[int],
            on_batch: Callable[[], None] = lambda: None) -> list[dict]:
    """Measure plain decoding, each K and "auto", and "auto" with block verification where drafts are sampled.

    Parameters
    ----------
    settings : Settings
        Of all methods; `draft_tokens` is not used.
    draft_tokens : K to measure, MAX_DRAFT besides; empty: neither a fixed K nor the oracle

    Returns
    -------
    list of dict
        A record for each method, and for the oracle. `speed_up`: over plain decoding. `differ`: articles whose tokens are
        not those of plain decoding; None for sampled drafts, which use other random numbers. `of_best`, `of_oracle`: tokens
        a second of "auto" over those of the best K and of the oracle.
    """
    fixed = sorted({*draft_tokens, MAX_DRAFT}) if draft_tokens else []
    methods = {PLAIN: drafting_method(model.with_drafter(None), settings, 0)}
    methods |= {str(K): drafting_method(model, settings, K) for K in (*fixed, AUTO)}
    is_sampled = settings.do_sample and not model.drafter.capabilities.point_masses
    if is_sampled:
        methods[BLOCK] = drafting_method(model, settings, AUTO, verification="block")
    samples = measure.measure(methods, sources, settings, end_token=model.target.end_token, on_batch=on_batch)
    records = []
    for name, method_samples in samples.items():
        found = measure.acceptance(method_samples)
        records.append({
            "draft_tokens": name, "speed_up": measure.speed_up(samples[PLAIN], method_samples, with_encoding=False),
            "tokens_per_second": measure.tokens_per_second(method_samples, with_encoding=False),
            "tokens_per_step": found["tokens_per_step"], "drafted_per_step": found["drafted"] / found["steps"],
            "rate": found["rate"], "seconds": measure.seconds(method_samples),
            "differ": None if is_sampled and name != PLAIN else measure.differing(samples[PLAIN], method_samples)})
    if fixed:
        records.append(oracle(samples[PLAIN], {K: samples[str(K)] for K in fixed}, settings.batch_size))
        rates = {record["draft_tokens"]: record["tokens_per_second"]["median"] for record in records}
        for record in records:
            if record["draft_tokens"] in (AUTO, BLOCK):
                record["of_best"] = rates[record["draft_tokens"]] / max(rates[str(K)] for K in fixed)
                record["of_oracle"] = rates[record["draft_tokens"]] / rates[ORACLE]
    return records


def oracle(plain: measure.Samples, fixed: dict[int, measure.Samples], batch_size: int) -> dict:
    """The record of an oracle that drafts exactly the tokens that are accepted, or none where plain steps are cheaper.

    Its acceptances are those of the largest K; its costs are fitted to all runs. `costs`, in ms: a plain step, a further
    query position, a call of the drafter, a drafted token. A call is divided by the batch size, as if all sequences always
    shared it, so the speed is an upper bound.
    """
    counts = _counts(plain)
    step = counts["verify"] / counts["passes"]
    runs = [_counts(samples) for samples in fixed.values()]
    positions = np.array([run["drafted"] / run["passes"] for run in runs])
    added = np.array([run["verify"] / run["passes"] - step for run in runs])
    position = max(float(positions @ added / (positions @ positions)), 0.0) if positions.any() else 0.0
    calls = np.array([(run["draft"] / run["passes"], run["drafted"] / max(run["covered"], 1)) for run in runs])
    token, call = np.polyfit(calls[:, 1], calls[:, 0], 1) if len(np.unique(calls[:, 1])) > 1 else (0.0, calls[:, 0].mean())
    token, call = max(float(token), 0.0), max(float(call), 0.0)
    trace = runs[-1]
    # steps in which so many tokens were accepted, and the cost of emitting these tokens by a draft or by plain steps
    at = np.array([*trace["accepted_at"], 0], float)
    steps_with, accepted = at[:-1] - at[1:], np.arange(1, len(at))
    by_draft, by_steps = (call + accepted * token) / batch_size + accepted * position, accepted * step / batch_size
    seconds = trace["passes"] * step + float(steps_with @ np.minimum(by_draft, by_steps))
    drafted, undrafted = (float(steps_with @ (accepted * which)) for which in (by_draft < by_steps, by_draft >= by_steps))
    steps = trace["steps"] + undrafted
    rate = trace["emitted"] / seconds
    speed_up = rate / measure.tokens_per_second(plain, with_encoding=False)["median"]
    return {"draft_tokens": ORACLE, "tokens_per_second": {"median": rate}, "speed_up": {"median": speed_up}, "rate": 1.0,
            "tokens_per_step": trace["emitted"] / steps, "drafted_per_step": drafted / steps,
            "costs": {"step": step * 1e3, "position": position * 1e3, "call": call * 1e3, "token": token * 1e3},
            "differ": None}


def _counts(samples: measure.Samples) -> dict:
    """Sums over the articles: target passes, steps, tokens; seconds of drafting, and of the rest without encoding."""
    stats, seconds = [sample.stats for sample in samples[0]], measure.seconds(samples)
    names = ("passes", "steps", "covered", "drafted", "emitted")
    counts = {name: sum(getattr(article, name) for article in stats) for name in names}
    return counts | {"accepted_at": np.sum([article.accepted_at for article in stats], axis=0).tolist(),
                     "draft": seconds["draft"], "verify": seconds["verify"] + seconds["other"]}


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
    """Compare draft_tokens="auto" with plain decoding, fixed K and an oracle: tokens a second."""
    temperatures = options.parse_numbers("--temperature", temperature, float, 0)
    sizes = options.parse_numbers("--batch-size", batch_size, int, 1)
    Ks = options.parse_numbers("--draft-tokens", draft_tokens, int, 1)
    plain = open_model(target)
    articles, records = read_articles(data, plain, limit), []
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
                    found = measure_lengths(drafting, [case.source for case in articles], settings,
                                            Ks if drafting is model else [], advance)
                records += [common | {"drafter": name, "temperature": T, "batch_size": B} | record for record in found]
    finish(records, out, [Table(
        "draft lengths: tokens a second of decoding over those of plain decoding (95 % interval over batches)", HEADS,
        list(map(_line, records)), WIDE,
        "oracle: modelled; each step drafts exactly the tokens that are accepted, at the costs of the runs")], as_json, wide)


def _line(record: dict) -> list[str]:
    speed_up, differ = record["speed_up"], record["differ"]
    bounds = f" ({speed_up['low']:.3f}-{speed_up['high']:.3f})" if "low" in speed_up else ""
    return [record["drafter"], f"{record['temperature']:g}", str(record["batch_size"]), record["draft_tokens"],
            f"{record['tokens_per_second']['median']:,.0f}", f"{speed_up['median']:.3f}{bounds}",
            number(record["tokens_per_step"]), number(record["drafted_per_step"]), number(record["rate"]),
            "-" if differ is None else str(differ), *(number(record.get(name)) for name in ("of_best", "of_oracle"))]


if __name__ == "__main__":
    run_script(main)
