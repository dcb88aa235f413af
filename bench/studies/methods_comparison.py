"""Every way of drafting at one setting: K chosen on other articles, all in turns, all held to plain decoding's tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from foredraft.bench.harness import bench_run as compare
from foredraft.bench.harness import measure
from foredraft.bench.harness.methods import REFERENCE, Method, drafting_method
from foredraft.bench.harness.settings import Settings
from foredraft.bench.report.methods_table import name_of
from foredraft.bench.studies.simulate import NotModelled, simulated
from foredraft.engine.drafters.tree import TreeDrafter
from foredraft.engine.params import AUTO
from foredraft.errors import UserError

# What is compared where nobody says otherwise, as foredraft.load takes it. Of the embedded target's decoder the last leaves
# the circuit that it copies with.
DRAFTERS = ("lookup", "ngram", "lookup+ngram", "lstm", "cascade:lookup,lstm", "self:0cf,1sf,2")
# The K that are tried on other articles.
WIDTHS = (1, 2, 3, 5, 8, 12)


@dataclass(frozen=True)
class Way:
    """`drafter` as foredraft.load takes it or REFERENCE, its draft_tokens (K or "auto") and verification."""

    drafter: str
    draft_tokens: int | str
    verification: str = "token"

    @property
    def name(self) -> str:
        return name_of({"drafter": self.drafter, "draft_tokens": self.draft_tokens, "verification": self.verification})


def contest(model, drafters: Sequence[str], sources: Sequence[Sequence[int]], others: Sequence[Sequence[int]],
            settings: Settings, common: dict, widths: Sequence[int] = WIDTHS,
            on_batch: Callable[[], None] = lambda: None) -> list[dict]:
    """A row for every way, plain decoding first; `common` is what all state. settings.draft_tokens is not read.

    drafter, draft_tokens, verification: the Way. absent: why it did not run, else None, and then compare.figures(), besides
    trace: trace(), of_best: measure.speed_up() over the fastest other way whose tokens are plain decoding's or of its distribution
    (AUTO is none of them), fastest(), and its name under "way". simulated: simulate.simulated() of the drafter
    at the K that is best there, or {"absent": why}; on the rows of a K that verify token by token, else None.

    others: the articles on which each drafter's K is chosen from `widths`.
    """
    models, absent = _opened(model, drafters, sources, settings)
    tuned = {spec: drafting for spec, drafting in models.items() if spec != AUTO}
    chosen = _chosen(tuned, others, settings, widths, on_batch)
    methods = {Way(REFERENCE, 0): drafting_method(model.with_drafter(None), settings, 0)}
    for spec, drafting in models.items():
        for way in _ways(spec, drafting, chosen.get(spec), settings):
            # what adapts learns for itself
            own = drafting.with_drafter(drafting.drafter)
            methods[way] = drafting_method(own, settings, way.draft_tokens, verification=way.verification)
    samples = measure.measure(methods, sources, settings, end_token=model.target.end_token, on_batch=on_batch)
    reference, rows = samples[Way(REFERENCE, 0)], []
    figures = {way: compare.figures(reference, samples[way], method) for way, method in methods.items()}
    for way, method in methods.items():
        row = common | {"drafter": way.drafter, "draft_tokens": way.draft_tokens, "verification": way.verification,
                        "absent": None, **figures[way], "trace": trace(samples[way]), "of_best": None, "simulated": None}
        rivals = {other: samples[other] for other in methods
                  if other.drafter != AUTO and other != way and figures[other]["speed_up"]}
        if rivals:
            best, names = fastest(rivals)
            row["of_best"] = measure.speed_up(best, samples[way], with_encoding=False) | {"way": names}
        if way.draft_tokens not in (0, AUTO) and way.verification == "token":
            row["simulated"] = _simulated(method.model, chosen[way.drafter][1], sources, settings)
        rows.append(row)
    return rows + [common | {"drafter": spec, "draft_tokens": None, "verification": None, "absent": why}
                   for spec, why in absent.items()]


def fastest(rivals: dict[Way, measure.Samples]) -> tuple[measure.Samples, str]:
    """For every other batch the samples of the rival that was fastest on the rest: whoever is chosen on the very batches on
    which it is then timed owes part of its lead to luck, the more of it the more rivals there are. And their names."""
    count = len(next(iter(rivals.values()))[0])
    winners = []
    for half in (0, 1):
        rest = [number for number in range(count) if number % 2 != half] or [0]
        winners.append(max(rivals, key=lambda way, rest=rest: measure.tokens_per_second(
            [[one[number] for number in rest] for one in rivals[way]], with_encoding=False)["median"]))
    repeats = len(rivals[winners[0]])
    chosen = [[rivals[winners[number % 2]][repeat][number] for number in range(count)] for repeat in range(repeats)]
    return chosen, " or ".join(dict.fromkeys(way.name for way in winners))


def trace(samples: measure.Samples) -> dict:
    """Sums over one pass: rounds of rows, passes of the target, ids drafted and emitted, tested and accepted by place."""
    return _sums([sample.stats for sample in samples[0]])


def _sums(stats: Sequence) -> dict:
    sums = {name: sum(getattr(one, name) for one in stats) for name in ("steps", "passes", "drafted", "emitted")}
    return sums | {name: np.sum([getattr(one, name) for one in stats], axis=0).tolist()
                   for name in ("tested_at", "accepted_at")}


def _opened(model, drafters: Sequence[str], sources: Sequence[Sequence[int]], settings: Settings) -> tuple[dict, dict]:
    """Models by drafter, and why others cannot run here; each has drafted for a batch."""
    models, absent = {}, {}
    for spec in dict.fromkeys(drafters):
        try:
            drafting = model.with_drafter(spec)
            drafting_method(drafting, replace(settings, max_new_tokens=4), 1).run(sources[: settings.batch_size], 0)
            models[spec] = drafting
        except UserError as reason:
            absent[spec] = str(reason)
    return models, absent


def _ways(spec: str, drafting, chosen: tuple[int, int] | None, settings: Settings) -> list[Way]:
    """A drafter at its K and at "auto", drawn drafts verified both ways; AUTO as it is, and trees at their K alone."""
    if spec == AUTO:
        return [Way(AUTO, AUTO)]
    if isinstance(drafting.drafter, TreeDrafter):
        return [Way(spec, chosen[0])]
    drawn = settings.do_sample and not drafting.drafter.capabilities.point_masses
    return [Way(spec, K, verification) for K in (chosen[0], AUTO) for verification in ("token", "block")[: 1 + drawn]]


def _chosen(models: dict, sources: Sequence[Sequence[int]], settings: Settings, widths: Sequence[int],
            on_batch: Callable[[], None]) -> dict[str, tuple[int, int]]:
    """For each drafter the K of the fastest pass here, and of the fastest by simulation."""
    once = replace(settings, repeats=1, warm_up=1)
    methods = {(spec, K): _counted(drafting_method(drafting, once, K)) for spec, drafting in models.items() for K in widths}
    samples = measure.measure({key: method for key, (method, _) in methods.items()}, sources, once,
                              end_token=_end(models), on_batch=on_batch) if methods else {}

    def here(spec: str, K: int) -> float:
        return measure.tokens_per_second(samples[spec, K], with_encoding=False)["median"]

    def there(spec: str, K: int) -> float:
        try:
            found = trace(samples[spec, K]) | methods[spec, K][1]()
            return simulated(models[spec].drafter, K, found, settings)["speed_up"]
        except NotModelled:
            return 0.0

    return {spec: tuple(max(widths, key=lambda K, spec=spec, speed=speed: speed(spec, K)) for speed in (here, there))
            for spec in models}


def _end(models: dict) -> int:
    return next(iter(models.values())).target.end_token


def _simulated(drafting, K: int, sources: Sequence[Sequence[int]], settings: Settings) -> dict:
    method, counts = _counted(drafting_method(drafting, settings, K))
    stats = [method.run(batch, settings.seed + number * settings.batch_size).stats
             for number, batch in enumerate(measure.batches(sources, settings.batch_size))]
    try:
        return simulated(drafting.drafter, K, _sums(stats) | counts(), settings)
    except NotModelled as reason:
        return {"absent": str(reason)}


def _counted(method: Method) -> tuple[Method, Callable[[], dict]]:
    """The method, and what it tells of a staged drafter: passes of its T5 a round."""
    drafter, sums = method.model.drafter, {"passes": 0, "rounds": 0}

    def run(sources, seed: int):
        before = getattr(drafter, "passes", 0)
        out = method.run(sources, seed)
        sums["passes"] += getattr(drafter, "passes", 0) - before
        sums["rounds"] += out.stats.passes
        return out

    return replace(method, run=run), lambda: {"passes_a_round": sums["passes"] / max(sums["rounds"], 1)}
