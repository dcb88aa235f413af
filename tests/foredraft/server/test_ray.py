"""`foredraft serve --ray`: two replicas under load, of which one is killed, and the options."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from time import monotonic, sleep

import psutil
import pytest
from live_server import TEXTS

import foredraft
from foredraft.errors import UserError
from foredraft.server.replicas import Replicas, threads_of
from foredraft.server.run import bind

ROOT = Path(__file__).resolve().parents[3]
# starting Ray and the replicas takes most of it
PATIENCE = 300.0
needs_ray = pytest.mark.skipif("not __import__('importlib').util.find_spec('ray')",
                               reason="Ray is not installed: pip install 'foredraft[ray]'")


@pytest.mark.parametrize(("text", "found"), [("1", (1, 1)), ("3", (3, 3)), ("2:8", (2, 8)), ("4:4", (4, 4))])
def test_a_number_of_replicas(text, found):
    assert Replicas.parse(text) == Replicas(*found)


@pytest.mark.parametrize("text", ["0", "0:3", "4:2", "-1", "two", "1:2:3", "1:", "", "1.5", "\u0661"])
def test_a_wrong_number_of_replicas(text):
    with pytest.raises(UserError, match=f"^--replicas {re.escape(text)}: give a number of at least 1, or MIN:MAX"):
        Replicas.parse(text)


@pytest.mark.parametrize(("cores", "replicas", "threads"), [
    ([2], 2, 1), ([8], 3, 2), ([16, 16], 3, 8), ([16, 4], 5, 4), ([2], 3, 0), ([], 1, 0), ([64], 1, 64)])
def test_every_replica_gets_its_share_of_the_cores(cores, replicas, threads):
    assert threads_of(cores, replicas) == threads


@pytest.mark.parametrize("arguments", [("--ray", "--replicas", "0"), ("--replicas", "2"), ("--ray-address", "auto")])
def test_wrong_options_are_one_line(command, arguments):
    code, _, err = command("serve", *arguments)
    assert code == 2 and err.count("\n") == 1 and arguments[-2] in err


def test_without_ray_a_line_names_the_extra(command, monkeypatch):
    for name in ("cluster", "gateway", "replica"):
        monkeypatch.delitem(sys.modules, f"foredraft.server.{name}", raising=False)
    monkeypatch.setitem(sys.modules, "ray", None)
    code, _, err = command("serve", "--ray")
    assert code == 2 and err.count("\n") == 1 and "foredraft[ray]" in err


@needs_ray
class TestAnswer:
    """What the gateway sends of a replica's response, and when."""

    def sent(self, *messages, may_retry=True):
        from foredraft.server.gateway import Answer

        found = []

        async def send(message):
            found.append(message)

        async def run():
            answer = Answer(send)
            for message in messages:
                await answer(message, may_retry)
            return answer

        return asyncio.run(run()), found

    def start(self, status=200, kind=b"application/json"):
        headers = [(b"content-type", kind), (b"x-request-id", b"a")]
        return {"type": "http.response.start", "status": status, "headers": headers}

    def body(self, more_body):
        return {"type": "http.response.body", "body": b"x", "more_body": more_body}

    def test_a_response_is_sent_when_it_is_complete(self):
        answer, found = self.sent(self.start(), self.body(True))
        assert not answer.has_begun and not found
        answer, found = self.sent(self.start(), self.body(True), self.body(False))
        assert answer.is_complete and [message["type"] for message in found].count("http.response.body") == 2
        assert found[0]["headers"] == [(b"content-type", b"application/json")]

    def test_a_stream_is_sent_as_it_comes(self):
        answer, found = self.sent(self.start(kind=b"text/event-stream; charset=utf-8"), self.body(True))
        assert answer.has_begun and not answer.is_complete and len(found) == 2

    def test_a_replica_that_is_not_available_is_left_for_another(self):
        from foredraft.server.gateway import Lost

        with pytest.raises(Lost):
            self.sent(self.start(503))
        answer, found = self.sent(self.start(503), self.body(False), may_retry=False)
        assert found[0]["status"] == 503


