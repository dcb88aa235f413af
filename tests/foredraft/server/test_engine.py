"""The engine thread: requests share a batch and do not disturb each other; who leaves is forgotten."""

from __future__ import annotations

import http.client
import json
import random
import socket
from concurrent.futures import ThreadPoolExecutor
from time import monotonic

import pytest
from live_server import PATIENCE, TEXTS, endless, live, wait_until

from foredraft.engine.runtime.requests import Request

LONG = {"prompt": TEXTS[6], "max_tokens": 60_000}


def open_stream(server, body):
    """A connection whose answer has begun."""
    connection = http.client.HTTPConnection(server.url.removeprefix("http://"), timeout=PATIENCE)
    connection.request("POST", "/v1/completions", json.dumps(body | {"stream": True}), {"content-type": "application/json"})
    answer = connection.getresponse()
    assert answer.status == 200 and answer.readline().startswith(b"data: ")
    return connection, answer


def leave(connection, answer):
    """Close at once, with a reset, as a client that dies."""
    connection.sock and connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    answer.close()
    connection.close()


def idle(server) -> bool:
    pool = server.engine.model.target.cache.pool
    return not server.engine.num_running and not server.engine.num_waiting and pool.free == pool.pages


def mixed(seed: int, count: int):
    draw = random.Random(seed)
    for _ in range(count):
        own = dict(draw.choice((dict(), dict(temperature=0.7), dict(temperature=1.0, top_k=9), dict(top_p=0.6))))
        own |= dict(seed=draw.randrange(2**40), max_tokens=draw.randint(1, 40), draft_tokens=draw.randint(0, 4))
        yield {"prompt": draw.choice(TEXTS), **own}


def alone(offline, body):
    """What the model gives for a body offline, without drafts."""
    from foredraft.server.schemas import CompletionRequest
    from foredraft.server.translate import completion_settings, seeds

    checked = CompletionRequest(**body)
    settings = completion_settings(checked) | {"draft_tokens": 0} | seeds(checked.seed, 1)[0]
    result, = offline.stream([Request(body["prompt"], **settings)], max_new_tokens=64)
    return result.text


@pytest.mark.parametrize("count", [24, pytest.param(400, marks=pytest.mark.full)])
def test_a_mixed_load_gives_what_each_request_gives_alone(server, offline, count):
    """Streamed or not, some wrong, some clients gone before the end."""
    bodies = list(mixed(3, count))

    def ask(number: int) -> str | None:
        body = bodies[number]
        if number % 7 == 3:
            leave(*open_stream(server, body | {"max_tokens": 64}))
            return None
        if number % 7 == 5:
            assert server.call("/v1/completions", body | {"temperature": -1})[0] == 400
        if number % 2:
            text = server.call("/v1/completions", body | {"stream": True})[1]
            events = [json.loads(event[6:]) for event in text.split("\n\n") if event.startswith("data: {")]
            return "".join(event["choices"][0]["text"] for event in events)
        return server.call("/v1/completions", body)[1]["choices"][0]["text"]

    with ThreadPoolExecutor(12) as pool:
        found = list(pool.map(ask, range(count)))
    for body, text in zip(bodies, found, strict=True):
        assert text is None or text == alone(offline, body)
    wait_until(lambda: idle(server), "all sequences are free")


def test_who_leaves_frees_the_sequence(tiny_model_path):
    with live(endless(tiny_model_path), batch_size=2, max_tokens=60_000) as server:
        streams = [open_stream(server, LONG) for _ in range(2)]
        whole = http.client.HTTPConnection(server.url.removeprefix("http://"))
        whole.request("POST", "/v1/completions", json.dumps(LONG), {"content-type": "application/json"})
        wait_until(lambda: server.engine.num_waiting == 1, "the third waits")
        assert server.engine.num_running == 2
        # of those that run, one leaves and the third takes its place; then that one leaves before an answer
        leave(*streams[0])
        wait_until(lambda: server.engine.num_waiting == 0, "the third runs")
        whole.close()
        wait_until(lambda: server.engine.num_running == 1, "one is left")
        leave(*streams[1])
        wait_until(lambda: idle(server), "all sequences are free")
        # who leaves while it waits never runs
        streams = [open_stream(server, LONG) for _ in range(3 - 1)]
        third = http.client.HTTPConnection(server.url.removeprefix("http://"))
        third.request("POST", "/v1/completions", json.dumps(LONG), {"content-type": "application/json"})
        wait_until(lambda: server.engine.num_waiting == 1, "the third waits")
        third.close()
        wait_until(lambda: server.engine.num_waiting == 0, "the third is forgotten")
        assert server.engine.num_running == 2
        for one in streams:
            leave(*one)
        wait_until(lambda: idle(server), "all sequences are free")
        assert server.call("/v1/completions", {"prompt": "w5", "max_tokens": 3})[0] == 200
        assert any(line["status"] == 499 for line in server.logged())


