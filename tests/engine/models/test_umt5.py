"""UMT5: a relative bias in every layer. Logits and tokens equal transformers', with every drafter that runs the decoder."""

import pytest
import torch

import foredraft
from foredraft.engine.models.t5 import T5
from foredraft.engine.models.t5_cuda_weights import load_cuda_weights
from foredraft.engine.models.t5_weights import load_weights
from foredraft.errors import UserError

SIZES = dict(vocab_size=100, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_decoder_layers=3, num_heads=3,
             relative_attention_num_buckets=8, relative_attention_max_distance=16)
SOURCES = [[5, 9, 33, 5, 9, 40, 1], [*range(3, 60), 1], [1]]


@pytest.fixture(scope="module")
def umt5(tmp_path_factory):
    """The folder and transformers' model; its biases are large, so that one layer's cannot stand in for another's."""
    from transformers import UMT5Config, UMT5ForConditionalGeneration

    folder = tmp_path_factory.mktemp("umt5")
    with torch.random.fork_rng():
        torch.manual_seed(5)
        theirs = UMT5ForConditionalGeneration(UMT5Config(**SIZES)).eval()
        for name, parameter in theirs.named_parameters():
            if "relative_attention_bias" in name:
                parameter.data.normal_(std=3)
    theirs.save_pretrained(folder)
    return folder, theirs


def expected(theirs, source, tokens):
    with torch.inference_mode():
        return theirs(input_ids=torch.tensor([source]), decoder_input_ids=tokens).logits[0]


@pytest.mark.parametrize("backend", ["numba", "reference"])
@pytest.mark.parametrize("R", [1, 6])
def test_logits_equal_transformers(umt5, backend, R):
    folder, theirs = umt5
    ours = T5(load_weights(folder), backend)
    tokens = torch.randint(3, 100, (3, 24), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        ours.reserve(3, 24, R - 1, 60)
        ours.admit(range(3), [torch.tensor(source) for source in SOURCES])
        logits = torch.cat([
            ours.logits(ours.decode(tokens[:, start : start + R].contiguous(),
                                    torch.arange(start, start + R).expand(3, -1).contiguous())).clone()
            for start in range(0, 24, R)], 1)
    for sequence, source in enumerate(SOURCES):
        assert torch.allclose(logits[sequence], expected(theirs, source, tokens[sequence : sequence + 1]), atol=1e-4)
    assert ours.weights.parameters() == sum(parameter.numel() for parameter in theirs.parameters())


@pytest.mark.parametrize("drafter", [None, "lookup", "self:1", "self:0s,2f", "tree:2x1:lookup"])
def test_tokens_equal_transformers_with_every_drafter(umt5, drafter):
    folder, theirs = umt5
    found = foredraft.load(folder, drafter=drafter).generate(SOURCES, max_new_tokens=20).token_ids
    for source, tokens in zip(SOURCES, found, strict=True):
        logits = expected(theirs, source, torch.tensor([[0, *tokens]]))
        assert tokens == logits.argmax(-1).tolist()[: len(tokens)]


def test_a_device_refuses_it_in_one_line(umt5):
    with pytest.raises(UserError, match="a umt5 has a relative bias in each layer") as caught:
        load_cuda_weights(umt5[0], "cpu")
    assert "\n" not in str(caught.value)
