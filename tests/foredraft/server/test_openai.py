"""OpenAI's routes, by its own client: answers are what the model gives offline."""

from __future__ import annotations

import json
from dataclasses import fields

import pytest
from live_server import TEXTS

from foredraft.engine.params import SamplingParams
from foredraft.server.schemas import ENGINE_FIELDS, OpenAIFields

openai = pytest.importorskip("openai")
TEXT = TEXTS[6]
# functions, and arrays too large for JSON
NOT_SERVED = {"logits_processor", "prefix_allowed_tokens_fn", "stopping_criteria", "output_scores", "output_logits"}


@pytest.fixture(scope="module")
def client(server):
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


def test_every_setting_of_a_request_has_a_field():
    names = {field.name for field in fields(SamplingParams)}
    assert names - NOT_SERVED == {*ENGINE_FIELDS, "temperature", "top_p", "seed", "logprobs"}
    assert set(ENGINE_FIELDS) < set(OpenAIFields.model_fields)


def test_models(client):
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").owned_by == "foredraft"
    with pytest.raises(openai.NotFoundError) as error:
        client.completions.create(model="other", prompt=TEXT)
    assert (error.value.param, error.value.code) == ("model", "model_not_found")


def test_a_completion(client, offline):
    truth = offline.generate(TEXT, max_new_tokens=20)
    found = client.completions.create(model="tiny", prompt=TEXT, max_tokens=20, temperature=0)
    assert found.choices[0].text == truth.texts[0] and found.choices[0].finish_reason == "length"
    used = found.usage
    assert (used.prompt_tokens, used.completion_tokens, used.total_tokens) == (22, 20, 42)
    details, stats = used.completion_tokens_details, truth.stats
    assert details.accepted_prediction_tokens == stats.accepted > 0
    assert details.rejected_prediction_tokens == stats.drafted - stats.accepted
    # tokens as the encoder reads them; without drafts the text is the same
    tokens = offline.tokenizer.encode(TEXT).ids
    plain = client.completions.create(model="tiny", prompt=tokens, max_tokens=20, extra_body={"speculative": False})
    assert plain.choices[0].text == truth.texts[0]
    assert plain.usage.completion_tokens_details.rejected_prediction_tokens == 0


@pytest.mark.parametrize("own", [
    dict(seed=7, temperature=0.8), dict(seed=7, top_p=0.6), dict(temperature=0, stop="w9"),
    dict(seed=3, extra_body=dict(top_k=5, repetition_penalty=1.3, min_new_tokens=4)),
    dict(extra_body=dict(sequence_bias=[[[30], 4.0], [[9, 30], -2.5]], repetition_penalty=1.2)),
    dict(extra_body=dict(eos_token_id=9, exponential_decay_length_penalty=[3, 1.4])),
    dict(extra_body=dict(choices=["w5 w6 w7", "w8 w9"])), dict(extra_body=dict(draft_tokens=2, max_new_tokens=9))])
def test_settings_are_the_engines(client, offline, own):
    """Lists of prompts, sampled with n outputs each; seeds are derived as Model.generate derives them."""
    prompts, n = TEXTS[3:6], 2 if {"temperature", "top_p", "seed"} & own.keys() and own.get("temperature") != 0 else 1
    found = client.completions.create(model="tiny", prompt=prompts, n=n, **own,
                                      **({} if "extra_body" in own and "max_new_tokens" in own["extra_body"]
                                         else {"max_tokens": 20}))
    settings = {"max_new_tokens": 20} | own.get("extra_body", {})
    samples = own.get("temperature", 0) > 0 or "top_p" in own or "top_k" in settings
    settings |= {name: own[name] for name in ("top_p", "seed") if name in own} | {"do_sample": samples}
    if own.get("temperature"):
        settings["temperature"] = own["temperature"]
    truth = offline.generate([text for text in prompts for _ in range(n)], **settings)
    texts = [text.partition("w9")[0] if "stop" in own else text for text in truth.texts]
    assert [choice.text for choice in found.choices] == texts
    assert [choice.index for choice in found.choices] == list(range(3 * n))


