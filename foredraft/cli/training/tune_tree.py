"""`foredraft tune-tree`: the shape of a draft tree."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from foredraft.cli import options
from foredraft.cli.output import announce_compilation
from foredraft.outputs import check_file


def tune_tree(
    data: options.Articles,
    out: Annotated[Path, typer.Option(help="Shape file to write, .json: --drafter tree:OUT:DRAFTER.")],
    drafter: Annotated[str, typer.Option(help="lookup, lstm, or the folder of a trained LSTM or CNN.")] = "lstm",
    target: options.Target = None,
    limit: options.Limit = 16,
    max_new_tokens: options.MaxNewTokens = 128,
    nodes: Annotated[int, typer.Option(min=1, help="Most nodes of a tree.")] = 24,
    children: Annotated[int, typer.Option(min=1, help="Most children of a node.")] = 3,
    levels: Annotated[int, typer.Option(min=1, help="Most levels.")] = 8,
    temperature: options.Temperature = 0.0,
    independent: Annotated[bool, typer.Option("--iid", help="Sample the children of a node independently.")] = False,
    max_source: options.MaxSource = None,
    weights: options.Weights = None,
    as_json: options.Json = False,
) -> None:
    """Find the shape of a draft tree that is fastest on this machine."""
    import foredraft
    from foredraft.engine.drafters.tree_shape import is_shape_file
    from foredraft.train.data.pseudo import read_sources
    from foredraft.train.tune.tune_tree import tune_tree as search

    check_file(out, [data], is_shape_file, "shape file")
    announce_compilation()
    model = foredraft.load(target, drafter=drafter, weights=weights)
    sources = read_sources(model, data, limit, max_source)
    shape = search(model, sources, out, max_new_tokens, nodes, children, levels, temperature, independent)
    tree, chain = shape.figures["tree"], shape.figures["chain"]
    kind = "a chain (no branch is faster):" if tree["nodes"] == tree["levels"] else "a tree:"
    spec = f"tree:{out}{'+iid' if independent else ''}:{drafter}"
    print(f"{out}: {kind} {tree['nodes']} nodes on {tree['levels']} levels, {tree['tokens_per_step']:.2f} tokens a step, "
          f"predicted {tree['speed_up']:.2f}x plain decoding")
    print(f"the best chain, K={chain['nodes']}: {chain['tokens_per_step']:.2f} tokens a step, {chain['speed_up']:.2f}x")
    print(f"use: --drafter {spec} --draft-tokens {tree['nodes']}")
    if as_json:
        print(json.dumps({"out": str(out), "parents": shape.parents, **shape.figures}))
