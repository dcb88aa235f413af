"""`foredraft serve` as a process, spoken to by curl, and stopped by a signal."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from time import sleep

import pytest
from live_server import PATIENCE

from foredraft.bench.harness.http_load import free_port
from foredraft.errors import UserError
from foredraft.server.run import bind, is_loopback

pytestmark = pytest.mark.skipif(shutil.which("curl") is None, reason="no curl")


def curl(*arguments: str) -> str:
    done = subprocess.run(["curl", "-sS", "--max-time", str(PATIENCE), *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_curl(server):
    body = json.dumps({"prompt": "w5 w9", "max_tokens": 4})
    json_type = ("-H", "content-type: application/json")
    assert json.loads(curl(f"{server.url}/health")) == {"status": "ok"}
    found = json.loads(curl(f"{server.url}/v1/completions", *json_type, "-d", body))
    assert len(found["choices"][0]["text"].split()) == 4
    streamed = curl("-N", f"{server.url}/v1/completions", *json_type, "-d", json.dumps({**json.loads(body), "stream": True}))
    assert streamed.endswith("data: [DONE]\n\n")
    assert "HTTP/1.1 415" in curl("-i", f"{server.url}/v1/completions", "-d", body)


@pytest.mark.full
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_command(tiny_model_path, number):
    """A signal lets a running request finish; the log is JSON; the exit code is 0."""
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, "-m", "foredraft", "serve", str(tiny_model_path), "--port", str(port), "--served-name", "tiny",
         "--drafter", "lookup", "--max-tokens", "20000"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        for _ in range(1200):
            if process.poll() is not None or subprocess.run(["curl", "-s", f"localhost:{port}/ready"],
                                                            capture_output=True).returncode == 0:
                break
            sleep(0.1)
        body = json.dumps({"prompt": "w5 w9", "max_tokens": 400, "eos_token_id": []})
        with ThreadPoolExecutor(1) as pool:
            asked = pool.submit(curl, f"localhost:{port}/v1/completions", "-H", "content-type: application/json", "-d", body)
            for _ in range(600):
                if asked.done() or json.loads(curl(f"localhost:{port}/ready"))["running"]:
                    break
                sleep(0.01)
            process.send_signal(number)
            assert json.loads(asked.result())["usage"]["completion_tokens"] == 400
        out, err = process.communicate(timeout=PATIENCE)
    finally:
        process.kill()
    assert process.returncode == 0, err
    assert "serves tiny" in err and "Traceback" not in err
    events = [json.loads(line) for line in out.splitlines()]
    assert [line["event"] for line in events if line["event"] != "request"] == ["serving", "stopped"]
    assert any(line.get("completion_tokens") == 400 for line in events) and str(tiny_model_path) not in out


def test_a_port_that_is_taken():
    with bind("127.0.0.1", 0) as first, pytest.raises(UserError, match="give another address or port"):
        bind("127.0.0.1", first.getsockname()[1])
    with pytest.raises(UserError, match="--host no.such.host.invalid"):
        bind("no.such.host.invalid", 80)


@pytest.mark.parametrize(("host", "is_local"), [("127.0.0.1", True), ("localhost", True), ("::1", True), ("0.0.0.0", False),
                                               ("example.org", False)])
def test_who_can_reach_an_address(host, is_local):
    assert is_loopback(host) == is_local


@pytest.mark.parametrize(("option", "value"), [("--max-queue", 0), ("--timeout", 0), ("--api-key", " "),
                                              ("--max-tokens", 0), ("--num-beams", 33)])
def test_wrong_options_are_one_line(command, option, value):
    code, _, err = command("serve", option, value)
    assert code == 2 and err.count("\n") == 1 and option[2:].replace("-", "_") in err
