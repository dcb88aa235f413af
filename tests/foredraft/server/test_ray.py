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
from foredraft.server.settings import ServerSettings

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


HEAD = {"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/json")]}
STREAM = HEAD | {"headers": [(b"content-type", b"text/event-stream; charset=utf-8")]}
STOPPING = HEAD | {"status": 503}


def part(body: bytes, more_body: bool = False) -> dict:
    return {"type": "http.response.body", "body": body, "more_body": more_body}


@needs_ray
class TestGateway:
    """What the gateway makes of replicas' responses: each a list of messages, of which the last may be an error."""

    def ask(self, monkeypatch, *responses, path="/v1/completions", act=None, **settings):
        """Status, headers, body and number of tries of a request; `act` is a method of the gateway to call meanwhile."""
        from foredraft.server import gateway as module

        tried = []

        class Response:
            def __init__(self, items):
                self.items = items

            async def __aiter__(self):
                for item in self.items:
                    if isinstance(item, Exception):
                        raise item
                    if item is None:
                        await asyncio.sleep(PATIENCE)
                    yield [item]

            def cancel(self):
                # as Ray Serve's, which raises again what it raised before
                if isinstance(self.items[-1], Exception):
                    raise self.items[-1]

        class Handle:
            def options(self, **_):
                return self

            def remote(self, scope, body):
                tried.append(body)
                return Response(responses[min(len(tried), len(responses)) - 1])

        sent = []

        async def send(message):
            sent.append(message)

        async def run():
            monkeypatch.setattr(module, "configure", lambda: None)
            gateway = module.Gateway(Handle(), ServerSettings(**settings), True)
            given = [{"type": "http.request", "body": b"{}", "more_body": False}]
            scope = {"type": "http", "method": "POST", "path": path, "headers": [
                (b"host", b"localhost"), (b"content-type", b"application/json"), (b"content-length", b"2")]}

            async def receive():
                return given.pop()

            running = asyncio.ensure_future((await gateway(None))(scope, receive, send))
            if act is not None:
                await asyncio.sleep(0.1)
                await getattr(gateway, act)()
            await running

        asyncio.run(run())
        assert not sent[-1].get("more_body") and b"{}" in tried
        return sent[0]["status"], dict(sent[0]["headers"]), b"".join(m.get("body", b"") for m in sent[1:]), len(tried)

    @pytest.fixture(scope="class")
    def died(self):
        from ray.exceptions import ActorDiedError

        return ActorDiedError()

    def test_another_replica_answers(self, monkeypatch, died):
        for lost in ([died], [HEAD, died], [HEAD, part(b"x", True), died], [HEAD, part(b"x", True)], [STOPPING, part(b"y")]):
            status, headers, body, tries = self.ask(monkeypatch, lost, lost, [HEAD, part(b"a", True), part(b"b")])
            assert (status, body, tries) == (200, b"ab", 3) and headers[b"content-type"] == b"application/json"

    def test_a_request_that_ends_every_replica(self, monkeypatch, died):
        status, headers, body, tries = self.ask(monkeypatch, [died])
        assert (status, tries, headers[b"retry-after"]) == (503, 3, b"5")
        assert json.loads(body)["error"]["code"] == "replica_lost"
        status, _, body, tries = self.ask(monkeypatch, [STOPPING, part(b"stopping")])
        assert (status, body, tries) == (503, b"stopping", 3)

    @pytest.mark.parametrize("is_silent", [False, True])
    def test_a_stream_that_has_begun_ends_with_an_error(self, monkeypatch, died, is_silent):
        begun = [STREAM, part(b"data: 1\n\n", True)] + ([] if is_silent else [died])
        status, _, body, tries = self.ask(monkeypatch, begun)
        first, last, rest = body.decode().split("\n\n")
        assert (status, tries, first, rest) == (200, 1, "data: 1", "")
        assert json.loads(last.removeprefix("data: "))["error"]["code"] == "replica_lost"
        _, _, body, _ = self.ask(monkeypatch, begun, path="/generate_stream")
        assert json.loads(body.decode().split("\n\n")[1].removeprefix("data: "))["error_type"] == "overloaded"

    def test_a_full_queue_and_the_time_limit(self, monkeypatch):
        from ray.serve.exceptions import BackPressureError

        full = BackPressureError(num_queued_requests=1, max_queued_requests=1)
        status, headers, body, tries = self.ask(monkeypatch, [full])
        assert (status, tries, headers[b"retry-after"]) == (429, 1, b"1")
        assert json.loads(body)["error"]["code"] == "queue_full"
        status, _, body, _ = self.ask(monkeypatch, [HEAD, None], timeout=0.2)
        assert status == 504 and json.loads(body)["error"]["code"] == "timeout"

    def test_a_request_that_outlasts_the_shutdown_gets_an_error(self, monkeypatch):
        status, _, body, _ = self.ask(monkeypatch, [HEAD, None], act="drain", shutdown_timeout=0.1)
        assert status == 503 and json.loads(body)["error"]["code"] == "unavailable"
        _, _, body, _ = self.ask(monkeypatch, [STREAM, part(b"data: 1\n\n", True), None], act="drain", shutdown_timeout=0.1)
        assert json.loads(body.decode().split("\n\n")[1].removeprefix("data: "))["error"]["code"] == "unavailable"


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
