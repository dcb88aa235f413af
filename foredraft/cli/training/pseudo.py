"""`foredraft pseudo`: summaries that the target writes, for its drafters to learn from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from foredraft.cli import options
from foredraft.cli.output import interrupted, print_figures
from foredraft.outputs import check_folder


def pseudo(
    data: options.Articles,
    out: Annotated[Path, typer.Option(help="Folder of the shards; run the same command again to resume.")],
    target: options.Target = None,
    temperature: options.Temperature = 0.0,
    samples_per_article: Annotated[int, typer.Option(min=1, help="Summaries of each article.")] = 1,
    batch_size: options.BatchSize = 8,
    format: Annotated[str, typer.Option(help="jsonl or parquet.")] = "jsonl",
    workers: Annotated[int, typer.Option(min=1, help="Processes, or Ray actors.")] = 1,
    limit: options.Limit = None,
    shard_size: Annotated[int, typer.Option(min=1, help="Articles a shard.")] = 256,
    max_new_tokens: options.MaxNewTokens = 128,
    max_source: options.MaxSource = None,
    drafter: options.Drafter = "lookup",
    draft_tokens: options.MaxDraftTokens = 5,
    seed: options.SamplingSeed = 0,
    device: options.Device = "cpu",
    dtype: options.Dtype = "float32",
    ray_address: Annotated[
        str | None, typer.Option(help="Run on Ray: its address, auto, or local to start Ray here.")
    ] = None,
    as_json: options.Json = False,
) -> None:
    """Let the target summarise articles, for its drafters to learn from. Several processes may share --out."""
    from foredraft.engine.load import check_device
    from foredraft.train.data.pseudo import EngineConfig, PseudoConfig
    from foredraft.train.data.pseudo import pseudo as make

    order = PseudoConfig(temperature, samples_per_article, seed, max_new_tokens, max_source, shard_size, format, limit)
    engine = EngineConfig(target, drafter, draft_tokens, batch_size, device, dtype)
    check_device(device)
    check_folder(out, [data, target])
    try:
        manifest = make(data, out, order, engine, workers, ray_address)
    except KeyboardInterrupt:
        interrupted(f"run the same command again to resume {out}")
    print_figures({"out": str(out), **manifest}, as_json)
