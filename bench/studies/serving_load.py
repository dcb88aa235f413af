"""Requests a second and latencies of the server, beside the same engine offline and a FastAPI handler around transformers.

    python -m foredraft.bench.studies.serving_load --data articles.jsonl --limit 256 --clients 1,8,64
    python -m foredraft.bench.studies.serving_load --geometry flan-t5-base --weights int8 --limit 64

The three are measured one after another. Texts are compared with the offline engine's.
"""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Annotated, Any

import typer

from foredraft import embedded
from foredraft.bench.harness import http_load
from foredraft.bench.harness.cases import describe
from foredraft.bench.harness.geometry import GEOMETRIES, write_checkpoint
from foredraft.bench.harness.record import common_fields
from foredraft.bench.report.tables import Table
from foredraft.cli import options
from foredraft.cli.measuring import finish, read_articles, run_script
from foredraft.cli.output import announce_compilation, notice
from foredraft.engine.load import load
from foredraft.errors import UserError

HEADS = ("who", "load", "requests/s", "p50, s", "p95, s", "p99, s", "first p50", "first p95", "failed", "differ")


def offline(model: Any, texts: Sequence[str], settings: dict[str, Any]) -> tuple[list[str], dict[str, Any]]:
    """The engine's texts without a server, and its requests a second after a warm-up."""
    list(model.stream(texts[: settings["batch_size"]], **settings))
    began = perf_counter()
    results = list(model.stream(texts, in_order=True, **settings))
    seconds = perf_counter() - began
    return [result.text for result in results], {"requests": len(texts), "seconds": seconds,
                                                 "requests_per_second": len(texts) / seconds}


def measure(port: int, path: str, bodies: Sequence[bytes], truth: Sequence[str], text_of, clients: Sequence[int],
            shares: Sequence[float], per_client: int) -> list[dict[str, Any]]:
    """Measure closed loops with each number of clients, then open loops at shares of the best closed loop's rate.

    A closed loop of C clients sends at most C * per_client requests.
    """
    found = []
    asyncio.run(http_load.closed_loop(port, path, bodies[: max(clients)], max(clients)))
    for count in clients:
        few = bodies[: count * per_client]
        answers, seconds = asyncio.run(http_load.closed_loop(port, path, few, count))
        found.append({"loop": "closed", "clients": count} | http_load.figures(answers, seconds, text_of, truth[: len(few)]))
    best = max(one["requests_per_second"] for one in found)
    for share in shares:
        answers, seconds = asyncio.run(http_load.open_loop(port, path, bodies, share * best))
        found.append({"loop": "poisson", "share": share, "rate": share * best}
                     | http_load.figures(answers, seconds, text_of, truth))
    return found


