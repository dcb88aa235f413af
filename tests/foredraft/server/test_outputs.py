"""n, best_of and beams: several outputs of a prompt are the engine's beams, or its samples, the best first."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor

import pytest
from live_server import PATIENCE, TEXTS, endless, live, wait_until

openai = pytest.importorskip("openai")
TEXT = TEXTS[6]
ENDS = [9, 30, 40, 50, 60, 70, 80, 90]
BODY = {"prompt": TEXT, "max_tokens": 12}


@pytest.fixture(scope="module")
def client(server):
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


def texts(found) -> list[str]:
    return [choice.text for choice in found.choices]


@pytest.mark.parametrize(("asked", "beams", "n"), [
    (dict(n=3, temperature=0), 3, 3), (dict(n=2), 2, 2), (dict(best_of=4, n=2, temperature=0), 4, 2),
    (dict(extra_body=dict(num_beams=4)), 4, 1), (dict(n=2, extra_body=dict(num_beams=3)), 3, 2),
    (dict(extra_body=dict(num_beams=3, num_return_sequences=2)), 3, 2),
    (dict(extra_body=dict(num_beams=3, length_penalty=-1.5, early_stopping=True, eos_token_id=ENDS, draft_tokens=0)), 3, 1),
    (dict(n=3, extra_body=dict(num_beams=3, early_stopping="never", no_repeat_ngram_size=2, eos_token_id=ENDS)), 3, 3)])
def test_outputs_that_are_not_sampled_are_beams(client, offline, asked, beams, n):
    prompts = TEXTS[5:7]
    settings = asked.get("extra_body", {}) | {"num_beams": beams, "num_return_sequences": n}
    truth = offline.generate(prompts, max_new_tokens=12, **settings)
    found = client.completions.create(model="tiny", prompt=prompts, max_tokens=12, **asked)
    assert texts(found) == truth.texts and [choice.index for choice in found.choices] == list(range(2 * n))
    reasons = ["stop" if tokens[-1] in ENDS and "eos_token_id" in settings else "length" for tokens in truth.token_ids]
    assert [choice.finish_reason for choice in found.choices] == reasons
    assert found.usage.completion_tokens == sum(map(len, truth.token_ids))
    assert found.usage.prompt_tokens == sum(len(offline.tokenizer.encode(text).ids) for text in prompts)


def test_metrics_count_every_hypothesis(server):
    def count() -> float:
        lines = server.call("/metrics")[1].splitlines()
        return next(float(line.rpartition(" ")[2]) for line in lines if line.startswith("vllm:generation_tokens_total"))

    before = count()
    assert server.call("/v1/completions", BODY | {"n": 3})[1]["usage"]["completion_tokens"] == count() - before == 36


def test_sampled_beams_have_the_engines_seed(client, offline):
    settings = dict(num_beams=3, do_sample=True, temperature=1.5, seed=8)
    truth = offline.generate(TEXTS[5:7], max_new_tokens=12, num_return_sequences=2, **settings)
    found = client.completions.create(model="tiny", prompt=TEXTS[5:7], max_tokens=12, n=2, temperature=1.5, seed=8,
                                      extra_body=dict(num_beams=3))
    assert texts(found) == truth.texts != offline.generate(TEXTS[5:7], max_new_tokens=12, num_beams=3,
                                                           num_return_sequences=2).texts


@pytest.mark.parametrize("logprobs", [None, 2])
def test_the_best_samples_have_the_highest_mean_logprob(client, offline, logprobs):
    prompts, settings = TEXTS[5:7], dict(max_new_tokens=12, do_sample=True, temperature=2.0, seed=3, logprobs=0,
                                         eos_token_id=ENDS)
    truth = offline.generate([text for text in prompts for _ in range(5)], **settings)
    means = [sum(entry.logprob for entry in entries) / len(entries) for entries in truth.logprobs]
    sums = [sum(entry.logprob for entry in entries) for entries in truth.logprobs]
    best = [sorted(range(first, first + 5), key=lambda i: -means[i])[:2] for first in (0, 5)]
    # a sum would favour short outputs
    assert best != [sorted(range(first, first + 5), key=lambda i: -sums[i])[:2] for first in (0, 5)]
    found = client.completions.create(model="tiny", prompt=prompts, max_tokens=12, n=2, best_of=5, temperature=2.0, seed=3,
                                      logprobs=logprobs, extra_body=dict(eos_token_id=ENDS))
    assert texts(found) == [truth.texts[i] for i in best[0] + best[1]]
    assert [choice.logprobs is not None for choice in found.choices] == [logprobs is not None] * 4
    # as OpenAI counts: all that was generated
    assert found.usage.completion_tokens == sum(map(len, truth.token_ids))


def test_a_stream_has_each_hypothesis_in_one_event(client, server):
    asked = dict(model="tiny", prompt=TEXTS[4:6], max_tokens=12, n=3)
    whole = client.completions.create(**asked)
    *chunks, last = client.completions.create(**asked, stream=True, stream_options={"include_usage": True})
    assert sorted((chunk.choices[0].index, chunk.choices[0].text, chunk.choices[0].finish_reason) for chunk in chunks) == [
        (choice.index, choice.text, choice.finish_reason) for choice in whole.choices]
    assert last.usage.completion_tokens == whole.usage.completion_tokens == 6 * 12
    chat = dict(model="tiny", messages=[{"role": "user", "content": TEXT}], max_tokens=12, n=2)
    whole = client.chat.completions.create(**chat)
    found = {0: "", 1: ""}
    for chunk in client.chat.completions.create(**chat, stream=True):
        found[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert list(found.values()) == [choice.message.content for choice in whole.choices] and found[0] != found[1]
    # the page's details
    text = server.call("/v1/completions", BODY | {"num_beams": 2, "stream": True, "details": True})[1]
    event = json.loads(text.split("\n\n")[0][6:])["choices"][0]
    assert "".join(piece["text"] for piece in event["details"]["pieces"]) == event["text"]
    assert event["details"]["stats"]["tokens"] == 12


@pytest.mark.parametrize(("own", "param"), [
    (dict(best_of=2, n=3), "best_of"), (dict(best_of=2, stream=True), "best_of"),
    (dict(best_of=2, stream=True, temperature=1.0), "best_of"), (dict(best_of=3, num_beams=3), "best_of"),
    (dict(n=5), "n"), (dict(best_of=5), "best_of"), (dict(num_beams=5), "num_beams"), (dict(num_beams=33), "num_beams"),
    (dict(n=3, num_beams=2), "n"), (dict(n=2, num_beams=1), "n"), (dict(n=2, logprobs=1), "logprobs"),
    (dict(n=2, num_return_sequences=3), "num_return_sequences"), (dict(num_beams=2, logprobs=0), "logprobs"),
    (dict(best_of=10**9), "best_of"), (dict(n=65, temperature=1.0), "n"), (dict(best_of=65, temperature=1.0), "n"),
    (dict(prompt=[TEXT] * 22, num_beams=3), "n"), (dict(num_beams=2, length_penalty=8), "length_penalty"),
    (dict(num_beams=2, early_stopping="later"), "early_stopping")])
def test_what_cannot_be_served(server, own, param):
    status, found, _ = server.call("/v1/completions", BODY | own)
    assert (status, found["error"]["param"], found["error"]["code"]) == (400, param, "invalid_value"), found


def test_tgis_best_of(server, offline):
    body, asked = {"inputs": TEXT}, {"max_new_tokens": 12, "best_of": 3}
    beams = offline.generate(TEXT, max_new_tokens=12, num_beams=3)
    assert server.call("/generate", body | {"parameters": asked})[1] == {"generated_text": beams.texts[0]}
    samples = offline.generate([TEXT] * 3, max_new_tokens=12, do_sample=True, temperature=2.0, seed=5, logprobs=0)
    means = [sum(entry.logprob for entry in entries) / len(entries) for entries in samples.logprobs]
    first, *others = sorted(range(3), key=lambda i: (-(means[i] == max(means)), i))
    found = server.call("/generate", body | {"parameters": asked | {"temperature": 2.0, "seed": 5, "details": True}})[1]
    assert found["generated_text"] == samples.texts[first]
    assert [token["id"] for token in found["details"]["tokens"]] == samples.token_ids[first]
    assert [one["generated_text"] for one in found["details"]["best_of_sequences"]] == [samples.texts[i] for i in others]
    for path, own in (("/generate_stream", {}), ("/generate", {"details": True}), ("/generate", {"best_of": 9})):
        status, wrong, _ = server.call(path, body | {"parameters": asked | own})
        assert status == 422 and wrong["error_type"] == "validation", wrong


def test_beams_take_their_sequences_of_the_batch(tiny_model_path, offline):
    """Searches and greedy requests share the batch; one with more beams than the batch has sequences runs alone."""
    truth = {beams: offline.generate(TEXT, max_new_tokens=60, num_beams=beams).texts[0] for beams in (1, 2, 4)}
    with live(endless(tiny_model_path), batch_size=3, num_beams=4) as server:
        asked = [1, 2, 4, 1, 4, 2, 2, 1, 1, 1, 4, 2]

        def ask(beams: int) -> str:
            return server.call("/v1/completions", BODY | {"max_tokens": 60, "num_beams": beams})[1]["choices"][0]["text"]

        with ThreadPoolExecutor(12) as pool:
            assert list(pool.map(ask, asked)) == [truth[beams] for beams in asked]
        pool = server.engine.model.target.cache.pool
        wait_until(lambda: not server.engine.num_running and pool.free == pool.pages, "all sequences are free")
        # 3 sequences, and as many more as make 4 beams
        assert server.engine.model.target.cache.num_sequences == 4


def test_a_client_that_leaves_frees_the_beams(tiny_model_path):
    import http.client

    with live(endless(tiny_model_path), max_tokens=20_000) as server:
        connection = http.client.HTTPConnection(server.url.removeprefix("http://"), timeout=PATIENCE)
        body = json.dumps(BODY | {"max_tokens": 20_000, "num_beams": 4})
        connection.request("POST", "/v1/completions", body, {"content-type": "application/json"})
        wait_until(lambda: server.engine.num_running == 1, "it runs")
        connection.close()
        pool = server.engine.model.target.cache.pool
        wait_until(lambda: not server.engine.num_running and pool.free == pool.pages, "the beams are free")
        assert server.call("/v1/completions", BODY | {"num_beams": 4})[0] == 200


def test_a_checkpoint_that_decodes_with_beams(tiny_model_path, offline):
    """generation_config.json decides where the request does not: more beams than --num-beams, and none for samples."""
    model = endless(tiny_model_path)
    model.settings |= {"num_beams": 3, "num_return_sequences": 2}
    with live(model, num_beams=1) as server:
        def text(path="/v1/completions", **own) -> str:
            status, found, _ = server.call(path, own)
            assert status == 200, found
            return found["generated_text"] if path == "/generate" else found["choices"][0]["text"]

        beams = offline.generate(TEXT, max_new_tokens=12, num_beams=3).texts[0]
        plain = offline.generate(TEXT, max_new_tokens=12).texts[0]
        assert text(**BODY) == beams != plain == text(**BODY, num_beams=1) == text(**BODY, num_beams=1, logprobs=1)
        sampled = offline.generate(TEXT, max_new_tokens=12, do_sample=True, temperature=0.9, seed=2).texts[0]
        assert text(**BODY, temperature=0.9, seed=2) == sampled
        assert text("/generate", inputs=TEXT, parameters={"max_new_tokens": 12, "details": True}) == plain
        status, found, _ = server.call("/v1/completions", BODY | {"logprobs": 1})
        assert status == 400 and "set num_beams" in found["error"]["message"]


def test_without_beams(tiny_model_path):
    with live(endless(tiny_model_path), num_beams=1) as server:
        assert server.call("/v1/completions", BODY | {"n": 2, "temperature": 1.0})[0] == 200
        for own in ({"n": 2}, {"num_beams": 2}, {"best_of": 2}):
            assert server.call("/v1/completions", BODY | own)[0] == 400
