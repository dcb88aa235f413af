"""Fuzzed requests: never a 500, never a hang, always JSON in the route's format of errors.

Requests made from the OpenAPI schema seldom pass the server's own checks. A third kind of request therefore has plausible
fields with extreme values, so that many reach the engine.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from live_server import PATIENCE, TEXTS, endless, live

from foredraft.server.schemas import ChatRequest, CompletionRequest, GenerateParameters

schemathesis = pytest.importorskip("schemathesis")
ROUTES = ("/v1/completions", "/v1/chat/completions", "/generate", "/generate_stream")
BIG, TINY = 2**63 - 1, 5e-324
tokens = st.lists(st.integers(2, 99), min_size=1, max_size=9)
penalty = st.sampled_from([1e-300, 1e-40, 0.5, 1.0, 1.3, 1e40, 1e308])
share = st.sampled_from([TINY, 0.1, 0.9, 1.0])
size = st.sampled_from([0, 1, 2, 30, BIG])
text = st.sampled_from(["w5", "w9 w30", "a", "\0", "\ud800", "\U0001f600", "(", "w5|w6 w7", "[", "{}", '{"type": "string"}'])
schema = st.one_of(text, st.dictionaries(st.sampled_from(["type", "enum", "$ref", "minLength", "maximum", "properties"]),
                                         st.one_of(text, st.just(10**9), st.just(["a"]), st.just({"w5": {}})), max_size=3))
# fields of OpenAI's routes and, where TGI's have them, of those
FIELDS = {
    "max_tokens": st.integers(1, 16), "max_new_tokens": st.integers(1, 16),
    "temperature": st.sampled_from([0, 1e-40, 1.0, 100]), "top_p": share, "top_k": size,
    "seed": st.sampled_from([0, 7, -BIG - 1, BIG]), "n": st.integers(1, 5),
    "best_of": st.integers(1, 5), "num_beams": st.integers(1, 5), "num_return_sequences": st.integers(1, 4),
    "length_penalty": st.sampled_from([-7.0, -1.0, 0.0, 7.0]), "early_stopping": st.sampled_from([True, False, "never"]),
    "do_sample": st.booleans(), "draft_tokens": st.integers(0, 5), "stop": st.lists(text, max_size=100),
    "logprobs": st.one_of(st.booleans(), st.integers(0, 20)), "stream": st.booleans(), "details": st.booleans(),
    "max_time": st.sampled_from([TINY, 1e308]), "eos_token_id": st.lists(st.integers(0, 99), max_size=8),
    "decoder_start_token_id": st.integers(0, 99), "repetition_penalty": penalty, "encoder_repetition_penalty": penalty,
    "no_repeat_ngram_size": size, "encoder_no_repeat_ngram_size": size, "bad_words_ids": st.lists(tokens, max_size=3),
    "suppress_tokens": st.one_of(tokens, st.just([*range(100)])), "begin_suppress_tokens": tokens,
    "forced_bos_token_id": st.integers(0, 99), "forced_eos_token_id": st.integers(0, 99),
    "sequence_bias": st.lists(st.tuples(tokens, st.sampled_from([-1e308, -1.0, 2.0, 1e308])), max_size=3),
    "exponential_decay_length_penalty": st.tuples(st.sampled_from([-BIG, -2, 0, 3, BIG]), penalty),
    "remove_invalid_values": st.booleans(), "renormalize_logits": st.booleans(), "top_h": share, "min_p": share,
    "typical_p": share, "epsilon_cutoff": share, "eta_cutoff": share, "min_new_tokens": st.integers(0, 9),
    "choices": st.one_of(st.lists(text, max_size=3), st.lists(tokens, max_size=3)), "regex": text, "json_schema": schema,
    "speculative": st.booleans(), "truncate_prompt_tokens": size, "include_stop_str_in_output": st.booleans(),
    "logit_bias": st.dictionaries(st.sampled_from(["5", "9", "30"]), st.sampled_from([-100, 100.0])),
    "truncate": st.integers(1, BIG), "top_n_tokens": st.integers(0, 5), "grammar": st.fixed_dictionaries(
        {"type": st.sampled_from(["json", "regex"]), "value": schema})}


FUZZ = settings(deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck))
COUNTS = pytest.mark.parametrize("count", [8, pytest.param(100, marks=pytest.mark.full),
                                           pytest.param(1250, marks=pytest.mark.slow)])


@pytest.fixture(scope="module")
def server(tiny_model_path):
    # warm: the first request on a machine without compiled kernels would take longer than a client waits
    with live(endless(tiny_model_path), is_warm=True, max_tokens=16, max_choices=8, kv_memory=100_000_000) as found:
        yield found


def check_answer(route: str, status: int, found: Any, case: Any) -> None:
    assert status in (200, 400, 404, 405, 411, 413, 415, 422), (status, found, case)
    if status != 200:
        assert isinstance(found["error"], str) if route.startswith("/generate") else found["error"]["message"]


def check_server(server) -> None:
    assert server.engine.is_alive and server.call("/v1/completions", {"prompt": "w5", "max_tokens": 2})[0] == 200
    assert not any('"engine failed"' in line or '"request failed"' in line for line in server.lines)


# 1,250 for each route and mode, right and wrong ones: 10,000 requests
@COUNTS
@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("mode", ["POSITIVE", "NEGATIVE"])
def test_requests_made_from_the_schema(server, route, mode, count):
    from schemathesis.generation import GenerationMode

    operation = schemathesis.openapi.from_url(f"{server.url}/openapi.json")[route]["POST"]
    sent = 0

    @settings(FUZZ, max_examples=count)
    @given(case=operation.as_strategy(generation_mode=GenerationMode[mode]))
    def check(case):
        nonlocal sent
        sent += 1
        answer = case.call(base_url=server.url, timeout=PATIENCE)
        check_answer(route, answer.status_code, answer.json() if answer.status_code != 200 else None, case.body)

    check()
    assert sent >= count
    check_server(server)


def plausible(route: str) -> st.SearchStrategy[dict]:
    """Bodies of a route with a valid prompt and up to six other fields of it."""
    model = {"/v1/completions": CompletionRequest, "/v1/chat/completions": ChatRequest}.get(route, GenerateParameters)
    others = st.lists(st.sampled_from(sorted(FIELDS.keys() & model.model_fields)), max_size=6, unique=True).flatmap(
        lambda names: st.fixed_dictionaries({name: FIELDS[name] for name in names}))
    prompt = st.sampled_from(TEXTS)
    if route == "/v1/completions":
        prompts = st.one_of(prompt, tokens, st.lists(prompt, min_size=1, max_size=3))
        return st.builds(lambda one, own: {"prompt": one} | own, prompts, others)
    if route == "/v1/chat/completions":
        return st.builds(lambda one, own: {"messages": [{"role": "user", "content": one}]} | own, prompt, others)
    return st.builds(lambda one, own: {"inputs": one, "parameters": own}, prompt, others)


@COUNTS
@pytest.mark.parametrize("route", ROUTES)
def test_plausible_requests(server, route, count):
    statuses: Counter[int] = Counter()

    @settings(FUZZ, max_examples=count)
    @given(body=plausible(route))
    def check(body):
        status, found, _ = server.call(route, body)
        statuses[status] += 1
        check_answer(route, status, found, body)

    check()
    assert statuses.total() >= count and statuses[200] >= count / 4, statuses
    check_server(server)