def main(
    target: options.Target = None,
    geometry: Annotated[
        str | None, typer.Option("--geometry", help=f"In place of --target: random weights of {', '.join(GEOMETRIES)}; "
                                                    "outputs then have a fixed length.")] = None,
    data: options.Data = None,
    limit: options.Limit = None,
    clients: Annotated[str, typer.Option("--clients", help="Clients of the closed loops, separated by commas.")] = "1,8,64",
    shares: Annotated[
        str, typer.Option("--loads", help="Open loops, as shares of the best closed loop's rate, with commas.")] = "0.5,0.8",
    per_client: Annotated[int, typer.Option("--per-client", min=1, help="Limit of a client's requests.")] = 16,
    peer_clients: Annotated[
        str | None, typer.Option("--peer-clients", help="Clients of the transformers handler. Default: --clients.")] = None,
    peer: Annotated[bool, typer.Option("--peer/--no-peer", help="Measure the transformers handler.")] = True,
    drafter: options.Drafter = "auto",
    draft_tokens: options.DraftTokens = None,
    batch_size: options.BatchSize = 64,
    max_new_tokens: options.MaxNewTokens = 128,
    max_source: options.MaxSource = 512,
    dtype: options.Dtype = "float32",
    weights: options.Weights = None,
    out: options.Results = Path("bench/results"),
    as_json: options.Json = False,
    wide: options.Wide = False,
) -> None:
    """Measure the server's throughput and latencies."""
    if target is not None and geometry is not None:
        raise UserError("--target and --geometry are given; give one of them")
    counts = [int(count) for count in options.parse_numbers("--clients", clients, int, 1)]
    peers = counts if peer_clients is None else options.parse_numbers("--peer-clients", peer_clients, int, 1)
    loads = options.parse_numbers("--loads", shares, float, 0.01) if shares else []
    announce_compilation()
    with TemporaryDirectory() as made:
        if geometry is not None:
            folder = write_checkpoint(geometry, Path(made) / geometry)
            shutil.copy(embedded.TARGET / "tokenizer.json", folder)
            target = str(folder)
        model = load(target, drafter=None if drafter == "none" else drafter, dtype=dtype, weights=weights)
        cases = read_articles(data, model, limit, max_source)
        # the largest closed loop needs this many texts; articles repeat
        decoded = [model.tokenizer.decode(list(case.source), skip_special_tokens=True) for case in cases]
        number = max(max(counts) * per_client, len(decoded))
        texts = [decoded[index % len(decoded)] for index in range(number)]
        ends = {"eos_token_id": []} if geometry is not None else {}
        own = {} if draft_tokens is None else {"draft_tokens": options.parse_draft_tokens(draft_tokens)}
        truth, alone = offline(model, texts, dict(batch_size=batch_size, max_new_tokens=max_new_tokens,
                                                  max_source=max_source) | own | ends)
        notice(f"offline: {alone['requests_per_second']:.2f} requests a second")
        record = common_fields("serving-load", model=model, data=describe(data, cases)) | {
            "geometry": geometry, "batch_size": batch_size, "max_new_tokens": max_new_tokens, "max_source": max_source,
            "drafter": drafter, "offline": alone}
        path = str(model.path)
        del model
        asked = {"max_tokens": max_new_tokens, "truncate_prompt_tokens": -1, **ends}
        port = http_load.free_port()
        flags = ["--port", str(port), "--drafter", drafter, "--batch-size", str(batch_size), "--max-tokens",
                 str(max_new_tokens), "--max-source", str(max_source), "--max-queue", "10000",
                 "--dtype", dtype, *(["--weights", weights] if weights else []),
                 *(["--draft-tokens", draft_tokens] if draft_tokens else [])]
        with http_load.process(["foredraft", "serve", path, *flags], port, "/ready"):
            for name, stream, text_of in (
                    ("complete", False, lambda answer: json.loads(answer.body)["choices"][0]["text"]),
                    ("streamed", True, http_load.streamed_text)):
                bodies = [json.dumps({"prompt": text, "stream": stream, **asked}).encode() for text in texts]
                record[name] = measure(port, "/v1/completions", bodies, truth, text_of, counts, loads, per_client)
        if peer:
            port = http_load.free_port()
            bodies = [json.dumps({"text": text, "max_new_tokens": max_new_tokens, "max_source": max_source}).encode()
                      for text in texts]
            with http_load.process(["foredraft.bench.studies.transformers_handler", path, str(port),
                                    *(["--fixed-length"] if geometry is not None else [])], port, "/ready"):
                record["transformers"] = measure(port, "/generate", bodies, truth,
                                                 lambda answer: json.loads(answer.body)["text"], peers, [], per_client)
    finish([record], out, [table(record), *comparisons(record)], as_json, wide)


def table(record: dict[str, Any]) -> Table:
    """One line for each loop."""
    lines = [["offline", f"batch {record['batch_size']}", f"{record['offline']['requests_per_second']:.2f}", *["-"] * 7]]
    for who in ("complete", "streamed", "transformers"):
        for one in record.get(who, ()):
            load = f"{one['clients']} clients" if one["loop"] == "closed" else f"poisson {one['rate']:.2f}/s"
            times = [f"{one[name][share]:.3f}" if one[name] else "-" for name, share in (
                ("latency", "p50"), ("latency", "p95"), ("latency", "p99"), ("first", "p50"), ("first", "p95"))]
            lines.append([who, load, f"{one['requests_per_second']:.2f}", *times, str(one["failed"]), str(one["differ"])])
    return Table("Requests and latencies", HEADS, lines, ("p99, s", "first p50"),
                 "first: seconds to the first part of the answer; differ: answers that are not the offline engine's")


def comparisons(record: dict[str, Any]) -> list[str]:
    """Throughput and latency relative to the offline engine, the handler and the fewest clients, a line each."""
    def closed(who: str) -> dict[int, dict[str, Any]]:
        return {one["clients"]: one for one in record.get(who, ()) if one["loop"] == "closed"}

    most, full = max(closed("complete").items())
    share = full["requests_per_second"] / record["offline"]["requests_per_second"]
    found = [f"closed loop with {most} clients: {share:.1%} of the offline engine's requests a second"]
    if others := closed("transformers"):
        gain = full["requests_per_second"] / max(one["requests_per_second"] for one in others.values())
        found.append(f"closed loop with {most} clients: {gain:.1f} times the transformers handler's best")
    first = {count: one["first"]["p95"] for count, one in closed("streamed").items() if one["first"]}
    for count in sorted(first)[1:]:
        found.append(f"p95 time to the first part with {count} clients: {first[count] / first[min(first)]:.2f} times that "
                     f"with {min(first)}")
    return found


if __name__ == "__main__":
    run_script(main)
