"""The trained drafters: LSTM, CNN, T5 with an encoder of its own, shallow T5 over the target's encoder output."""

from __future__ import annotations

import doubles
import pytest
import torch
from doubles import SIZES, make_state

import foredraft
from foredraft.bench.harness.cases import sample_texts
from foredraft.engine.drafters.none import NoDrafter
from foredraft.engine.drafters.registry import kind_of, model_class, open_drafter
from foredraft.engine.loop import decode, step
from foredraft.engine.models.t5 import T5
from foredraft.engine.models.t5_weights import load_weights
from foredraft.engine.verify import verify
from foredraft.errors import UserError

NEW = 16
SOURCES = [torch.tensor(tokens) for tokens in ([5, 9, 33, 1], [7, 8] * 35 + [1], [50, 51, 52, 53, 54, 1], [3, 1])]
# all kinds, and those that can have a draft vocabulary with one of 40 tokens
CASES = [*((kind, 0) for kind in SIZES), ("lstm", 40), ("cnn", 40), ("t5shallow", 40)]


@pytest.fixture(scope="module")
def target(tiny_checkpoints):
    """Gated, with a head of its own; sampled tokens are tested on the other kind."""
    target = T5(load_weights(tiny_checkpoints["v1.1"]))
    target.folder = tiny_checkpoints["v1.1"]
    return target


@pytest.fixture(params=CASES, ids=lambda case: f"{case[0]}-{case[1]}" if case[1] else case[0])
def trained(request, target, tmp_path):
    """(torch module, Drafter opened from its files)."""
    kind, restricted = request.param
    torch.manual_seed(1)
    model = model_class(kind).from_target(target.folder, **SIZES[kind]).eval()
    if restricted:
        model.restrict(torch.randperm(100, generator=torch.Generator().manual_seed(2))[:restricted])
    model.save(tmp_path)
    return model, open_drafter(tmp_path, target.weights, target.folder, None)


def admit(target, drafter, state, sources=SOURCES):
    return doubles.admit(target, drafter, state, sources)


def run(target, drafter, state, sources=SOURCES):
    return doubles.decoded(target, drafter, state, sources)


@pytest.mark.parametrize("K", [0, 1, 4])
def test_greedy_equals_plain(target, trained, K):
    truth = run(target, NoDrafter(), make_state(4, [NEW, 3, NEW, NEW], 0, 32, end_token=-1))
    state = make_state(4, [NEW, 3, NEW, NEW], K, 32, end_token=-1)
    assert run(target, trained[1], state) == truth
    assert K == 0 or int(state.tested_at.sum()) > 0


@torch.inference_mode()
def forward_distribution(model, encoded, source, tokens):
    """log q [T, V] after each of `tokens`, by one pass of the torch module, over the draft vocabulary."""
    mask = torch.ones(1, len(source), dtype=torch.bool)
    logits = model(torch.tensor([tokens]), encoded[None], mask, source[None])[0]
    if len(getattr(model, "draft_ids", ())):
        outside = torch.ones(logits.shape[1], dtype=torch.bool)
        outside[model.draft_ids] = outside[source] = False
        logits = logits.masked_fill(outside, float("-inf"))
    return torch.log_softmax(logits.double(), -1)


@torch.inference_mode()
def test_q_is_the_modules_distribution_of_every_drafted_token(target, trained):
    """Steps equal the full pass: after rejections, after full acceptance, after steps with another drafter."""
    model, drafter = trained
    state = make_state(4, NEW, 3, 32, end_token=-1, temperature=1.0)
    encoded = [x.clone() for x in admit(target, drafter, state)]
    compared = steps = 0
    while not state.finished.all():
        steps += 1
        if steps % 4 == 3:
            # committed tokens that this drafter has not read
            for _ in range(5):
                step(state, target, NoDrafter())
            continue
        draft = drafter.draft(state)
        for sequence in (~state.finished).nonzero()[:, 0].tolist():
            length, count = int(state.lengths[sequence]), int(draft.lengths[sequence])
            tokens = state.tokens[sequence, :length].tolist() + draft.tokens[sequence, :count].tolist()
            read = tokens[:-1] if count else tokens
            distribution = forward_distribution(model, encoded[sequence], SOURCES[sequence], read)[length - 1 :]
            for i in range(count):
                q = (draft.logits[sequence, i].double() - draft.lse[sequence, i]).exp()
                torch.testing.assert_close(q, distribution[i].exp(), atol=2e-5, rtol=2e-4)
                assert q[draft.tokens[sequence, i]] > 0
                compared += 1
        hidden = target.decode(*state.inputs(draft))
        state.commit(draft, verify(state, draft, hidden, target), hidden)
    assert compared > 12


