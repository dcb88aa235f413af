"""End tokens, stopping criteria and a limit of time: the text ends where checking every single token would have ended it."""

import pytest

import foredraft
from foredraft.errors import UserError

SOURCES = [[5, 9, 33, 5, 9, 40, 5, 9, 1], [7, 8, 9, 1], [50, 50, 12, 50, 50, 12, 1], [3, 1]]
NEW = 30


@pytest.fixture(scope="module")
def model(tiny_model_path):
    return foredraft.load(tiny_model_path, drafter="lookup")


@pytest.fixture(scope="module")
def free(model):
    """The tokens without an end token."""
    return model.generate(SOURCES, eos_token_id=[], max_new_tokens=NEW).token_ids


def ended(tokens, ends):
    """Tokens up to the first end token."""
    at = [i for i, token in enumerate(tokens) if token in ends]
    return tokens[: at[0] + 1] if at else tokens


@pytest.mark.parametrize("K", [0, 4])
def test_any_of_several_end_tokens_ends_a_text(model, free, K):
    assert all(len(tokens) == NEW for tokens in free)
    ends = sorted({free[0][7], free[1][3], free[2][11]})
    out = model.generate(SOURCES, eos_token_id=ends, max_new_tokens=NEW, draft_tokens=K)
    assert out.token_ids == [ended(tokens, ends) for tokens in free]
    assert out.finish_reasons == ["stop" if tokens[-1] in ends else "length" for tokens in out.token_ids]
    assert "stop" in out.finish_reasons


def test_every_request_has_its_own_end_and_start_tokens(model, free):
    requests = [foredraft.Request(source, id=i, eos_token_id=free[i][5], decoder_start_token_id=0)
                for i, source in enumerate(SOURCES)]
    for result in model.stream(requests, max_new_tokens=NEW, batch_size=3):
        assert result.token_ids == ended(free[result.id], [free[result.id][5]])
    started = model.generate(SOURCES[:1], eos_token_id=[], decoder_start_token_id=9, max_new_tokens=NEW, draft_tokens=3)
    assert started.token_ids == model.with_drafter(None).generate(
        SOURCES[:1], eos_token_id=[], decoder_start_token_id=9, max_new_tokens=NEW).token_ids
    assert started.token_ids[0] != free[0]


@pytest.mark.parametrize("K", [0, 4])
def test_stopping_criteria_see_every_prefix_once(model, free, K):
    seen = []

    def nine_tokens(input_ids, scores):
        seen.append(input_ids[0].tolist())
        return input_ids.shape[1] == 10

    out = model.generate(SOURCES[:1], eos_token_id=[], stopping_criteria=[nine_tokens], max_new_tokens=NEW, draft_tokens=K)
    assert out.token_ids == [free[0][:9]] and out.finish_reasons == ["stop"]
    assert seen == [[0, *free[0][:n]] for n in range(1, 10)]


def test_two_rules_that_end_the_same_step_count_accepted_drafts_once(model, free):
    text = model.tokenizer.decode(free[0][:9])
    out = model.generate(SOURCES[:1], eos_token_id=[], stop_strings=text, draft_tokens=12, max_new_tokens=NEW,
                         stopping_criteria=[lambda input_ids, _: input_ids.shape[1] == 6])
    assert out.token_ids == [free[0][:5]] and out.finish_reasons == ["stop"]
    assert out.stats.emitted == 5 and out.stats.accepted <= out.stats.tested <= 5


def test_transformers_criteria_work(model, free):
    from transformers import MaxLengthCriteria, StoppingCriteriaList

    criteria = StoppingCriteriaList([MaxLengthCriteria(max_length=6)])
    out = model.generate(SOURCES, eos_token_id=[], stopping_criteria=criteria, max_new_tokens=NEW)
    assert out.token_ids == [tokens[:5] for tokens in free]


def test_a_criterion_that_fails_names_its_request_and_leaves_the_others_alone(model, free):
    def fails(input_ids, scores):
        raise RuntimeError("no")

    requests = [foredraft.Request(source, id=f"r{i}", **({"stopping_criteria": [fails]} if i == 2 else {}))
                for i, source in enumerate(SOURCES)]
    results = {result.id: result for result in model.stream(requests, eos_token_id=[], max_new_tokens=NEW)}
    assert str(results["r2"].error) == "r2: stopping_criteria fails failed (RuntimeError: no)"
    assert [results[f"r{i}"].token_ids for i in (0, 1, 3)] == [free[i] for i in (0, 1, 3)]


def test_a_request_ends_when_its_time_is_over(model, free):
    out = model.generate(SOURCES[:1], eos_token_id=[], max_time=1e-6, max_new_tokens=NEW, draft_tokens=0)
    assert out.token_ids == [free[0][:1]] and out.finish_reasons == ["time"]
    out = model.generate(SOURCES[:1], eos_token_id=[], max_time=1000, max_new_tokens=NEW)
    assert out.token_ids == free[:1] and out.finish_reasons == ["length"]


def test_bad_tokens_are_refused(model):
    for arguments, message in (
            ({"eos_token_id": [1, 100]}, "eos_token_id is 100; the model's tokens are 0..99"),
            ({"eos_token_id": list(range(9))}, "eos_token_id lists 9 tokens; give at most 8"),
            ({"eos_token_id": "x"}, "eos_token_id is 'x'; give a token id or a list"),
            ({"decoder_start_token_id": 100}, "decoder_start_token_id is 100"),
            ({"suppress_tokens": [5, 100]}, "suppress_tokens holds token 100; the model's tokens are 0..99"),
            ({"sequence_bias": {(5, 100): 1.0}}, "sequence_bias holds token 100")):
        with pytest.raises(UserError, match=message.replace("..", r"\.\.")):
            model.generate(SOURCES, **arguments)
