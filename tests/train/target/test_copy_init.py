import pytest
import torch
from transformers import T5Config, T5ForConditionalGeneration

from foredraft.errors import UserError
from foredraft.train.target import copy_init as copy_init_module
from foredraft.train.target.copy_init import copy_init

GEOMETRY = {
    "vocab_size": 300,
    "d_model": 256,
    "d_kv": 64,
    "d_ff": 64,
    "num_layers": 2,
    "num_decoder_layers": 2,
    "num_heads": 4,
    "feed_forward_proj": "gated-gelu",
    "tie_word_embeddings": True,
    "dropout_rate": 0.0,
    "decoder_start_token_id": 0,
}


def model(**changes):
    return T5ForConditionalGeneration(T5Config(**{**GEOMETRY, **changes})).eval()


@torch.no_grad()
def continued(target, sources, start, stop):
    """Share of the tokens `start + 2 .. stop` that are the argmax after the two or more tokens before them."""
    tokens = sources[:, start:stop]
    decoder_input = torch.cat([torch.zeros_like(tokens[:, :1]), tokens[:, :-1]], dim=1)
    best = target(input_ids=sources, decoder_input_ids=decoder_input).logits.argmax(-1)
    return (best == tokens)[:, 2:].float().mean().item()


def test_spans_of_random_sources_are_copied_before_training():
    target = model()
    copy_init(target)
    rng = torch.Generator().manual_seed(5)
    sources = torch.randint(3, 300, (32, 64), generator=rng)
    assert continued(target, sources, 20, 50) > 0.9
    # tokens that are not in the source are not continued
    other = torch.randint(3, 300, (32, 64), generator=rng)
    tokens = torch.cat([torch.zeros(32, 1, dtype=torch.long), other[:, 20:49]], dim=1)
    with torch.no_grad():
        best = target(input_ids=sources, decoder_input_ids=tokens).logits.argmax(-1)
    assert (best == other[:, 20:50])[:, 2:].float().mean() < 0.05


def test_two_tokens_resolve_an_ambiguous_one():
    target = model()
    copy_init(target)
    rng = torch.Generator().manual_seed(6)
    # every occurrence of token 9 has another successor, so only the token before it determines the position
    sources = torch.randint(10, 300, (32, 48), generator=rng)
    sources[:, 1::3] = 9
    # (before, 9) -> after, from the middle of the source
    tokens = torch.zeros(32, 3, dtype=torch.long)
    tokens[:, 1:] = sources[:, 24:26]
    with torch.no_grad():
        best = target(input_ids=sources, decoder_input_ids=tokens).logits[:, -1].argmax(-1)
    assert (best == sources[:, 26]).float().mean() > 0.8


@pytest.mark.parametrize(("subtract", "fewest", "most"), [(0.0, 0.9, 1.0), (copy_init_module.SUBTRACT, 0.0, 0.1)])
def test_what_followed_the_same_two_tokens_is_not_repeated(monkeypatch, subtract, fewest, most):
    monkeypatch.setattr(copy_init_module, "SUBTRACT", subtract)
    target = model()
    copy_init(target)
    sources = torch.randint(3, 300, (32, 64), generator=torch.Generator().manual_seed(7))
    # the output has copied a span and then its third and fourth token once more
    begun = torch.cat([torch.zeros(32, 1, dtype=torch.long), sources[:, 10:20], sources[:, 12:14]], dim=1)
    with torch.no_grad():
        best = target(input_ids=sources, decoder_input_ids=begun).logits[:, -1].argmax(-1)
    assert fewest <= (best == sources[:, 14]).float().mean() <= most


def test_a_random_t5_does_not_copy():
    torch.manual_seed(0)
    sources = torch.randint(3, 300, (32, 64), generator=torch.Generator().manual_seed(5))
    assert continued(model(), sources, 20, 50) < 0.1


def test_the_seed_determines_every_weight():
    first, second, third = model(), model(), model()
    copy_init(first, seed=1)
    copy_init(second, seed=1)
    copy_init(third, seed=2)
    for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    assert not torch.equal(first.shared.weight, third.shared.weight)


@pytest.mark.parametrize("change", [{"num_decoder_layers": 1}, {"d_model": 192}, {"num_heads": 3}])
def test_unsuitable_geometries_are_refused(change):
    with pytest.raises(UserError, match="--init random"):
        copy_init(model(**change))