def test_a_sequence_does_not_depend_on_its_batch(target, trained):
    options = dict(temperature=torch.tensor([0.0, 1.0, 0.8, 1.2]), seeds=[3, 4, 5, 6], end_token=-1)
    together = run(target, trained[1], make_state(4, NEW, 3, 32, **options))
    for sequence in range(4):
        temperature, seed = options["temperature"][sequence], options["seeds"][sequence]
        alone = make_state(1, NEW, 3, 32, temperature=temperature, seeds=[seed], end_token=-1)
        assert run(target, trained[1], alone, [SOURCES[sequence]]) == [together[sequence]]


@torch.inference_mode()
@pytest.mark.parametrize(("kind", "restricted", "distribution"), [
    ("lstm", 0, dict(temperature=0.6)), ("cnn", 40, dict(temperature=0.8, top_k=20, top_p=0.9)),
    ("t5small", 0, dict(temperature=0.5, top_p=0.8)), ("t5shallow", 40, dict(temperature=1.0)),
])
def test_sampled_tokens_follow_the_target(tiny_checkpoints, kind, restricted, distribution, tmp_path):
    """The second token's marginal distribution is that of 100 forward passes of the target."""
    folder, B, times = tiny_checkpoints["v1.0"], 100, 25
    target = T5(load_weights(folder))
    torch.manual_seed(1)
    model = model_class(kind).from_target(folder, **SIZES[kind])
    if restricted:
        model.restrict(torch.arange(restricted))
    model.save(tmp_path)
    drafter, source = open_drafter(tmp_path, target.weights, folder, None), SOURCES[2]

    state = make_state(B, 3, 2, 32, end_token=-1, **distribution)
    admit(target, drafter, state, [source] * B)
    counts = torch.zeros(100, dtype=torch.int64)
    for time in range(times):
        state = make_state(B, 3, 2, 32, end_token=-1, seeds=range(time * B, (time + 1) * B), **distribution)
        decode(state, target, drafter)
        counts += torch.bincount(state.tokens[:, 2], minlength=100)

    value, freedom = doubles.second_id_chi_square(target, counts, **distribution)
    assert value < freedom + 10 * (2 * freedom) ** 0.5


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_draft_equal_to_the_target_is_accepted_whole(target, tmp_path, temperature):
    model = model_class("t5shallow").from_target(target.folder, layers=[0, 1, 2])
    model.save(tmp_path)
    drafter = open_drafter(tmp_path, target.weights, target.folder, None)
    state = make_state(4, NEW, 4, 32, temperature=temperature, end_token=-1)
    run(target, drafter, state)
    assert state.accepted_at.tolist() == state.tested_at.tolist()
    assert state.num_steps.tolist() == [4] * 4


def test_a_draft_stops_at_the_end_token(target, trained):
    free = run(target, trained[1], make_state(4, NEW, 4, 32, end_token=-1))
    end = free[0][5]
    truth = run(target, NoDrafter(), make_state(4, NEW, 0, 32, end_token=end))
    assert run(target, trained[1], make_state(4, NEW, 4, 32, end_token=end)) == truth


