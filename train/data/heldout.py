"""The target's own output on held-out articles, greedy and sampled: what alpha is measured on while a drafter trains."""

from __future__ import annotations

from pathlib import Path

from foredraft.train.data.drafter_data import Articles, read_drafter_data
from foredraft.train.data.pseudo import EngineConfig, PseudoConfig, article_id, pseudo, read_articles

TEMPERATURES = (0.0, 1.0)


def heldout_articles(context, data: str | Path, count: int, max_source: int, max_target: int,
                  seed: int = 0) -> dict[float, Articles]:
    """{temperature: the first `count` articles of a jsonl(.gz) with the target's output at that temperature}.

    Generated once into the context's cache; `context` is a context.TrainingContext.
    """
    names = article_id("".join(name for name, _ in read_articles(data, count)))
    out = {}
    for temperature in TEMPERATURES:
        folder = context.cache / f"held-{context.hash}-{names}-{max_source}-{max_target}-T{temperature:g}"
        order = PseudoConfig(temperature, 1, seed, max_target, max_source, shard_size=max(1, -(-count // 4)), limit=count)
        engine = EngineConfig(str(context.folder), drafter="lookup" if temperature == 0 else "none")
        pseudo(data, folder, order, engine, progress=False)
        out[temperature] = read_drafter_data(None, folder, context.tokenizer, max_source, max_target)
    return out