class Served:
    """The command as a process."""

    def __init__(self, folder: Path, log: Path):
        with bind("127.0.0.1", 0) as found:
            self.url = f"http://127.0.0.1:{found.getsockname()[1]}"
        self.log = log
        paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        with log.open("w") as err:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "foredraft", "serve", str(folder), "--ray", "--replicas", "2", "--threads", "1",
                 "--port", self.url.rpartition(":")[2], "--served-name", "tiny", "--drafter", "lookup", "--batch-size", "4",
                 "--max-tokens", "20000"],
                stderr=err, stdout=subprocess.DEVNULL, cwd=log.parent,
                env=os.environ | {"PYTHONPATH": paths, "RAY_ADDRESS": "local"})

    def open(self, path: str, body: dict | None = None):
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, {"content-type": "application/json"})
        return urllib.request.urlopen(request, timeout=PATIENCE)

    def call(self, path: str, body: dict | None = None) -> tuple[int, str]:
        """Status and text; "" with status 0 while nothing listens."""
        try:
            with self.open(path, body) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()
        except urllib.error.URLError:
            return 0, ""

    def metric(self, name: str) -> float:
        """The sum of a metric over all replicas and labels."""
        lines = self.call("/metrics")[1].splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith(f"{name}{{"))

    def wait_for(self, replicas: int) -> None:
        until = monotonic() + PATIENCE
        while monotonic() < until and self.process.poll() is None:
            status, text = self.call("/ready")
            if status == 200 and json.loads(text)["replicas"] == replicas:
                return
            sleep(0.2)
        raise AssertionError(f"not {replicas} replicas: {self.call('/ready')} {self.log.read_text()}")

    def pids(self) -> list[int]:
        """The processes of the replicas."""
        found = psutil.Process(self.process.pid).children(recursive=True)
        return [one.pid for one in found if "ServeReplica:foredraft:replica" in " ".join(one.cmdline())]


def streamed(text: str) -> tuple[str, str | dict]:
    """The text of a stream, and "[DONE]" or the error that ended it."""
    *parts, last = [part.removeprefix("data: ") for part in text.split("\n\n") if part and not part.startswith(":")]
    last = last if last == "[DONE]" else json.loads(last)["error"]
    return "".join(json.loads(part)["choices"][0]["text"] for part in parts), last


@needs_ray
@pytest.mark.full
def test_every_request_is_answered_though_a_replica_is_killed(tiny_model_path, tmp_path):
    long = dict(max_tokens=400, eos_token_id=[])
    offline = foredraft.load(tiny_model_path, drafter="lookup")
    truth = {text: offline.generate(text, max_new_tokens=400, eos_token_id=[]).texts[0] for text in TEXTS}
    served = Served(tiny_model_path, tmp_path / "log")
    try:
        served.wait_for(2)
        before = set(re.findall(r'replica="(\w+)"', served.call("/metrics")[1]))
        pids = served.pids()
        assert len(before) == len(pids) == 2
        lost = 0
        stop = monotonic() + 10

        def client(number: int) -> list:
            found = []
            while monotonic() < stop or not found:
                text = TEXTS[(number + 3 * len(found)) % len(TEXTS)]
                is_stream = number % 2 == 0
                answer = served.call("/v1/completions", long | {"prompt": text, "stream": is_stream})
                found.append((text, is_stream, *answer))
            return found

        with ThreadPoolExecutor(8) as pool:
            clients = [pool.submit(client, number) for number in range(8)]
            sleep(3)
            os.kill(pids[0], signal.SIGKILL)
            answers = [answer for one in clients for answer in one.result()]
        for text, is_stream, status, found in answers:
            if not is_stream:
                assert status == 200 and json.loads(found)["choices"][0]["text"] == truth[text]
                continue
            assert status == 200
            written, last = streamed(found)
            if last == "[DONE]":
                assert written == truth[text]
            else:
                lost += 1
                assert last["code"] == "replica_lost" and truth[text].startswith(written) and last["type"] == "server_error"
        # the replica comes back, as another one
        served.wait_for(2)
        assert len(set(re.findall(r'replica="(\w+)"', served.call("/metrics")[1])) - before) == 1
        assert pids[0] not in served.pids() and len(served.pids()) == 2
        # the killed replica had requests
        assert lost + served.metric("foredraft:requests_retried_total") > 0
        # a client that leaves: its sequence ends long before its 20,000 tokens
        left = long | {"prompt": TEXTS[0], "max_tokens": 20000, "stream": True}
        ended = served.metric("vllm:request_success_total")
        served.open("/v1/completions", left).close()
        while json.loads(served.call("/ready")[1])["running"]:
            sleep(0.05)
        assert served.metric("vllm:request_success_total") == ended
        # a running request ends before the server does
        with ThreadPoolExecutor(1) as pool:
            running = pool.submit(served.call, "/v1/completions", long | {"prompt": TEXTS[0], "max_tokens": 2000})
            while not json.loads(served.call("/ready")[1])["running"] and not running.done():
                sleep(0.01)
            served.process.send_signal(signal.SIGTERM)
            status, found = running.result()
        assert status == 200 and json.loads(found)["usage"]["completion_tokens"] == 2000
        assert served.process.wait(PATIENCE) == 0, served.log.read_text()
        assert "Traceback" not in served.log.read_text()
    finally:
        if served.process.poll() is None:
            served.process.send_signal(signal.SIGTERM)
            served.process.wait(PATIENCE)
