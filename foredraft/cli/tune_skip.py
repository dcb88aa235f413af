"""`foredraft tune-skip`"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer


def tune_skip(
    data: Annotated[Path, typer.Option(help="Validation articles: .jsonl(.gz) with 'article' on every line.")],
    out: Annotated[Path, typer.Option(help="Skip file; the same command goes on where it was stopped.")],
    target: Annotated[str | None, typer.Option(help="T5 checkpoint, folder or hub id; default: embedded.")] = None,
    trials: Annotated[int, typer.Option(min=1, help="Skip sets tried.")] = 100,
    limit: Annotated[int, typer.Option(min=1, help="The first articles only.")] = 16,
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", "--gen-length", min=2, help="Of a summary.")] = 128,
    draft_tokens: Annotated[int, typer.Option(min=1, help="Most tokens drafted a round (K).")] = 8,
    draft_vocab: Annotated[
        int, typer.Option("--draft-vocab", "--draft_vocab", min=0, help="Most frequent ids that are drafted; 0: all.")
    ] = 1024,
    temperature: Annotated[float, typer.Option(min=0.0, help="Of the requests to come; 0 is greedy.")] = 0.0,
    max_source: Annotated[int | None, typer.Option(min=2, help="Source tokens kept; default: the target's, or 512.")] = None,
    weights: Annotated[str | None, typer.Option(help="The decoder's: fp32, bf16 or int8; default: as stored.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the search.")] = 0,
) -> None:
    """Search which decoder sublayers the target's own drafts skip (drafter self:OUT). The last line is JSON."""
    import foredraft
    from foredraft.cli.output import announce_compilation
    from foredraft.train.data.pseudo import read_sources
    from foredraft.train.tune.tune_skip import tune_skip as search

    announce_compilation()
    model = foredraft.load(target, drafter=None, weights=weights)
    sources = read_sources(model, data, limit, max_source)
    try:
        found = search(model, sources, out, trials, max_new_tokens, draft_tokens, draft_vocab, temperature, seed)
    except KeyboardInterrupt:
        typer.echo(f"foredraft: interrupted; the same command goes on from {out}.journal", err=True)
        raise typer.Exit(1) from None
    speed_up, figures = found.figures["predicted"]["speed_up"], found.figures
    print(f"{out}: skips {found.skip or 'nothing'}; predicted {speed_up:.2f}x plain decoding at K={found.draft_tokens}, "
          f"exit goal {found.goal:g}; the best of {figures['trials']} on {figures['articles']} articles")
    print(json.dumps({"out": str(out), "skip": found.skip, "draft_tokens": found.draft_tokens, "goal": found.goal,
                      "threshold": found.threshold, **figures}))
