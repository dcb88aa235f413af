"""The engine's greedy output of a model in memory equals transformers'."""

import pytest
import torch
from transformers import T5Config, T5ForConditionalGeneration

from foredraft.train.data.pairs import IGNORE
from foredraft.train.target.greedy_output import greedy_output

LONGEST = 12


@pytest.mark.parametrize("kind", ["relu", "gated-gelu"])
def test_greedy_output_equals_transformers(kind):
    torch.manual_seed(4)
    model = T5ForConditionalGeneration(
        T5Config(vocab_size=40, d_model=16, d_kv=4, d_ff=24, num_layers=2, num_heads=4, feed_forward_proj=kind,
                 tie_word_embeddings=kind == "relu", initializer_factor=3.0, dropout_rate=0.5, decoder_start_token_id=0)
    ).train()
    with torch.no_grad():
        model.lm_head.weight[1] += 0.2 * model.lm_head.weight.std()
    batch = {"input_ids": torch.randint(2, 40, (4, 9)), "attention_mask": torch.ones(4, 9, dtype=torch.long)}
    batch["attention_mask"][1, 5:] = 0
    found = greedy_output(model, batch, LONGEST)
    assert model.training
    model.eval()
    for b in range(4):
        source = batch["input_ids"][b : b + 1, : batch["attention_mask"][b].sum()]
        expected = model.generate(source, max_new_tokens=LONGEST, do_sample=False)[0, 1:].tolist()
        assert found[b][found[b] != IGNORE].tolist() == expected
        assert (found[b, len(expected) :] == IGNORE).all()
