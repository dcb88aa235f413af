"""A long mixed load on the server: its texts are compared with the offline engine's, and its memory is sampled.

    python -m foredraft.bench.studies.serving_soak --seconds 1800

Clients send complete, streamed and invalid requests with different settings and seeds, and close some connections early.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from pathlib import Path
from time import perf_counter, sleep
from typing import Annotated, Any
from urllib.request import urlopen

import numpy as np
import psutil
import typer

from foredraft.bench.harness.cases import describe
from foredraft.bench.harness.http_load import Connection, free_port, process, streamed_text
from foredraft.bench.harness.record import common_fields
from foredraft.bench.report.tables import Table
from foredraft.cli import options
from foredraft.cli.measuring import finish, read_articles, run_script
from foredraft.cli.output import announce_compilation
from foredraft.engine.load import load
from foredraft.engine.runtime.requests import Request
from foredraft.errors import UserError

BEAMS = 4
SETTINGS = ({}, {"do_sample": True, "temperature": 0.8}, {"do_sample": True, "temperature": 1.0, "top_k": 20},
            {"do_sample": True, "temperature": 0.9, "top_p": 0.8}, {"repetition_penalty": 1.2}, {"num_beams": BEAMS})
WRONG = ({}, {"prompt": ""}, {"prompt": "a text", "colour": 1}, {"prompt": "a text", "max_tokens": 10**6},
         {"prompt": "a text", "regex": "("})
KINDS = ("complete", "streamed", "wrong", "left")
# share of the run that the fit of the memory leaves out, while kernels are loaded and buffers grow
WARM_SHARE = 0.3


def make_requests(texts: list[str], count: int, max_new_tokens: int, draw: random.Random) -> list[dict[str, Any]]:
    """Random bodies of completions, each with a seed."""
    return [{"prompt": draw.choice(texts), "max_tokens": draw.randint(1, max_new_tokens), "seed": draw.randrange(2**40),
             "truncate_prompt_tokens": -1, **draw.choice(SETTINGS)} for _ in range(count)]


def truths(model: Any, bodies: list[dict[str, Any]], max_new_tokens: int) -> list[str]:
    """The texts of the offline engine for the bodies."""
    from foredraft.kernels.core.philox import request_seed

    names = ("do_sample", "temperature", "top_k", "top_p", "repetition_penalty")
    requests = [Request(body["prompt"], max_new_tokens=body["max_tokens"], seed=request_seed(body["seed"], 0),
                        num_beams=body.get("num_beams", 1), **{name: body[name] for name in names if name in body})
                for body in bodies]
    results = model.stream(requests, in_order=True, max_new_tokens=max_new_tokens, batch_size=16, num_beams=BEAMS)
    return [result.text for result in results]


async def leave(port: int, body: dict[str, Any], draw: random.Random) -> None:
    """Send a request and close the connection after 0, 8 or 30 lines of the response."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    data = json.dumps(body | {"stream": draw.random() < 0.7}).encode()
    writer.write(b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
                 b"content-length: %d\r\n\r\n%s" % (len(data), data))
    await writer.drain()
    try:
        async with asyncio.timeout(5):
            for _ in range(draw.choice((0, 0, 8, 30))):
                if not await reader.readline():
                    break
    except TimeoutError:
        # the response has fewer lines
        pass
    writer.transport.abort()


async def load_on(port: int, bodies: list[dict[str, Any]], truth: list[str], clients: int, seconds: float,
                  counts: Counter) -> None:
    """Run clients for `seconds`. counts: requests by kind, wrong texts as "differ", wrong statuses as "failed"."""
    until = perf_counter() + seconds

    async def client(number: int) -> None:
        draw, connection = random.Random(number), Connection(port)
        while perf_counter() < until:
            kind, index = draw.choices(KINDS, (5, 5, 1, 2))[0], draw.randrange(len(bodies))
            counts[kind] += 1
            if kind == "left":
                await leave(port, bodies[index], draw)
                continue
            body = draw.choice(WRONG) if kind == "wrong" else bodies[index] | {"stream": kind == "streamed"}
            answer = await connection.post("/v1/completions", json.dumps(body).encode())
            if answer.status != (400 if kind == "wrong" else 200):
                counts["failed"] += 1
            elif kind != "wrong":
                text = streamed_text(answer) if kind == "streamed" else json.loads(answer.body)["choices"][0]["text"]
                counts["differ"] += text != truth[index]
        connection.close()

    await asyncio.gather(*(client(number) for number in range(clients)))


