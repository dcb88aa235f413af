"""Before the routes: keys, hosts, bodies, ids, logs and the server's own pages."""

from __future__ import annotations

import json
import socket

import pytest
from live_server import PATIENCE, endless, live

from foredraft.errors import UserError
from foredraft.server.middleware import is_local_name
from foredraft.server.settings import ServerSettings

SECRET = "w5 w77 w78"


def raw(server, data: bytes) -> bytes:
    """What the server sends back for bytes, until it closes."""
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=PATIENCE) as connection:
        connection.sendall(data)
        connection.settimeout(PATIENCE)
        found = b""
        while part := connection.recv(65536):
            found += part
            if b"\r\n\r\n" in found and b"}}" in found:
                break
        return found


def test_a_key(tiny_model_path):
    with live(endless(tiny_model_path), api_key="sesame-1") as server:
        for key in (None, "Bearer", "Bearer sesame-", "Bearer sesame-12", "Basic sesame-1", "Bearer \u00e9"):
            for path, method in (("/v1/completions", "POST"), ("/v1/models", "GET"), ("/generate", "POST"), ("/", "POST"),
                                 ("/v1/none", "GET")):
                body = {"prompt": "w5"} if method == "POST" else None
                status, found, headers = server.call(path, body, {} if key is None else {"authorization": key}, method)
                assert status == 401 and headers["www-authenticate"] == "Bearer", (key, path)
                assert "api key" in (found["error"] if path in ("/", "/generate") else found["error"]["message"])
        right = {"authorization": "bearer sesame-1"}
        assert server.call("/v1/completions", {"prompt": "w5", "max_tokens": 2}, right)[0] == 200
        assert server.call("/v1/models", None, right)[0] == 200
        for path in ("/", "/health", "/ready", "/metrics"):
            assert server.call(path)[0] == 200
        # with a key, any name of this machine will do
        assert server.call("/health", None, {"host": "elsewhere.example"})[0] == 200
        assert "sesame" not in "".join(server.lines)


@pytest.mark.parametrize("key", ["", "  ", "two\nlines", "\u00e9"])
def test_a_key_that_no_client_can_send(key):
    with pytest.raises(UserError, match="api_key"):
        ServerSettings(api_key=key)


def test_without_a_key_only_local_names(server):
    for host in ("evil.example", "evil.example:80", "127.0.0.1.evil.example", "192.168.1.4:8000", ""):
        assert server.call("/v1/models", None, {"host": host})[0] == 403
    for host in ("localhost", "localhost:9", "127.0.0.1", "[::1]:80", "[::1]", "127.9.9.9:1", "LOCALHOST", "a.localhost"):
        assert is_local_name(host) and server.call("/v1/models", None, {"host": host})[0] == 200


def test_bodies(tiny_model_path):
    with live(endless(tiny_model_path), max_body=2000, body_timeout=0.3) as server:
        def post(content: bytes, path="/v1/completions", **headers):
            return server.call(path, raw=content, headers={name.replace("_", "-"): value for name, value in headers.items()})

        status, found, _ = post(json.dumps({"prompt": "w5 " * 1000}).encode())
        assert status == 413 and found["error"]["code"] == "body_too_large"
        for content in (b"", b"{", b"\xff\xfe", b'{"prompt": NaN}', b"[" * 1500, b"9" * 1900, b'"w5"', b"null", b"[]",
                        b'{"prompt": "w5", "seed": ' + b"9" * 1500 + b"}"):
            for path in ("/v1/completions", "/v1/chat/completions", "/generate"):
                status, found, _ = post(content, path)
                assert status == (422 if path == "/generate" else 400) or found["error"] == "the body is not JSON", content
                assert "message" in found["error"] or path == "/generate"
        status, found, _ = post(b'{"prompt": "w5"}', content_type="text/plain")
        assert status == 415
        head = "POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
        # a body of unknown length is counted as it comes
        chunk = b"400\r\n" + b" " * 1024 + b"\r\n"
        assert b" 413 " in raw(server, head.encode() + b"transfer-encoding: chunked\r\n\r\n" + chunk * 3 + b"0\r\n\r\n")
        # one that does not come ends the request
        assert b" 408 " in raw(server, head.encode() + b"content-length: 90\r\n\r\n{")


def test_ids_and_logs(server):
    server.lines.clear()
    body = {"prompt": SECRET, "max_tokens": 3, "stop": "w99"}
    assert server.call("/v1/completions", body, {"x-request-id": "mine-1"})[2]["x-request-id"] == "mine-1"
    headers = server.call("/v1/completions", body | {"x w77": 1}, {"x-request-id": "a b\"{"})[2]
    assert headers["x-request-id"].startswith("req-")
    assert server.call("/v1/models/w77")[0] == 404
    assert server.call("/w77?w77")[0] == 404
    assert server.call("/w77", method="PROPFIND")[0] in (404, 405)
    done, wrong, none, other, method = (line for line in server.logged() if line["event"] == "request")
    assert done["request_id"] == "mine-1" and done["status"] == 200 and done["route"] == "/v1/completions"
    assert (done["prompt_tokens"], done["completion_tokens"], done["finish_reasons"]) == (4, 3, ["length"])
    assert wrong["status"] == 400 and wrong["error_code"] == "unknown_field"
    assert (none["route"], other["route"], method["method"]) == ("/v1/models", "other", "other")
    assert not any("w77" in line for line in server.lines)


def test_every_answer_is_json_or_a_page(server):
    assert server.call("/nothing")[1]["error"]["code"] == "not_found"
    assert server.call("/v1/completions")[1]["error"]["code"] == "method_not_allowed"
    assert server.call("/v1/completions", method="DELETE")[0] == 405
    status, page, headers = server.call("/")
    assert status == 200 and page.startswith("<!doctype html>")
    assert "default-src 'none'" in headers["content-security-policy"]
    schema = server.call("/openapi.json")[1]
    assert schema["components"]["schemas"]["CompletionRequest"]["additionalProperties"] is False
    assert {"/v1/completions", "/v1/chat/completions", "/generate"} <= set(schema["paths"])
    assert "Traceback" not in "".join(server.lines)


def test_metrics(server):
    def value(name: str) -> float:
        text = server.call("/metrics")[1]
        return next((float(line.rpartition(" ")[2]) for line in text.splitlines() if line.startswith(name)), 0.0)

    names = ("vllm:generation_tokens_total", "vllm:spec_decode_num_draft_tokens_total",
             "vllm:spec_decode_num_accepted_tokens_total",
             'vllm:spec_decode_num_accepted_tokens_per_pos_total{model_name="tiny",position="0"}',
             "vllm:time_to_first_token_seconds_count", "vllm:e2e_request_latency_seconds_count")
    before = [value(name) for name in names]
    body = {"prompt": "w11 w9 w36 " * 7, "max_tokens": 20, "details": True}
    stats = server.call("/v1/completions", body)[1]["choices"][0]["details"]["stats"]
    server.call("/v1/completions", body | {"stream": True})
    after = [value(name) - was for name, was in zip(names, before, strict=True)]
    assert after[0] == 40 and after[2] == 2 * stats["accepted"] and after[4:] == [1, 2]
    assert after[1] > after[2] >= after[3] > 0
    assert value("vllm:num_requests_running") == 0 and value("vllm:kv_cache_usage_perc") == 0


def test_importing_foredraft_does_not_import_the_server():
    import subprocess
    import sys

    script = ("import sys, foredraft, foredraft.cli.main, foredraft.cli.serve\n"
              "print([name for name in ('fastapi', 'uvicorn', 'starlette', 'prometheus_client') if name in sys.modules])")
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.strip() == "[]"
