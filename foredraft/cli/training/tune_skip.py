"""`foredraft tune-skip`: the sublayers that self-drafting skips."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from foredraft.cli import options
from foredraft.cli.output import announce_compilation, interrupted
from foredraft.outputs import check_file


def tune_skip(
    data: options.Articles,
    out: Annotated[Path, typer.Option(help="Skip file to write; run the same command again to resume.")],
    target: options.Target = None,
    trials: Annotated[int, typer.Option(min=1, help="Skip sets tried.")] = 100,
    limit: options.Limit = 16,
    max_new_tokens: options.MaxNewTokens = 128,
    draft_tokens: Annotated[int, typer.Option(min=1, help="Most tokens drafted a step (K).")] = 8,
    draft_vocab: options.DraftVocab = 1024,
    temperature: options.Temperature = 0.0,
    max_source: options.MaxSource = None,
    weights: options.Weights = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the search.")] = 0,
    as_json: options.Json = False,
) -> None:
    """Search the decoder sublayers that self-drafting skips (--drafter self:OUT)."""
    import foredraft
    from foredraft.engine.drafters.skip_mask import is_skip_file
    from foredraft.train.data.pseudo import read_sources
    from foredraft.train.tune.tune_skip import tune_skip as search

    check_file(out, [data], is_skip_file, "skip file")
    announce_compilation()
    model = foredraft.load(target, drafter=None, weights=weights)
    sources = read_sources(model, data, limit, max_source)
    try:
        found = search(model, sources, out, trials, max_new_tokens, draft_tokens, draft_vocab, temperature, seed)
    except KeyboardInterrupt:
        interrupted(f"run the same command again to continue from {out}.journal")
    speed_up, figures = found.figures["predicted"]["speed_up"], found.figures
    print(f"{out}: skips {found.skip or 'nothing'}; predicted {speed_up:.2f}x plain decoding at K={found.draft_tokens}, "
          f"exit goal {found.goal:g}; the best of {figures['trials']} on {figures['articles']} articles")
    if as_json:
        print(json.dumps({"out": str(out), "skip": found.skip, "draft_tokens": found.draft_tokens, "goal": found.goal,
                          "threshold": found.threshold, **figures}))
