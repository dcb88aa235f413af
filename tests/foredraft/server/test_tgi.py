"""TGI's routes, by Hugging Face's client."""

from __future__ import annotations

import pytest
from live_server import TEXTS

hub = pytest.importorskip("huggingface_hub")
TEXT = TEXTS[6]


@pytest.fixture(autouse=True)
def online(monkeypatch):
    """The client talks to no hub, but checks this even for a server of this machine."""
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", False)


@pytest.fixture(scope="module")
def client(server):
    return hub.InferenceClient(model=server.url, timeout=60)


def test_a_text(client, offline):
    truth = offline.generate(TEXT, max_new_tokens=15, logprobs=0)
    assert client.text_generation(TEXT, max_new_tokens=15) == truth.texts[0]
    found = client.text_generation(TEXT, max_new_tokens=15, details=True, top_n_tokens=2)
    assert found.generated_text == truth.texts[0] and found.details.finish_reason == "length"
    assert [token.id for token in found.details.tokens] == truth.token_ids[0] and found.details.generated_tokens == 15
    assert [token.logprob for token in found.details.tokens] == [entry.logprob for entry in truth.logprobs[0]]
    assert [len(top) for top in found.details.top_tokens] == [2] * 15
    sampled = offline.generate(TEXT, max_new_tokens=15, do_sample=True, temperature=0.7, top_k=9, seed=4).texts[0]
    assert client.text_generation(TEXT, max_new_tokens=15, temperature=0.7, top_k=9, seed=4) == sampled


def test_a_stream(client, offline):
    truth = offline.generate(TEXT, max_new_tokens=15)
    found = list(client.text_generation(TEXT, max_new_tokens=15, stream=True, details=True))
    assert [one.token.id for one in found] == truth.token_ids[0]
    assert [one.generated_text for one in found] == [None] * 14 + truth.texts
    assert found[-1].details.generated_tokens == 15 and found[-1].details.finish_reason == "length"
    assert "".join(client.text_generation(TEXT, max_new_tokens=15, stream=True)) == truth.texts[0]


def test_a_stop_string_ends_the_text(client, offline):
    word = offline.generate(TEXT, max_new_tokens=15).texts[0].split()[7]
    found = client.text_generation(TEXT, max_new_tokens=15, stop=[word], details=True)
    assert found.details.finish_reason == "stop_sequence" and found.generated_text.endswith(word)


def test_a_grammar(client):
    found = client.text_generation(TEXT, max_new_tokens=9, grammar={"type": "regex", "value": "w5( w6)+"})
    assert set(found.split()) <= {"w5", "w6"}


def test_a_chat(server, client, offline):
    truth = offline.generate(TEXT, max_new_tokens=12).texts[0]
    messages = [{"role": "user", "content": TEXT}]
    assert client.chat_completion(messages, max_tokens=12).choices[0].message.content == truth
    by_base = hub.InferenceClient(base_url=f"{server.url}/v1", api_key="none")
    chunks = by_base.chat.completions.create(messages=messages, max_tokens=12, stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == truth


def test_errors_have_tgis_shape(server, client):
    from huggingface_hub.errors import ValidationError

    for path in ("/generate", "/", "/generate_stream"):
        for body in ({"inputs": 5}, {}, {"inputs": TEXT, "x": 1}, {"inputs": TEXT, "parameters": {"watermark": True}}):
            status, found, _ = server.call(path, body)
            assert status == 422 and found["error_type"] == "validation" and isinstance(found["error"], str)
    with pytest.raises(ValidationError, match="max_tokens is 999"):
        client.text_generation(TEXT, max_new_tokens=999)
