"""Every drafter at every setting, interleaved with plain decoding: which drafter when, and is "auto" near the best?

    python -m foredraft.bench.studies.methods_comparison --data articles.jsonl --drafter runs/lstm

Each drafter's K is chosen on other articles; a speed-up is given only where tokens equal plain decoding's.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import typer

from foredraft.bench.harness import measure
from foredraft.bench.harness.bench_run import figures
from foredraft.bench.harness.cases import describe
from foredraft.bench.harness.methods import REFERENCE, drafting_method
from foredraft.bench.harness.record import common_fields, store
from foredraft.bench.harness.settings import Settings
from foredraft.bench.report import methods_table
from foredraft.bench.report.methods_table import name_of
from foredraft.bench.report.tables import Table
from foredraft.bench.studies.simulate import NotModelled, counted, simulate, simulated, trace
from foredraft.cli import options
from foredraft.cli.measuring import counting, open_model, read_articles, run_script, show
from foredraft.engine.drafters.tree import TreeDrafter
from foredraft.engine.params import AUTO
from foredraft.errors import UserError

# the default comparison; the self-drafter keeps the layers with which the embedded target copies
DRAFTERS = ("lookup", "ngram", "lookup+ngram", "lstm", "cascade:lookup,lstm", "self:0cf,1sf,2")


@dataclass(frozen=True)
class Configuration:
    """A drafter as foredraft.load takes it (or REFERENCE), its draft_tokens (K or "auto") and its verification."""

    drafter: str
    draft_tokens: int | str
    verification: str = "token"

    @property
    def name(self) -> str:
        return name_of({"drafter": self.drafter, "draft_tokens": self.draft_tokens, "verification": self.verification})


def compare(model, drafters: Sequence[str], sources: Sequence[Sequence[int]], others: Sequence[Sequence[int]],
            settings: Settings, common: dict, widths: Sequence[int],
            on_batch: Callable[[], None] = lambda: None) -> list[dict]:
    """A record for each configuration, plain decoding first.

    Parameters
    ----------
    others : sequence of sources
        The articles on which each drafter's K is chosen from `widths`.
    settings : Settings
        settings.draft_tokens is not used.
    common : dict
        Fields of all records.

    Returns
    -------
    list of dict
        `drafter`, `draft_tokens`, `verification` name the Configuration. `absent`: why it did not run, else None, with
        bench_run.figures() and `trace`. `of_best`: measure.speed_up() over the fastest other configuration (see `fastest`),
        named under "way"; AUTO and configurations whose tokens differ are not among them. `simulated`: simulate() at the K
        that is best there, for a fixed K with token verification, else None.
    """
    models, absent = _opened(model, drafters, sources, settings)
    tuned = {spec: drafting for spec, drafting in models.items() if spec != AUTO}
    chosen = _chosen(tuned, others, settings, widths, on_batch)
    plain = Configuration(REFERENCE, 0)
    methods = {plain: drafting_method(model.with_drafter(None), settings, 0)}
    for spec, drafting in models.items():
        for one in _configurations(spec, drafting, chosen.get(spec), settings):
            # a model of its own: adaptive lengths are learned separately
            own = drafting.with_drafter(drafting.drafter)
            methods[one] = drafting_method(own, settings, one.draft_tokens, verification=one.verification)
    samples = measure.measure(methods, sources, settings, end_token=model.target.end_token, on_batch=on_batch)
    found, rows = {one: figures(samples[plain], samples[one], method) for one, method in methods.items()}, []
    for one, method in methods.items():
        row = common | {"drafter": one.drafter, "draft_tokens": one.draft_tokens, "verification": one.verification,
                        "absent": None, **found[one], "trace": trace([sample.stats for sample in samples[one][0]]),
                        "of_best": None, "simulated": None}
        rivals = {other: samples[other] for other in methods
                  if other.drafter != AUTO and other != one and found[other]["speed_up"]}
        if rivals:
            best, names = fastest(rivals)
            row["of_best"] = measure.speed_up(best, samples[one], with_encoding=False) | {"way": names}
        if one.draft_tokens not in (0, AUTO) and one.verification == "token":
            row["simulated"] = simulate(method.model, chosen[one.drafter][1], sources, settings)
        rows.append(row)
    return rows + [common | {"drafter": spec, "draft_tokens": None, "verification": None, "absent": why}
                   for spec, why in absent.items()]


def fastest(rivals: dict[Configuration, measure.Samples]) -> tuple[measure.Samples, str]:
    """The samples of the fastest rival, batch by batch, and its name.

    On each half of the batches it is the rival that was fastest on the other half: one chosen on the batches on which it is
    timed would look faster than it is.
    """
    count = len(next(iter(rivals.values()))[0])
    winners = []
    for half in (0, 1):
        rest = [number for number in range(count) if number % 2 != half] or [0]
        winners.append(max(rivals, key=lambda one, rest=rest: measure.tokens_per_second(
            [[batches[number] for number in rest] for batches in rivals[one]], with_encoding=False)["median"]))
    repeats = len(rivals[winners[0]])
    chosen = [[rivals[winners[number % 2]][repeat][number] for number in range(count)] for repeat in range(repeats)]
    return chosen, " or ".join(dict.fromkeys(one.name for one in winners))


def _opened(model, drafters: Sequence[str], sources: Sequence[Sequence[int]], settings: Settings) -> tuple[dict, dict]:
    """Models by drafter, each after a first batch, and the reason for each drafter that cannot run here."""
    models, absent = {}, {}
    for spec in dict.fromkeys(drafters):
        try:
            drafting = model.with_drafter(spec)
            drafting_method(drafting, replace(settings, max_new_tokens=4), 1).run(sources[: settings.batch_size], 0)
            models[spec] = drafting
        except UserError as reason:
            absent[spec] = str(reason)
    return models, absent


def _configurations(spec: str, drafting, chosen: tuple[int, int] | None, settings: Settings) -> list[Configuration]:
    """A drafter at its K and at "auto", sampled drafts with both verifications; AUTO itself; trees at their K only."""
    if spec == AUTO:
        return [Configuration(AUTO, AUTO)]
    if isinstance(drafting.drafter, TreeDrafter):
        return [Configuration(spec, chosen[0])]
    sampled = settings.do_sample and not drafting.drafter.capabilities.point_masses
    return [Configuration(spec, K, verification) for K in (chosen[0], AUTO)
            for verification in ("token", "block")[: 1 + sampled]]


def _chosen(models: dict, sources: Sequence[Sequence[int]], settings: Settings, widths: Sequence[int],
            on_batch: Callable[[], None]) -> dict[str, tuple[int, int]]:
    """For each drafter the K that is fastest here, and the K that is fastest by simulation."""
    once = replace(settings, repeats=1, warm_up=1)
    methods = {(spec, K): counted(drafting_method(drafting, once, K)) for spec, drafting in models.items() for K in widths}
    samples = measure.measure({key: method for key, (method, _) in methods.items()}, sources, once,
                              end_token=next(iter(models.values())).target.end_token, on_batch=on_batch) if methods else {}

    def here(spec: str, K: int) -> float:
        return measure.tokens_per_second(samples[spec, K], with_encoding=False)["median"]

    def there(spec: str, K: int) -> float:
        try:
            found = trace([sample.stats for sample in samples[spec, K][0]]) | methods[spec, K][1]()
            return simulated(models[spec].drafter, K, found, settings)["speed_up"]
        except NotModelled:
            return 0.0

    return {spec: tuple(max(widths, key=lambda K, spec=spec, speed=speed: speed(spec, K)) for speed in (here, there))
            for spec in models}


def main(
    data: options.Data = None,
    drafter: Annotated[list[str] | None, typer.Option(help="A further drafter, as for `summarize`; repeatable.")] = None,
    only: Annotated[bool, typer.Option("--only", help="Compare only the drafters of --drafter.")] = False,
    t5: Annotated[Path | None, typer.Option(help="Folder of a trained T5 drafter, for staged:lookup,FOLDER.")] = None,
    temperature: options.TemperatureList = "0,1",
    batch_size: options.BatchSizeList = "1,8",
    target: options.Target = None,
    limit: options.Limit = 40,
    tune: Annotated[int, typer.Option(min=1, help="Articles after those of --limit on which each K is chosen.")] = 16,
    widths: Annotated[str, typer.Option(help="The K to choose from, separated by commas.")] = "1,2,3,5,8,12",
    repeats: options.Repeats = 3,
    max_new_tokens: options.MaxNewTokens = 128,
    seed: options.Seed = 0,
    out: options.Results = Path("bench/results"),
    as_json: options.Json = False,
    wide: options.Wide = False,
) -> None:
    """Compare drafters at each temperature and batch size; each setting is stored when it is complete."""
    if only and not drafter:
        raise UserError("--only: no drafter is left to compare; name one with --drafter")
    usual = () if only else (*DRAFTERS, *([f"staged:lookup,{t5}"] if t5 else []), AUTO)
    Ks = options.parse_numbers("--widths", widths, int, 1)
    settings = [Settings(batch_size=size, temperature=T, max_new_tokens=max_new_tokens, repeats=repeats, seed=seed)
                for T in options.parse_numbers("--temperature", temperature, float, 0)
                for size in options.parse_numbers("--batch-size", batch_size, int, 1)]
    plain = open_model(target)
    articles = read_articles(data, plain, limit + tune)
    if len(articles) < limit + tune:
        raise UserError(f"--limit {limit} and --tune {tune}: there are {len(articles)} articles; lower one of the two")
    measured, others = articles[:limit], articles[limit:]
    common = common_fields("methods", model=plain, data=describe(data, measured)) | {
        "tuned_on": tune, "max_new_tokens": max_new_tokens, "repeats": repeats, "seed": seed}
    rows: list[dict] = []
    for one in settings:
        with counting(text=f"T={one.temperature:g} B={one.batch_size}") as advance:
            found = compare(plain, [*usual, *(drafter or ())], [case.source for case in measured],
                            [case.source for case in others], one,
                            common | {"temperature": one.temperature, "batch_size": one.batch_size}, Ks, advance)
        # stored at once: an interrupted run keeps the settings that are complete
        path = store(found, out)
        rows += found
        show([Table(f"T={one.temperature:g}, B={one.batch_size}: decoding speed over plain decoding and over the fastest "
                    f"other "
                    "configuration", methods_table.HEADS, methods_table.lines(found), methods_table.WIDE),
              *(f"{row['drafter']} is absent: {row['absent']}" for row in found if row["absent"])], wide)
    print(json.dumps({"record": str(path), "rows": rows}) if as_json else f"record: {path}")


if __name__ == "__main__":
    run_script(main)
