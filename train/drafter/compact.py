"""Compacting a trained drafter: an output layer of the most frequent tokens only, and weights in bfloat16.

Decoding stays lossless, because q is the distribution that the drafts were sampled from. A smaller output layer is faster
and has a slightly lower acceptance rate.
"""

from __future__ import annotations

from pathlib import Path

import torch

from foredraft.engine.drafters.neural.drafter_module import DraftModel
from foredraft.engine.drafters.registry import kind_of, model_class
from foredraft.errors import UserError
from foredraft.train.data.drafter_data import Articles
from foredraft.train.draft_vocab import frequent_tokens


def compact_drafter(folder: str | Path, target: str | Path, out: str | Path, articles: Articles, draft_vocab: int,
                    dtype: torch.dtype = torch.bfloat16) -> Path:
    """Write a smaller copy of a drafter.

    Parameters
    ----------
    folder, target
        Folders of the drafter and of its target.
    out
        Folder to write.
    articles
        Their summaries, the target's own where there are some, determine the most frequent tokens.
    draft_vocab
        Number of tokens of the output layer; 0 keeps all. A drafter with an encoder of its own keeps its output layer.
    dtype
        Type of the weights.

    Returns
    -------
    Path
        `out`.

    Raises
    ------
    UserError
        `out` is `folder`, or `draft_vocab` exceeds the vocabulary.
    """
    folder, out = Path(folder), Path(out)
    if out.resolve() == folder.resolve():
        raise UserError(f"{out}: this is the drafter's own folder; give another --out")
    model = model_class(kind_of(folder)).load(folder, target)
    if draft_vocab and isinstance(model, DraftModel):
        summaries = (one for own, gold in zip(articles.own, articles.gold, strict=True) for one in own or [gold])
        tokens = frequent_tokens(summaries, draft_vocab, model.config.vocab_size, model.config.end_token)
        model.restrict(torch.from_numpy(tokens))
    model.save(out, dtype)
    return out
