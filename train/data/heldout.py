"""The target's own output on held-out articles, greedy and sampled, on which alpha is measured during training."""

from __future__ import annotations

from pathlib import Path

from foredraft.train.data.drafter_data import Articles, read_drafter_data
from foredraft.train.data.pseudo import EngineConfig, PseudoConfig, article_id, pseudo, read_articles

TEMPERATURES = (0.0, 1.0)


def heldout_articles(context, data: str | Path, count: int, max_source: int, max_target: int,
                  seed: int = 0) -> dict[float, Articles]:
    """The target's output on the first articles of a file, generated once into the context's cache.

    Parameters
    ----------
    context
        A training_context.TrainingContext.
    data
        A .jsonl or .jsonl.gz file with the text `article` in every line.
    count
        Number of articles.
    max_source, max_target
        Longest source and output in tokens.
    seed
        Seed of the sampled output.

    Returns
    -------
    dict
        Temperature (0.0 and 1.0) to Articles.
    """
    # `pseudo` names the lines that are skipped
    names = article_id("".join(name for name, _ in read_articles(data, count, lambda message: None)))
    out = {}
    for temperature in TEMPERATURES:
        folder = context.cache / f"held-{context.hash}-{names}-{max_source}-{max_target}-T{temperature:g}"
        config = PseudoConfig(temperature, 1, seed, max_target, max_source, shard_size=max(1, -(-count // 4)), limit=count)
        engine = EngineConfig(str(context.folder), drafter="lookup" if temperature == 0 else "none")
        pseudo(data, folder, config, engine, progress=False)
        out[temperature] = read_drafter_data(None, folder, context.tokenizer, max_source, max_target)
    return out
