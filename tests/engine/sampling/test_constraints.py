"""choices, regex and json_schema: every output is valid, the same for every draft, and forced tokens are drafted."""

import json
import re

import pytest
import torch

import foredraft
from foredraft import embedded
from foredraft.errors import UserError

TEXTS = [path.read_text()[:600] for path in sorted((embedded.TARGET.parent / "texts").glob("*.txt"))[:4]]
LABELS = ["economy and trade", "economy and weather", "sports", "the weather tomorrow morning"]


@pytest.fixture(scope="module")
def model():
    return foredraft.load(drafter="lookup")


def test_an_output_is_one_of_the_choices_and_the_best_by_greedy_steps(model):
    sequences = [model.tokenizer.encode(label).ids for label in LABELS]

    def allowed(index, input_ids):
        written = input_ids[1:].tolist()
        return sorted({tokens[len(written)] for tokens in sequences if tokens[: len(written)] == written and
                       len(tokens) > len(written)}) or [1]

    wanted = model.with_drafter(None).generate(TEXTS, prefix_allowed_tokens_fn=allowed)
    for K in (0, 1, 6):
        out = model.generate(TEXTS, choices=LABELS, draft_tokens=K)
        assert out.token_ids == wanted.token_ids and set(out.texts) <= set(LABELS)
        assert out.finish_reasons == ["stop"] * len(TEXTS)
    assert out.stats.steps < wanted.stats.steps / 2
    as_tokens = model.generate(TEXTS, choices=[tokens[:-1] for tokens in sequences])
    assert as_tokens.token_ids == wanted.token_ids


def test_sampled_choices_follow_the_models_probabilities(model):
    """The share of each label is the product of its tokens' probabilities, each among the allowed tokens."""
    sequences = [model.tokenizer.encode(label).ids for label in LABELS]
    scores = model.score([TEXTS[0]] * len(LABELS), LABELS)
    assert [len(kept) for kept in scores.token_log_probs] == [len(tokens) for tokens in sequences]
    out = model.generate([TEXTS[0]] * 600, choices=LABELS, do_sample=True, temperature=3.0, seed=1, draft_tokens=4)
    assert set(out.texts) <= set(LABELS) and len(set(out.texts)) > 1
    plain = model.generate([TEXTS[0]] * 600, choices=LABELS, do_sample=True, temperature=3.0, seed=1, draft_tokens=0)
    assert out.token_ids == plain.token_ids


@pytest.mark.parametrize("drafter", [None, "lookup", pytest.param("lstm", marks=pytest.mark.full),
                                     pytest.param("tree:3x2:lookup", marks=pytest.mark.full)])
def test_an_output_matches_the_expression(model, drafter):
    pytest.importorskip("llguidance")
    expression = r"(the|a) [a-z]{3,9} has [0-9]{1,3} (people|vehicles) in it\."
    drafting = model.with_drafter(drafter)
    out = drafting.generate(TEXTS, regex=expression, max_new_tokens=60)
    assert all(re.fullmatch(expression, text) for text in out.texts), out.texts
    assert out.token_ids == model.with_drafter(None).generate(TEXTS, regex=expression, max_new_tokens=60).token_ids
    if drafter is not None:
        assert out.stats.accepted > 0
    sampled = drafting.generate(TEXTS, regex=expression, do_sample=True, temperature=1.5, seed=4, max_new_tokens=60)
    assert all(re.fullmatch(expression, text) for text in sampled.texts)


def test_json_of_a_vocabulary_that_can_write_it(tmp_path):
    """ByT5 writes any byte."""
    pytest.importorskip("llguidance")
    from transformers import ByT5Tokenizer, T5Config, T5ForConditionalGeneration

    torch.manual_seed(0)
    config = T5Config(vocab_size=384, d_model=32, d_kv=8, d_ff=64, num_layers=1, num_decoder_layers=1, num_heads=4,
                      decoder_start_token_id=0, tokenizer_class="ByT5Tokenizer")
    T5ForConditionalGeneration(config).save_pretrained(tmp_path)
    ByT5Tokenizer().save_pretrained(tmp_path)
    schema = {"type": "object", "properties": {"topic": {"enum": ["trade", "sports"]}, "count": {"type": "integer",
              "minimum": 0, "maximum": 99}}, "required": ["topic", "count"], "additionalProperties": False}
    model = foredraft.load(tmp_path, drafter="lookup")
    for settings in ({}, {"do_sample": True, "seed": 2}):
        out = model.generate(["one", "two"], json_schema=schema, max_new_tokens=200, draft_tokens=8, **settings)
        for text, stats in zip(out.texts, out.request_stats, strict=True):
            found = json.loads(text)
            assert found["topic"] in ("trade", "sports") and 0 <= found["count"] <= 99
            assert stats.accepted > 10  # the names of the properties


def test_what_cannot_be_is_one_line(model, tiny_model_path):
    pytest.importorskip("llguidance")
    for settings, message in (
            ({"choices": LABELS, "regex": "a"}, "choices and regex are given; give one of them"),
            ({"choices": ["yes", ""]}, "choices holds an empty text"),
            ({"choices": ["a{b", "yes"]}, "choices holds 'a{b', which this tokenizer writes as 'ab'"),
            ({"choices": ["yes", "not  yet"]}, "choices holds 'not  yet', which this tokenizer writes as 'not yet'"),
            ({"choices": LABELS, "max_new_tokens": 3}, "choices need . tokens, max_new_tokens is 3; raise it"),
            ({"choices": LABELS, "eos_token_id": []}, "choices need an end token"),
            ({"choices": 5}, "choices is 5; give a list"),
            ({"regex": "(a"}, "regex is not usable"),
            ({"regex": 5}, "regex is 5; give a regular expression"),
            ({"json_schema": "{"}, "json_schema is not a JSON schema"),
            ({"json_schema": "[" * 100_000}, "json_schema is not a JSON schema"),
            ({"regex": "a\ud800"}, "regex holds half of a surrogate pair"),
            ({"choices": ["a\ud800"]}, "choices holds half of a surrogate pair"),
            ({"json_schema": {"type": "nonsense"}}, "json_schema is not usable"),
            ({"json_schema": {"type": "object"}}, "no token of this vocabulary continues the output")):
        with pytest.raises(UserError, match=message) as caught:
            model.generate(TEXTS[:1], **settings)
        assert "\n" not in str(caught.value)
