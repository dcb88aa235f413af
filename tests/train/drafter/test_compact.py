"""Compacted drafters: their tokens, and their output."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import foredraft
from foredraft.engine.drafters.neural.lstm import LSTMModel
from foredraft.errors import UserError
from foredraft.train.data.drafter_data import Articles
from foredraft.train.draft_vocab import frequent_tokens
from foredraft.train.drafter.compact import compact_drafter

SIZES = dict(hidden_size=8, num_heads=2, d_kv=6, d_ff=16)


def sequences(*texts):
    return [np.array(text, np.uint16) for text in texts]


def test_the_most_frequent_tokens_come_first_and_include_the_end_token():
    assert frequent_tokens(sequences([5, 5, 5, 7], [7, 9, 3]), 4, 20, end_token=1).tolist() == [1, 5, 7, 3]
    assert frequent_tokens([], 2, 20, end_token=1).tolist() == [1, 0]
    with pytest.raises(UserError, match="--draft-vocab 21"):
        frequent_tokens([], 21, 20, end_token=1)


@pytest.mark.full
def test_a_compacted_drafter_drafts_its_tokens_and_the_sources(tiny_model_path, tmp_path):
    torch.manual_seed(0)
    LSTMModel.from_target(tiny_model_path, **SIZES).save(tmp_path / "full")
    source = [40, 41, 42, 43, 1]
    articles = Articles(["a"], sequences(source), sequences([90, 1]), [sequences([5, 6, 7, 5, 1])])
    folder = compact_drafter(tmp_path / "full", tiny_model_path, tmp_path / "small", articles, 3)
    model = foredraft.load(tiny_model_path, drafter=folder)
    assert model.drafter.vocabulary.tokens.tolist() == [1, 5, 6]
    assert (folder / "model.safetensors").stat().st_size < 0.6 * (tmp_path / "full" / "model.safetensors").stat().st_size
    plain = foredraft.load(tiny_model_path).generate([source], max_new_tokens=12)
    assert model.generate([source], max_new_tokens=12, draft_tokens=4).token_ids == plain.token_ids
    with pytest.raises(UserError, match="drafter's own folder"):
        compact_drafter(folder, tiny_model_path, folder, articles, 3)