def test_padding_and_later_tokens_are_not_read(target, trained):
    model, _ = trained
    tokens, source = torch.randint(3, 100, (2, 9)), torch.randint(3, 100, (2, 12))
    encoded, mask = torch.randn(2, 12, 32), torch.arange(12) < torch.tensor([[12], [7]])
    with torch.inference_mode():
        whole = model(tokens, encoded, mask, source)
        short = model(tokens[1:, :5], encoded[1:, :7], mask[1:, :7], source[1:, :7])
        torch.testing.assert_close(whole[1:, :5], short, atol=1e-4, rtol=1e-4)
        scored = torch.zeros(2, 9, dtype=torch.bool)
        scored[0, 3] = scored[1, 8] = True
        torch.testing.assert_close(model(tokens, encoded, mask, source, scored=scored), whole[scored], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", list(SIZES))
def test_saved_and_loaded(target, kind, tmp_path):
    model = model_class(kind).from_target(target.folder, **SIZES[kind]).eval()
    model.save(tmp_path)
    assert kind_of(tmp_path) == kind
    again = model_class(kind).load(tmp_path, target.folder).eval()
    tokens, source, encoded = torch.randint(3, 100, (1, 5)), torch.randint(3, 100, (1, 6)), torch.randn(1, 6, 32)
    with torch.inference_mode():
        mask = torch.ones(1, 6)
        torch.testing.assert_close(again(tokens, encoded, mask, source), model(tokens, encoded, mask, source))
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_embeddings_of_its_own(target, tmp_path):
    model = model_class("lstm").from_target(target.folder, shared_embeddings=False, **SIZES["lstm"])
    with torch.no_grad():
        model.embedding.mul_(1.5)
    model.save(tmp_path)
    again = model_class("lstm").load(tmp_path, target.folder)
    torch.testing.assert_close(again.embedding, model.embedding)
    truth = run(target, NoDrafter(), make_state(4, NEW, 0, 32, end_token=-1))
    drafter = open_drafter(tmp_path, target.weights, target.folder, None)
    assert run(target, drafter, make_state(4, NEW, 3, 32, end_token=-1)) == truth
    assert drafter.tables.head is not target.weights.head


def test_another_target_is_refused(tiny_checkpoints, tmp_path):
    ours, other = tiny_checkpoints["v1.0"], tiny_checkpoints["v1.1"]
    weights = load_weights(other)
    for kind in ("lstm", "cnn", "t5shallow"):
        model_class(kind).from_target(ours, **SIZES[kind]).save(tmp_path / kind)
        with pytest.raises(UserError, match=f"shares the embeddings of {ours.name} .* is [0-9a-f]{{16}}"):
            open_drafter(tmp_path / kind, weights, other, None)


def _edit(folder, **entries):
    import json

    path = folder / "config.json"
    path.write_text(json.dumps({k: v for k, v in (json.loads(path.read_text()) | entries).items() if v is not None}))


@pytest.mark.parametrize(("entries", "message"), [
    ({"vocab_size": 90}, "vocabulary 90, .* has 100"),
    ({"d_model": 48}, "width 48, .* has 32"),
    ({"hidden_size": None}, "key 'hidden_size' is missing"),
    ({"hidden_size": 16}, r"tensor cell.weight_ih_l0 is \(96, 32\), config.json says \(64, 32\)"),
    ({"model_type": "bert"}, "model_type 'bert' is no drafter"),
])
def test_a_folder_that_does_not_fit(tiny_checkpoints, tmp_path, entries, message):
    folder = tiny_checkpoints["v1.0"]
    model_class("lstm").from_target(folder, **SIZES["lstm"]).save(tmp_path)
    _edit(tmp_path, **entries)
    with pytest.raises(UserError, match=message) as caught:
        open_drafter(tmp_path, load_weights(folder), folder, None)
    assert "\n" not in str(caught.value)


def test_a_t5_must_have_the_targets_vocabulary(tiny_model_path, tiny_checkpoints, tmp_path):
    import foredraft

    target = foredraft.load(tiny_model_path, drafter=None)
    model_class("t5small").from_target(tiny_model_path, **SIZES["t5small"]).save(tmp_path)
    drafted = target.with_drafter(tmp_path).generate([[5, 6, 7, 1]], max_new_tokens=8)
    assert drafted.token_ids == target.generate([[5, 6, 7, 1]], max_new_tokens=8).token_ids
    with pytest.raises(UserError, match="tokenizer.json is missing"):
        target.with_drafter(tiny_checkpoints["v1.0"])
    tokenizer = (tmp_path / "tokenizer.json").read_text()
    (tmp_path / "tokenizer.json").write_text(tokenizer.replace('"w7"', '"w7x"'))
    with pytest.raises(UserError, match="is not that of the target"):
        target.with_drafter(tmp_path)
    (tmp_path / "tokenizer.json").write_text(tokenizer)
    _edit(tmp_path, vocab_size=90)
    with pytest.raises(UserError, match="90"):
        target.with_drafter(tmp_path)


def test_an_unknown_size_or_kind_or_layer(tiny_checkpoints):
    with pytest.raises(UserError, match="has no size 'hidden'"):
        model_class("lstm").from_target(tiny_checkpoints["v1.0"], hidden=3)
    with pytest.raises(UserError, match="'gru' is not known"):
        model_class("gru")
    with pytest.raises(UserError, match="layers 0 to 2"):
        model_class("t5shallow").from_target(tiny_checkpoints["v1.0"], layers=[3])


def test_the_embedded_lstm_drafts_for_the_embedded_target():
    model = foredraft.load(drafter="lstm")
    texts = [text for _, text in sample_texts()[:3]]
    drafted, plain = (one.generate(texts, max_new_tokens=40) for one in (model, model.with_drafter(None)))
    assert drafted.token_ids == plain.token_ids and drafted.stats.acceptance_rate > 0.6
    assert drafted.stats.steps < 0.6 * plain.stats.steps


def test_the_embedded_lstm_refuses_another_target(tiny_model_path):
    with pytest.raises(UserError, match="train one for this target"):
        foredraft.load(tiny_model_path, drafter="lstm")