def test_a_stream_is_the_answer(client):
    asked = dict(model="tiny", prompt=TEXTS[4:6], max_tokens=30, temperature=0.9, seed=5, logprobs=2, stop=["w77", "w12"])
    whole = client.completions.create(**asked)
    texts, tokens, ends = {0: "", 1: ""}, {0: [], 1: []}, {}
    *chunks, last = client.completions.create(**asked, stream=True, stream_options={"include_usage": True})
    for chunk in chunks:
        choice, = chunk.choices
        texts[choice.index] += choice.text
        tokens[choice.index] += choice.logprobs.tokens if choice.logprobs else []
        ends[choice.index] = choice.finish_reason or ends.get(choice.index)
    assert last.choices == [] and last.usage.total_tokens == whole.usage.total_tokens
    assert [texts[i] for i in range(2)] == [choice.text for choice in whole.choices]
    assert [tokens[i] for i in range(2)] == [choice.logprobs.tokens for choice in whole.choices]
    assert [ends[i] for i in range(2)] == [choice.finish_reason for choice in whole.choices]
    assert len(chunks) > 8


def test_logprobs(client, offline):
    truth = offline.generate(TEXT, max_new_tokens=6, logprobs=3).logprobs[0]
    found = client.completions.create(model="tiny", prompt=TEXT, max_tokens=6, logprobs=3).choices[0]
    assert found.logprobs.token_logprobs == [entry.logprob for entry in truth]
    assert [list(top.values()) for top in found.logprobs.top_logprobs] == [[p for _, p in entry.top] for entry in truth]
    assert [found.text[at:].lstrip().split(" ")[0] for at in found.logprobs.text_offset] == found.logprobs.tokens
    chat = client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": TEXT}], max_tokens=6,
                                          logprobs=True, top_logprobs=3).choices[0]
    assert [entry.logprob for entry in chat.logprobs.content] == found.logprobs.token_logprobs
    assert [len(entry.top_logprobs) for entry in chat.logprobs.content] == [3] * 6


