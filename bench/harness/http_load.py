"""HTTP load on a local server: closed and open loops, and their latencies.

The client shares the cores with the server. To cost little it speaks plain HTTP/1.1 over asyncio streams.
"""

from __future__ import annotations

import asyncio
import json
import math
import random
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from time import perf_counter, sleep
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

from foredraft.errors import UserError

SHARES = (50, 95, 99)


def free_port() -> int:
    """A port of this machine on which nothing listens."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@dataclass(frozen=True)
class Answer:
    """A response. first, total: seconds from sending, or from the planned arrival, to its first part and to its end."""

    status: int
    body: bytes
    first: float
    total: float


class Connection:
    """One keep-alive connection, for one request after another."""

    def __init__(self, port: int):
        self.port, self.streams = port, None

    async def post(self, path: str, body: bytes, since: float | None = None) -> Answer:
        """Send a request and read its response. since: the planned arrival in perf_counter seconds; None is now."""
        since, is_new = perf_counter() if since is None else since, self.streams is None
        if is_new:
            self.streams = await asyncio.open_connection("127.0.0.1", self.port)
        reader, writer = self.streams
        writer.write(b"POST %s HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%s"
                     % (path.encode(), len(body), body))
        await writer.drain()
        line = await reader.readline()
        if not line and not is_new:
            # the server has closed the idle connection
            self.close()
            return await self.post(path, body, since)
        status = int(line.split()[1])
        length, first = None, 0.0
        while (line := await reader.readline()) != b"\r\n":
            name, _, value = line.partition(b":")
            if name.lower() == b"content-length":
                length = int(value)
        if length is not None:
            found = await reader.readexactly(length)
        else:
            parts = []
            while size := int(await reader.readline(), 16):
                parts.append(await reader.readexactly(size))
                first = first or perf_counter() - since
                await reader.readline()
            await reader.readline()
            found = b"".join(parts)
        total = perf_counter() - since
        return Answer(status, found, first or total, total)

    def close(self) -> None:
        if self.streams is not None:
            self.streams[1].close()
            self.streams = None


async def closed_loop(port: int, path: str, bodies: Sequence[bytes], clients: int) -> tuple[list[Answer], float]:
    """Each of `clients` sends its next request after the last response. Returns the responses in order, and the seconds."""
    answers: list[Answer | None] = [None] * len(bodies)
    left = iter(range(len(bodies)))

    async def client() -> None:
        connection = Connection(port)
        for number in left:
            answers[number] = await connection.post(path, bodies[number])
        connection.close()

    began = perf_counter()
    await asyncio.gather(*(client() for _ in range(clients)))
    return answers, perf_counter() - began


async def open_loop(port: int, path: str, bodies: Sequence[bytes], rate: float,
                    seed: int = 0) -> tuple[list[Answer], float]:
    """Requests arrive as a Poisson process of `rate` a second. Returns as closed_loop; latencies count from the arrivals."""
    draw, idle = random.Random(seed), []

    async def one(body: bytes, at: float) -> Answer:
        connection = idle.pop() if idle else Connection(port)
        try:
            return await connection.post(path, body, at)
        finally:
            idle.append(connection)

    began, at, tasks = perf_counter(), 0.0, []
    for body in bodies:
        at += draw.expovariate(rate)
        await asyncio.sleep(max(began + at - perf_counter(), 0))
        tasks.append(asyncio.create_task(one(body, began + at)))
    answers = await asyncio.gather(*tasks)
    seconds = perf_counter() - began
    for connection in idle:
        connection.close()
    return answers, seconds


def percentile(values: Sequence[float], share: float) -> float:
    """The nearest-rank percentile: the smallest value that at least `share` percent of the values do not exceed."""
    ordered = sorted(values)
    return ordered[max(math.ceil(len(ordered) * share / 100), 1) - 1]


def figures(answers: Sequence[Answer], seconds: float, texts: Callable[[Answer], str],
            truth: Sequence[str]) -> dict[str, Any]:
    """Requests a second, percentiles of latency and of the time to the first part, failures and wrong texts."""
    right = [answer for answer in answers if answer.status == 200]
    differ = sum(answer.status == 200 and texts(answer) != text for answer, text in zip(answers, truth, strict=True))
    found: dict[str, Any] = {"requests": len(answers), "failed": len(answers) - len(right), "differ": differ,
                             "seconds": seconds, "requests_per_second": len(right) / seconds}
    for name, values in (("latency", [one.total for one in right]), ("first", [one.first for one in right])):
        found[name] = {f"p{share}": percentile(values, share) for share in SHARES} if values else None
    return found


def streamed_text(answer: Answer) -> str:
    """The text of a streamed completion."""
    events = [json.loads(line[6:]) for line in answer.body.decode().split("\n\n") if line.startswith("data: {")]
    return "".join(choice["text"] for event in events for choice in event.get("choices", ()))


@contextmanager
def process(arguments: Sequence[str], port: int, ready: str, patience: float = 900.0) -> Iterator[None]:
    """Run a Python module as a server; the block starts when GET `ready` succeeds within `patience` seconds."""
    running = subprocess.Popen([sys.executable, "-m", *arguments], stdout=subprocess.DEVNULL)
    try:
        until = perf_counter() + patience
        while True:
            if running.poll() is not None:
                raise UserError(f"{arguments[0]}: the server ended with exit code {running.returncode} before it was ready")
            try:
                with urlopen(f"http://127.0.0.1:{port}{ready}", timeout=5):
                    break
            except (URLError, OSError):
                if perf_counter() > until:
                    raise UserError(f"{arguments[0]}: the server was not ready within {patience:g} s") from None
                sleep(0.2)
        yield
    finally:
        running.terminate()
        try:
            running.wait(60)
        except subprocess.TimeoutExpired:
            running.kill()
            running.wait()
