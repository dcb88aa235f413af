"""A model in training, heard by the engine: its own greedy output, at the engine's speed."""

from __future__ import annotations

from pathlib import Path

import torch

from foredraft.engine.generate import Model
from foredraft.engine.models.t5 import T5
from foredraft.engine.models.t5_weights import copy_weights
from foredraft.train.data.pairs import IGNORE


def greedy_output(model, batch: dict[str, torch.Tensor], longest: int) -> torch.Tensor:
    """[B, T] int64 on the model's device: up to ``longest`` ids for each source of the batch, ``</s>`` included where
    it came, then -100. In fp32 from the weights as they are now, without dropout.
    """
    sources = [ids[mask.bool()].tolist() for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)]
    heard = Model(T5(copy_weights(model)), None, "lookup", Path("the model in training"), "float32")
    rows = heard.generate(sources, max_new_tokens=longest, batch_size=len(sources), max_source=len(batch["input_ids"][0]))
    out = torch.full((len(sources), max(map(len, rows.token_ids))), IGNORE)
    for row, ids in zip(out, rows.token_ids, strict=True):
        row[: len(ids)] = torch.tensor(ids)
    return out.to(model.device)