def test_a_chat(client, offline):
    truth = offline.generate("w7 w8 w5 w9", max_new_tokens=12).texts[0]
    messages = [{"role": "system", "content": "w7 w8"}, {"role": "user", "content": "w50"},
                {"role": "assistant", "content": "w51"}, {"role": "user", "content": [{"type": "text", "text": "w5 w9"}]}]
    found = client.chat.completions.create(model="tiny", messages=messages, max_completion_tokens=12)
    assert found.choices[0].message.content == truth and found.choices[0].message.role == "assistant"
    chunks = list(client.chat.completions.create(model="tiny", messages=messages, max_tokens=12, stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == truth
    assert chunks[0].choices[0].delta.role == "assistant" and chunks[-1].choices[0].finish_reason == "length"


def test_details_say_who_proposed_what(server, client, offline):
    truth = offline.generate(TEXT, max_new_tokens=30)
    body = {"prompt": TEXT, "max_tokens": 30, "details": True}
    status, whole, _ = server.call("/v1/completions", body)
    details = whole["choices"][0]["details"]
    assert status == 200 and "".join(piece["text"] for piece in details["pieces"]) == truth.texts[0]
    assert details["stats"]["accepted"] == sum(piece["proposer"] == "lookup" for piece in details["pieces"])
    status, text, _ = server.call("/v1/completions", body | {"stream": True})
    events = [json.loads(event[6:]) for event in text.split("\n\n") if event.startswith("data: {")]
    pieces = [piece for event in events for piece in event["choices"][0]["details"]["pieces"]]
    assert [piece for piece in pieces if piece["proposer"] != "rejected"] == details["pieces"]
    assert any(piece["proposer"] == "rejected" and piece["text"] for piece in pieces)
    stats = events[-1]["choices"][0]["details"]["stats"]
    assert [stats[name] for name in ("tokens", "steps", "accepted")] == [
        details["stats"][name] for name in ("tokens", "steps", "accepted")] and text.endswith("data: [DONE]\n\n")


WRONG = [
    ({}, "prompt", "missing_field"), ({"prompt": TEXT, "colour": 1}, "colour", "unknown_field"),
    ({"prompt": TEXT, "temperature": "1"}, "temperature", "invalid_value"), ({"prompt": 3}, "prompt", "invalid_value"),
    ({"prompt": TEXT, "n": True}, "n", "invalid_value"), ({"prompt": []}, "prompt", "invalid_value"),
    ({"prompt": " "}, "prompt", "invalid_value"), ({"prompt": [5, 100]}, "prompt", "invalid_value"),
    ({"prompt": "\ud800"}, "prompt", "invalid_value"), ({"prompt": TEXT, "choices": ["\ud800"]}, None, "invalid_value"),
    ({"prompt": TEXT, "json_schema": "[" * 100_000}, None, "invalid_value"),
    ({"prompt": TEXT, "stop": ["w5"] * 257}, "stop", "invalid_value"),
    ({"prompt": [5] * 4097}, "prompt", "context_length_exceeded"),
    ({"prompt": TEXT, "echo": True}, "echo", "unsupported_parameter"),
    ({"prompt": TEXT, "suffix": "w5"}, "suffix", "unsupported_parameter"),
    ({"prompt": TEXT, "presence_penalty": 1}, "presence_penalty", "unsupported_parameter"),
    ({"prompt": TEXT, "max_tokens": 65}, "max_tokens", "invalid_value"),
    ({"prompt": TEXT, "max_tokens": 5, "max_new_tokens": 5}, "max_tokens", "invalid_value"),
    ({"prompt": TEXT, "draft_tokens": 6}, "draft_tokens", "invalid_value"),
    ({"prompt": TEXT, "draft_tokens": 2, "speculative": False}, "speculative", "invalid_value"),
    ({"prompt": TEXT, "temperature": 0, "do_sample": True}, "temperature", "invalid_value"),
    ({"prompt": TEXT, "n": 65}, "n", "invalid_value"),
    ({"prompt": TEXT, "logit_bias": {"x": 1}}, "logit_bias", "invalid_value"),
    ({"prompt": TEXT, "stream_options": {"usage": True}}, "stream_options", "unknown_field"),
    ({"prompt": TEXT, "min_new_tokens": 30, "max_tokens": 4}, None, "invalid_value"),
    ({"prompt": TEXT, "regex": "("}, None, "invalid_value"), ({"prompt": TEXT, "eos_token_id": 100}, None, "invalid_value"),
    ({"prompt": TEXT, "regex": "w5", "choices": ["w6"]}, None, "invalid_value"),
    ({"prompt": TEXT, "truncate_prompt_tokens": 1}, "truncate_prompt_tokens", "invalid_value"),
]


@pytest.mark.parametrize(("body", "param", "code"), WRONG)
def test_wrong_requests(server, body, param, code):
    for stream in (False, True):
        status, found, headers = server.call("/v1/completions", body | {"stream": stream})
        error = found["error"]
        assert (status, error["param"], error["code"]) == (400, param, code), found
        assert error["type"] == "invalid_request_error" and error["message"] and "\n" not in error["message"]
        assert headers["content-type"] == "application/json" and headers["x-request-id"].startswith("req-")


def test_wrong_chats(client):
    user = [{"role": "user", "content": TEXT}]
    for own in (dict(messages=[]), dict(messages=[{"role": "system", "content": "w5"}]),
                dict(messages=[{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]),
                dict(messages=user, tools=[]), dict(messages=user, top_logprobs=2),
                dict(messages=user, response_format={"type": "json_schema"})):
        with pytest.raises(openai.BadRequestError):
            client.chat.completions.create(model="tiny", **own)


def test_a_stop_string_may_stay(server):
    status, found, _ = server.call("/v1/completions", {"prompt": TEXT, "max_tokens": 40})
    word = found["choices"][0]["text"].split()[5]
    body = {"prompt": TEXT, "max_tokens": 40, "stop": word}
    cut = server.call("/v1/completions", body)[1]["choices"][0]
    kept = server.call("/v1/completions", body | {"include_stop_str_in_output": True})[1]["choices"][0]
    assert cut["finish_reason"] == kept["finish_reason"] == "stop"
    assert kept["text"] == cut["text"] + word and word not in cut["text"]


def test_long_prompts(tiny_model_path):
    from live_server import endless, live

    with live(endless(tiny_model_path), max_source=20) as server:
        status, found, _ = server.call("/v1/completions", {"prompt": "w5 " * 25})
        assert status == 400 and found["error"]["code"] == "context_length_exceeded" and "26 tokens" in str(found)
        for truncate, count in ((-1, 20), (8, 8), (100, 20)):
            status, found, _ = server.call("/v1/completions", {"prompt": "w5 " * 25, "truncate_prompt_tokens": truncate,
                                                               "max_tokens": 2})
            assert status == 200 and found["usage"]["prompt_tokens"] == count
