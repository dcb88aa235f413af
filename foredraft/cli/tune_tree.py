"""`foredraft tune-tree`"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer


def tune_tree(
    data: Annotated[Path, typer.Option(help="Validation articles: .jsonl(.gz) with 'article' on every line.")],
    out: Annotated[Path, typer.Option(help="Shape file, .json: drafter tree:OUT:DRAFTER.")],
    drafter: Annotated[str, typer.Option(help="lookup, lstm, or the folder of a trained LSTM or CNN.")] = "lstm",
    target: Annotated[str | None, typer.Option(help="T5 checkpoint, folder or hub id; default: embedded.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="The first articles only.")] = 16,
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", "--gen-length", min=2, help="Of a summary.")] = 128,
    nodes: Annotated[int, typer.Option(min=1, help="Most nodes of the tree.")] = 24,
    children: Annotated[int, typer.Option(min=1, help="Most children of a node.")] = 3,
    levels: Annotated[int, typer.Option(min=1, help="Most levels.")] = 8,
    temperature: Annotated[float, typer.Option(min=0.0, help="Of the requests to come; 0 is greedy.")] = 0.0,
    independent: Annotated[bool, typer.Option("--iid", help="Sampled children are drawn independently.")] = False,
    max_source: Annotated[int | None, typer.Option(min=2, help="Source tokens kept; default: the target's, or 512.")] = None,
    weights: Annotated[str | None, typer.Option(help="The decoder's: fp32, bf16 or int8; default: as stored.")] = None,
) -> None:
    """Find the shape of a draft tree that pays most on this machine. The last line is JSON."""
    import foredraft
    from foredraft.cli.output import announce_compilation
    from foredraft.train.data.pseudo import read_sources
    from foredraft.train.tune.tune_tree import tune_tree as search

    announce_compilation()
    model = foredraft.load(target, drafter=drafter, weights=weights)
    sources = read_sources(model, data, limit, max_source)
    shape = search(model, sources, out, max_new_tokens, nodes, children, levels, temperature, independent)
    tree, chain = shape.figures["tree"], shape.figures["chain"]
    kind = "a chain, for no branch pays:" if tree["nodes"] == tree["levels"] else "a tree:"
    spec = f"tree:{out}{'+iid' if independent else ''}:{drafter}"
    print(f"{out}: {kind} {tree['nodes']} nodes on {tree['levels']} levels, {tree['tokens_per_step']:.2f} tokens a round, "
          f"predicted {tree['speed_up']:.2f}x plain decoding; the best chain, K={chain['nodes']}: "
          f"{chain['tokens_per_step']:.2f} and {chain['speed_up']:.2f}x. Use --drafter {spec} --draft-tokens {tree['nodes']}")
    print(json.dumps({"out": str(out), "parents": shape.parents, **shape.figures}))
