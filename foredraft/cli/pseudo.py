"""`foredraft pseudo`"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def pseudo(
    data: Annotated[Path, typer.Option(help="Articles: .jsonl or .jsonl.gz with 'article' on every line.")],
    out: Annotated[Path, typer.Option(help="Folder of the shards; the same command goes on where it was stopped.")],
    target: Annotated[str | None, typer.Option(help="T5 checkpoint, folder or hub id; default: embedded.")] = None,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 is greedy.")] = 0.0,
    samples_per_article: Annotated[int, typer.Option(min=1, help="Summaries of each article.")] = 1,
    batch_size: Annotated[int, typer.Option(min=1, help="Summaries decoded together.")] = 8,
    format: Annotated[str, typer.Option(help="jsonl or parquet.")] = "jsonl",
    workers: Annotated[int, typer.Option(min=1, help="Processes, or Ray actors.")] = 1,
    limit: Annotated[int | None, typer.Option(min=1, help="The first articles only.")] = None,
    shard_size: Annotated[int, typer.Option(min=1, help="Articles a shard.")] = 256,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest summary, in tokens.")] = 128,
    max_source: Annotated[int | None, typer.Option(min=2, help="Source tokens kept; default: the target's.")] = None,
    drafter: Annotated[str, typer.Option(help="lookup, ngram, ngram:PATH or none.")] = "lookup",
    draft_tokens: Annotated[int, typer.Option(min=0, help="Tokens drafted a round (K).")] = 5,
    seed: Annotated[int, typer.Option(min=0, help="Of the sampling; each article's noise is its own.")] = 0,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    dtype: Annotated[str, typer.Option(help="Of the encoder: float32 or bfloat16.")] = "float32",
    ray_address: Annotated[
        str | None, typer.Option(help="Run on Ray: an address, auto, or local to start it here.")
    ] = None,
) -> None:
    """Let the target summarise articles, for its drafters to learn from. Several of these may share --out."""
    import json

    from foredraft.train.data.pseudo import EngineConfig, PseudoConfig
    from foredraft.train.data.pseudo import pseudo as make

    order = PseudoConfig(temperature, samples_per_article, seed, max_new_tokens, max_source, shard_size, format, limit)
    engine = EngineConfig(target, drafter, draft_tokens, batch_size, device, dtype)
    try:
        manifest = make(data, out, order, engine, workers, ray_address)
    except KeyboardInterrupt:
        typer.echo(f"foredraft: interrupted; the same command goes on in {out}", err=True)
        raise typer.Exit(1) from None
    print(json.dumps({"out": str(out), **manifest}))
