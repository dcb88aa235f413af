"""Two draft-length policies against plain decoding: `old` (AdaptiveDrafter) and `new` (DraftLengthPolicy).

    python -m foredraft.bench.studies.draft_length_policies --data articles.jsonl

Fixed before the run: the first 96 articles in two passes at temperature 0; the first 192 in one pass at temperature 1, where
the policies draw different samples; batch sizes 1 and 8; drafter `auto`, and the LSTM with every token wrong. The three
methods decode each batch in random order in one process. The new policy is taken if its tokens a second are at least 97 % of
the old one's at all four settings of `auto`, and at least 97 % of plain decoding's at all four of the useless drafter; the
medians of the passes decide.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from foredraft.bench.harness import measure
from foredraft.bench.harness.cases import describe
from foredraft.bench.harness.methods import drafting_method
from foredraft.bench.harness.record import common_fields
from foredraft.bench.harness.settings import Settings
from foredraft.bench.report.tables import Table
from foredraft.bench.studies.adaptive import Wrong
from foredraft.cli import options
from foredraft.cli.measuring import counting, finish, open_model, read_articles, run_script
from foredraft.engine.draft_length.adaptive_drafter import AdaptiveDrafter
from foredraft.engine.draft_length.policy import DraftLengthPolicy
from foredraft.engine.drafters.auto_arms import AutoDrafter
from foredraft.engine.params import AUTO

PLAIN, LEAST = "plain", 0.97
POLICIES = {"old": AdaptiveDrafter, "new": DraftLengthPolicy}


def model_of(plain, policy: str, drafter: str):
    """The target with `auto` or a useless drafter under a policy."""
    if drafter == AUTO:
        model = plain.with_drafter(AUTO)
        if policy == "new":
            model.drafter = AutoDrafter(model.drafter.drafters[0], model.drafter.drafters[1:])
    else:
        right = plain.with_drafter(drafter.split(",")[0]).drafter
        model = plain.with_drafter(Wrong(right, plain.target.config.vocab_size))
    # in the place of the cached property
    model.__dict__["adaptive"] = POLICIES[policy](model.drafter)
    return model


def compare(plain, drafter: str, sources, settings: Settings, on_batch) -> dict:
    """Speeds of both policies over plain decoding's and over each other's, with bootstrap intervals over batches."""
    methods = {PLAIN: drafting_method(plain.with_drafter(None), settings, 0)}
    methods |= {name: drafting_method(model_of(plain, name, drafter), settings, AUTO) for name in POLICIES}
    samples = measure.measure(methods, sources, settings, end_token=plain.target.end_token, on_batch=on_batch)
    pairs = {"old_over_plain": (PLAIN, "old"), "new_over_plain": (PLAIN, "new"), "new_over_old": ("old", "new")}
    found = {name: measure.speed_up(samples[one], samples[other], with_encoding=False) for name, (one,
                                                                                                  other) in pairs.items()}
    found |= {f"tokens_per_step_{name}": measure.acceptance(samples[name])["tokens_per_step"] for name in POLICIES}
    greedy_or_copied = not settings.do_sample or drafter != AUTO
    found["differ"] = measure.differing(samples[PLAIN], samples["new"]) if greedy_or_copied else None
    decisive = found["new_over_old"] if drafter == AUTO else found["new_over_plain"]
    return found | {"passes": decisive["median"] >= LEAST}


def main(
    data: options.Data = None,
    drafter: Annotated[list[str] | None, typer.Option(help="`auto`, or `NAME,wrong`; repeatable.")] = None,
    temperature: options.TemperatureList = "0,1",
    batch_size: options.BatchSizeList = "1,8",
    limit: options.Limit = 96,
    repeats: options.Repeats = 2,
    max_new_tokens: options.MaxNewTokens = 128,
    seed: options.Seed = 0,
    out: options.Results = Path("bench/results"),
    as_json: options.Json = False,
) -> None:
    """Does the new policy keep the old one's speed, and plain decoding's with a useless drafter?"""
    plain = open_model(None)
    articles, rows = read_articles(data, plain, limit * repeats), []
    common = common_fields("draft-length-policies", model=plain, data=describe(data, articles)) | {
        "max_new_tokens": max_new_tokens, "limit": limit, "repeats": repeats, "seed": seed}
    for name in drafter or (AUTO, "lstm,wrong"):
        for T in options.parse_numbers("--temperature", temperature, float, 0):
            for B in options.parse_numbers("--batch-size", batch_size, int, 1):
                sources = [case.source for case in articles][: limit if T == 0 else None]
                settings = Settings(batch_size=B, temperature=T, max_new_tokens=max_new_tokens,
                                    repeats=repeats if T == 0 else 1, seed=seed)
                with counting(settings.repeats * -(-len(sources) // B), f"{name} T={T:g} B={B}") as advance:
                    found = compare(plain, name, sources, settings, advance)
                rows.append(common | {"drafter": name, "temperature": T, "batch_size": B} | found)
    finish(rows, out, [Table(
        "draft-length policies: tokens a second over another's (95 % interval over batches)",
        ("drafter", "T", "B", "old / plain", "new / plain", "new / old", "tokens/step", "differ", "passes"),
        list(map(_line, rows)))], as_json)


def _line(row: dict) -> list[str]:
    ratios = [f"{row[name]['median']:.3f} ({row[name].get('low', 0):.3f}-{row[name].get('high', 0):.3f})"
              for name in ("old_over_plain", "new_over_plain", "new_over_old")]
    return [row["drafter"], f"{row['temperature']:g}", str(row["batch_size"]), *ratios,
            f"{row['tokens_per_step_old']:.2f} {row['tokens_per_step_new']:.2f}",
            "-" if row["differ"] is None else str(row["differ"]), "yes" if row["passes"] else "NO"]


if __name__ == "__main__":
    run_script(main)