async def watch(port: int, every: float, samples: list[tuple[float, float]]) -> None:
    """Append (seconds, resident megabytes of the server) every `every` seconds, until cancelled."""
    server = next(one for one in psutil.Process().children(recursive=True) if str(port) in one.cmdline())
    began = perf_counter()
    while True:
        samples.append((perf_counter() - began, server.memory_info().rss / 1e6))
        await asyncio.sleep(every)


def slope(samples: list[tuple[float, float]]) -> tuple[float, float]:
    """Megabytes an hour, fitted by least squares to the samples after the warm-up, and its standard error."""
    end = samples[-1][0]
    seconds, memory = np.array([one for one in samples if one[0] >= WARM_SHARE * end]).T
    if len(seconds) < 3:
        raise UserError(f"{len(seconds)} samples of the memory are too few; give more --seconds")
    centred = seconds - seconds.mean()
    found = centred @ memory / (centred @ centred)
    rest = memory - memory.mean() - found * centred
    error = np.sqrt(rest @ rest / (len(seconds) - 2) / (centred @ centred))
    return float(found * 3600), float(error * 3600)


def main(
    target: options.Target = None,
    data: options.Data = None,
    seconds: Annotated[float, typer.Option("--seconds", min=5.0, help="Duration of the load.")] = 1800.0,
    clients: Annotated[int, typer.Option("--clients", min=1, help="Clients at once.")] = 24,
    requests: Annotated[int, typer.Option("--requests", min=1, help="Number of different requests.")] = 200,
    drafter: options.Drafter = "auto",
    max_new_tokens: options.MaxNewTokens = 64,
    out: options.Results = Path("bench/results"),
    as_json: options.Json = False,
    wide: options.Wide = False,
) -> None:
    """Load the server for a long time."""
    announce_compilation()
    model = load(target, drafter=None if drafter == "none" else drafter)
    cases = read_articles(data, model, None)
    texts = [model.tokenizer.decode(list(case.source), skip_special_tokens=True) for case in cases]
    bodies = make_requests(texts, requests, max_new_tokens, random.Random(0))
    truth = truths(model, bodies, max_new_tokens)
    record = common_fields("serving-soak", model=model, data=describe(data, cases))
    path = str(model.path)
    del model
    port, counts, samples = free_port(), Counter(), []

    async def run() -> None:
        watching = asyncio.create_task(watch(port, max(seconds / 300, 0.5), samples))
        await load_on(port, bodies, truth, clients, seconds, counts)
        watching.cancel()

    flags = ["--port", str(port), "--drafter", drafter, "--max-tokens", str(max_new_tokens), "--num-beams", str(BEAMS)]
    with process(["foredraft", "serve", path, *flags], port, "/ready"):
        asyncio.run(run())
        for _ in range(100):
            with urlopen(f"http://127.0.0.1:{port}/ready") as answer:
                left = json.load(answer)
            if not left["running"] + left["waiting"]:
                break
            sleep(0.1)
    per_hour, error = slope(samples)
    record |= {"clients": clients, "load_seconds": seconds, "counts": dict(counts),
               "stuck": left["running"] + left["waiting"], "megabytes": samples[-1][1], "megabytes_per_hour": per_hour,
               "standard_error": error, "samples": samples}
    finish([record], out, [Table(
        "Mixed load", ("requests", *KINDS, "failed", "differ", "stuck", "MB", "MB an hour"),
        [[str(sum(counts[kind] for kind in KINDS)), *(str(counts[kind]) for kind in KINDS), str(counts["failed"]),
          str(counts["differ"]), str(record["stuck"]), f"{samples[-1][1]:.0f}", f"{per_hour:+.1f} +- {error:.1f}"]],
        (), "left: the client closed the connection; differ: texts that are not the offline engine's; MB an hour: fitted")],
        as_json, wide)


if __name__ == "__main__":
    run_script(main)
