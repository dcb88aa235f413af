"""The greedy output of a model in training, by the engine."""

from __future__ import annotations

from pathlib import Path

import torch

from foredraft.engine.generate import Model
from foredraft.engine.models.t5 import T5
from foredraft.engine.models.t5_weights import copy_weights
from foredraft.train.data.pairs import IGNORE


def greedy_output(model, batch: dict[str, torch.Tensor], longest: int) -> torch.Tensor:
    """Greedy output in float32 with the present weights, without dropout.

    Parameters
    ----------
    model
        A transformers T5ForConditionalGeneration.
    batch
        `input_ids` and `attention_mask` [B, S].
    longest
        Longest output in tokens.

    Returns
    -------
    Tensor
        [B, T] int64 on the model's device, with `</s>` where it was emitted, then -100.
    """
    sources = [tokens[mask.bool()].tolist()
               for tokens, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)]
    engine = Model(T5(copy_weights(model)), None, "lookup", Path("the model in training"), "float32")
    outputs = engine.generate(sources, max_new_tokens=longest, batch_size=len(sources),
                              max_source=batch["input_ids"].shape[1])
    out = torch.full((len(sources), max(map(len, outputs.token_ids))), IGNORE)
    for padded, tokens in zip(out, outputs.token_ids, strict=True):
        padded[: len(tokens)] = torch.tensor(tokens)
    return out.to(model.device)
