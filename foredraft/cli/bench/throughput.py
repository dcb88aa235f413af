"""`foredraft bench throughput`: many articles, by batch size, against fixed batches and other engines."""

from __future__ import annotations

import tempfile
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import typer

from foredraft.cli import options
from foredraft.errors import UserError

ENGINES = ("scheduled", "scheduled+drafts", "fixed", "fixed+drafts", "transformers", "ctranslate2")


def throughput(
    data: options.Data = None,
    target: options.Target = None,
    geometry: Annotated[str | None, typer.Option(help="Random weights of these sizes instead, as in bench steps.")] = None,
    limit: options.Limit = None,
    batch_sizes: options.BatchSizeList = "1,4,16,64",
    engines: Annotated[str, typer.Option(help=f"Separated by commas: {', '.join(ENGINES)}.")] = ",".join(ENGINES),
    drafter: Annotated[str, typer.Option(help="Drafter of the engines with drafts; not used with --geometry.")] = "lookup",
    draft_tokens: options.DraftTokens = "auto",
    repeats: options.Repeats = 3,
    max_new_tokens: options.MaxNewTokens = 128,
    max_source: options.MaxSource = None,
    weights: options.Weights = None,
    out: options.Results = Path("bench/results"),
    as_json: options.Json = False,
    wide: options.Wide = False,
) -> None:
    """Articles and tokens a second by batch size."""
    import foredraft
    from foredraft.bench.harness import cases
    from foredraft.bench.harness import throughput as bench
    from foredraft.bench.harness.geometry import write_checkpoint
    from foredraft.bench.harness.record import common_fields
    from foredraft.bench.harness.settings import Settings
    from foredraft.bench.report.throughput_tables import tables
    from foredraft.cli.measuring import counting, finish, open_model, read_articles

    sizes = options.parse_numbers("--batch-sizes", batch_sizes, int, 1)
    names = engines.split(",")
    if unknown := [name for name in names if name not in ENGINES]:
        raise UserError(f"--engines: no engine named {unknown[0]!r}; choose from {', '.join(ENGINES)}")
    K = options.parse_draft_tokens(draft_tokens)
    settings = Settings(max_new_tokens=max_new_tokens, repeats=repeats)
    with tempfile.TemporaryDirectory(prefix="foredraft-throughput-") if geometry else nullcontext() as folder:
        tokenizer = foredraft.load(drafter=None).tokenizer if geometry else None
        model = open_model(write_checkpoint(geometry, folder) if geometry else target, weights=weights)
        articles = read_articles(data, model, limit, max_source, tokenizer)
        sources = [list(case.source) for case in articles]
        with counting(repeats * len(sizes) * len({"scheduled", *names})) as advance:
            found = bench.measure(model, None if geometry or drafter == "none" else drafter, K, sources, sizes, names,
                                  settings, advance)
        row = common_fields("throughput", model=model, data=cases.describe(data, articles)) | {
            "geometry": geometry, "drafter": drafter, "draft_tokens": K, "max_new_tokens": max_new_tokens,
            "repeats": repeats,
            **found, "memory": bench.memory(model.path, sources, max(sizes), max_new_tokens)}
    finish([row], out, tables(row), as_json, wide)