def test_a_full_queue(tiny_model_path):
    with live(endless(tiny_model_path), batch_size=1, max_tokens=60_000, max_queue=1) as server:
        running = open_stream(server, LONG)
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(server.call, "/v1/completions", {"prompt": "w5", "max_tokens": 2})
            wait_until(lambda: server.engine.num_waiting == 1, "one waits")
            status, found, headers = server.call("/v1/completions", {"prompt": "w6"})
            assert status == 429 and found["error"]["type"] == "rate_limit_error" and int(headers["retry-after"]) >= 1
            assert server.call("/generate", {"inputs": "w6"})[1]["error_type"] == "overloaded"
            assert server.call("/ready")[0] == 503 and server.call("/health")[0] == 200
            leave(*running)
            assert waiting.result()[0] == 200
        assert "foredraft:requests_refused_total{model_name=\"tiny\"} 2.0" in server.call("/metrics")[1]
        assert server.call("/ready")[0] == 200


def test_a_request_that_takes_too_long(tiny_model_path):
    with live(endless(tiny_model_path), max_tokens=60_000, timeout=0.3) as server:
        status, found, _ = server.call("/v1/completions", LONG)
        assert status == 504 and found["error"]["code"] == "timeout"
        text = server.call("/v1/completions", LONG | {"stream": True})[1]
        assert '"code":"timeout"' in text and not text.endswith("[DONE]\n\n")
        wait_until(lambda: idle(server), "all sequences are free")


def test_a_failure_of_the_engine_is_answered_and_the_next_request_works(tiny_model_path, monkeypatch):
    with live(endless(tiny_model_path)) as server:
        target = server.engine.model.target
        right = target.admit

        def broken(*arguments, **options):
            raise RuntimeError("secret of a request, in /a/path")

        monkeypatch.setattr(target, "admit", broken)
        for stream in (False, True):
            status, found, _ = server.call("/v1/completions", {"prompt": "w5 w6", "stream": stream})
            assert status == 500 and found["error"]["code"] == "internal_error" and "secret" not in str(found)
        monkeypatch.setattr(target, "admit", right)
        assert server.call("/v1/completions", {"prompt": "w5", "max_tokens": 3})[0] == 200
        assert "secret" not in "".join(server.lines) and "Traceback" not in "".join(server.lines)
        failed = next(line for line in server.logged() if line["event"] == "engine failed")
        assert failed["error"] == "RuntimeError" and any("engine._run" in where for where in failed["where"])
        # the third failure in a row is the last
        monkeypatch.setattr(target, "admit", broken)
        for _ in range(3):
            assert server.call("/v1/completions", {"prompt": "w5 w6"})[0] == 500
        wait_until(lambda: not server.engine.is_alive, "the engine has ended")
        assert server.call("/health")[0] == 503
        assert server.call("/v1/completions", {"prompt": "w5 w6"})[0] == 503


def test_a_stop_finishes_what_runs(tiny_model_path, offline):
    with live(endless(tiny_model_path), batch_size=1, max_tokens=3000) as server:
        with ThreadPoolExecutor(3) as pool:
            asked = [pool.submit(server.call, "/v1/completions", {"prompt": text, "max_tokens": 400}) for text in TEXTS[:3]]
            wait_until(lambda: server.engine.num_running + server.engine.num_waiting == 3, "all have come")
            server.stop()
            answers = [one.result() for one in asked]
        assert [answer[0] for answer in answers] == [200] * 3
        truth = offline.generate(TEXTS[:3], max_new_tokens=400).texts
        assert [answer[1]["choices"][0]["text"] for answer in answers] == truth


def test_a_stop_does_not_wait_forever(tiny_model_path):
    with live(endless(tiny_model_path), batch_size=1, max_tokens=60_000, shutdown_timeout=0.2) as server:
        with ThreadPoolExecutor(1) as pool:
            asked = pool.submit(server.call, "/v1/completions", LONG)
            wait_until(lambda: server.engine.num_running == 1, "it runs")
            began = monotonic()
            import asyncio

            asyncio.run_coroutine_threadsafe(server.engine.stop(), server.engine._loop).result(PATIENCE)
            assert monotonic() - began < 20
            status, found, _ = asked.result()
        assert status == 503 and found["error"]["code"] == "unavailable"
        assert server.call("/v1/completions", {"prompt": "w5"})[0] == 503 and server.call("/ready")[0] == 503
