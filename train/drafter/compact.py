"""A trained drafter made small and fast: a head of the most frequent ids only, weights in bfloat16.

Nothing is lost to the target, for q is the distribution of what was drafted; a shorter head drafts faster and is right a little
less often.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch

from foredraft.engine.drafters.neural.drafter_module import DraftModel
from foredraft.engine.drafters.registry import kind_of, model_class
from foredraft.errors import UserError
from foredraft.train.data.drafter_data import Articles


def frequent_tokens(rows: Iterable[np.ndarray], count: int, vocab_size: int, end_token: int) -> np.ndarray:
    """The `count` most frequent ids [count] int64 of the rows, most frequent first and the lower id on ties, with the end
    token among them. UserError: more than the vocabulary."""
    if count > vocab_size:
        raise UserError(f"--draft-vocab {count} is more than the vocabulary of {vocab_size} ids; give less")
    seen = np.zeros(vocab_size, np.int64)
    for row in rows:
        np.add.at(seen, row, 1)
    seen[end_token] = max(seen.max() + 1, 1)
    return np.argsort(-seen, kind="stable")[:count]


def compact_drafter(folder: str | Path, target: str | Path, out: str | Path, articles: Articles, draft_vocab: int,
                    dtype: torch.dtype = torch.bfloat16) -> Path:
    """Write the drafter in `folder` to `out`, its weights as `dtype`, its head restricted to the `draft_vocab` most frequent
    ids of the articles' summaries, the target's own where there are some (0: the whole head); returns `out`.

    A drafter with an encoder of its own keeps its head. UserError: `out` is `folder`.
    """
    folder, out = Path(folder), Path(out)
    if out.resolve() == folder.resolve():
        raise UserError(f"{out}: is the drafter itself; give another --out")
    model = model_class(kind_of(folder)).load(folder, target)
    if draft_vocab and isinstance(model, DraftModel):
        rows = (row for own, gold in zip(articles.own, articles.gold, strict=True) for row in own or [gold])
        ids = frequent_tokens(rows, draft_vocab, model.config.vocab_size, model.config.end_token)
        model.restrict(torch.from_numpy(ids))
    model.save(out, dtype)
    return out
