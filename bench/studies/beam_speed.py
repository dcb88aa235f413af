"""Beam search: seconds a summary and a step, beside greedy decoding and other engines with as many beams.

    python -m foredraft.bench.studies.beam_speed [--geometry flan-t5-base] [--beams 2,4,8]

All methods decode the same sources to the same length, ignoring end tokens, in random orders. The seconds of a step are the
difference between two lengths, divided by their distance. Outputs are compared with foredraft's without drafts. The peak
memory of a method is that of a process that loads it and decodes the longest source.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Annotated

import typer

from foredraft.bench.harness.cases import describe
from foredraft.bench.harness.geometry import write_checkpoint
from foredraft.bench.harness.interleave import orders, wait_until_idle
from foredraft.bench.harness.methods import Absent, load_peer
from foredraft.bench.harness.peers.ctranslate2_peer import Translator
from foredraft.bench.harness.record import common_fields
from foredraft.bench.report.tables import Table, number
from foredraft.cli import options
from foredraft.cli.measuring import counting, finish, open_model, read_articles, run_script

# The shorter of the two lengths, in tokens.
SHORT = 8
# Prints the peak memory of this process after it has decoded by one method.
PEAK = """
import json, sys
from foredraft.bench.studies.beam_speed import single
from foredraft.memory import peak_resident_bytes
method, source, tokens = json.loads(sys.argv[1])
single(*method)(source, tokens)
print(peak_resident_bytes())
"""
# (source, number of tokens) -> (output, passes of the target, or None where they are unknown)
Run = Callable[[Sequence[int], int], tuple[list[int], int | None]]


def methods(model, weights: str | None, beams: Sequence[int]) -> tuple[dict[str, Run], dict[str, str]]:
    """Runs by name, and by name the reasons why a peer cannot run."""
    plain = model.with_drafter(None)
    found: dict[str, Run] = {}
    for n, name in ((1, "greedy"), *((n, f"{n} beams") for n in beams)):
        found |= {name: _ours(plain, 0, n), f"{name}, drafts": _ours(model, "auto", n)}
    absent = {}
    for name, build in (("transformers", _transformers), ("CTranslate2", _ctranslate2)):
        try:
            found |= {f"{name}, {n} beams": run for n, run in build(model.path, weights, [1, *beams]).items()}
        except Absent as reason:
            absent[name] = str(reason)
    return found, absent


def single(name: str, path: str, drafter: str | None, weights: str | None) -> Run:
    """The run of one name, and nothing else in memory."""
    n = int(found[1]) if (found := re.search(r"(\d+) beams", name)) else 1
    for engine, build in (("transformers", _transformers), ("CTranslate2", _ctranslate2)):
        if name.startswith(engine):
            return build(Path(path), weights, [n])[n]
    is_drafted = name.endswith("drafts")
    return _ours(open_model(path, drafter if is_drafted else None, weights=weights), "auto" if is_drafted else 0, n)


def peak_bytes(name: str, path: str, drafter: str | None, weights: str | None, source: Sequence[int], tokens: int) -> int:
    """Peak resident memory of a process that decodes by one method."""
    wanted = json.dumps([[name, path, drafter, weights], list(source), tokens])
    done = subprocess.run([sys.executable, "-c", PEAK, wanted], stdout=subprocess.PIPE, text=True, check=True)
    return int(done.stdout.split()[-1])


def _ours(model, draft_tokens: int | str, n: int) -> Run:
    def run(source: Sequence[int], tokens: int) -> tuple[list[int], int]:
        out = model.generate([list(source)], max_new_tokens=tokens, eos_token_id=[], num_beams=n, draft_tokens=draft_tokens)
        return out.token_ids[0], out.stats.steps

    return run


def _transformers(folder: Path, weights: str | None, beams: Sequence[int]) -> dict[int, Run]:
    import torch

    peer = load_peer(str(folder), "bfloat16" if weights == "bf16" else "float32", "cpu")
    peer.generation_config.eos_token_id = None

    def of(n: int) -> Run:
        @torch.inference_mode()
        def run(source: Sequence[int], tokens: int) -> tuple[list[int], None]:
            ids = torch.tensor([list(source)])
            out = peer.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens,
                                do_sample=False, num_beams=n)
            return out[0, 1:].tolist(), None

        return run

    return {n: of(n) for n in beams}


def _ctranslate2(folder: Path, weights: str | None, beams: Sequence[int]) -> dict[int, Run]:
    translator = Translator(folder, {"int8": "int8", "bf16": "bfloat16"}.get(weights, "float32"))

    def of(n: int) -> Run:
        return lambda source, tokens: (translator([source], tokens, shortest=tokens, beams=n)[0], None)

    return {n: of(n) for n in beams}


def measure(runs: dict[str, Run], sources: Sequence[Sequence[int]], tokens: int, repeats: int,
            on_step: Callable[[], None]) -> list[dict]:
    """For each method: median seconds a summary and a step, and how many outputs equal those of its reference."""
    outputs: dict[str, list] = {name: [run(source, tokens)[0] for source in sources] for name, run in runs.items()}
    passes: dict[str, list] = {name: [] for name in runs}
    seconds: dict[str, list] = {name: [] for name in runs}
    steps: dict[str, list] = {name: [] for name in runs}
    for order in islice(orders(list(runs), 0), repeats):
        for name in order:
            for source in sources:
                wait_until_idle()
                taken = []
                for length in (SHORT, tokens):
                    began = time.perf_counter()
                    _, count = runs[name](source, length)
                    taken.append(time.perf_counter() - began)
                seconds[name].append(taken[1])
                passes[name].append(count)
                steps[name].append((taken[1] - taken[0]) / (tokens - SHORT))
            on_step()
    rows = []
    for name in runs:
        wanted = outputs[_reference(name)]
        rows.append({"name": name, "seconds": median(seconds[name]), "step_ms": median(steps[name]) * 1e3,
                     "passes": None if passes[name][0] is None else median(passes[name]),
                     "equal": sum(a == b for a, b in zip(outputs[name], wanted, strict=True)), "sources": len(sources)})
    return rows


def _reference(name: str) -> str:
    """foredraft's run without drafts and with as many beams."""
    beams = re.search(r"\d+ beams", name)
    return "greedy" if beams is None or beams[0] == "1 beams" else beams[0]


def main(
    target: options.Target = None,
    geometry: Annotated[str | None, typer.Option(help="Random weights of this size instead: flan-t5-base, ...")] = None,
    beams: Annotated[str, typer.Option(help="Numbers of beams, separated by commas.")] = "2,4,8",
    drafter: options.Drafter = "lookup",
    weights: options.Weights = None,
    data: options.Data = None,
    limit: options.Limit = 6,
    max_new_tokens: options.MaxNewTokens = 60,
    repeats: options.Repeats = 3,
    out: options.Results = Path("bench/results"),
    as_json: options.Json = False,
) -> None:
    """Measure beam search beside greedy decoding and other engines."""
    widths = options.parse_numbers("--beams", beams, int, 2)
    with tempfile.TemporaryDirectory() as folder:
        path = target if geometry is None else str(write_checkpoint(geometry, folder))
        # random weights repeat tokens, so acceptance rates would be meaningless
        model = open_model(path, None if geometry else drafter, weights=weights)
        sized = open_model(target, None)
        found = read_articles(data, sized, limit, tokenizer=sized.tokenizer)
        sources = [case.source[:512] for case in found]
        runs, absent = methods(model, weights, widths)
        if geometry is not None:
            runs = {name: run for name, run in runs.items() if "drafts" not in name}
        with counting(repeats * len(runs)) as advance:
            rows = measure(runs, sources, max_new_tokens, repeats, advance)
        path, longest = str(model.path), max(sources, key=len)
        fields = common_fields("beam-speed", model=model, data=describe(data, found))
        del model, sized, runs
        for one in rows:
            one["peak_bytes"] = peak_bytes(one["name"], path, drafter, weights, longest, max_new_tokens)
        row = fields | {
            "geometry": geometry, "drafter": drafter, "max_new_tokens": max_new_tokens, "repeats": repeats,
            "methods": rows, "absent": absent}
    finish([row], out, _tables(row), as_json)


def _tables(row: dict) -> Iterator[Table | str]:
    greedy = row["methods"][0]
    columns = ("method", "s a summary", "ms a step", "step / greedy", "passes", "equal", "peak MB")
    yield Table(f"beam search, {row['geometry'] or 'target'}", columns, [
        [one["name"], number(one["seconds"], 3), number(one["step_ms"]), number(one["step_ms"] / greedy["step_ms"]),
         number(one["passes"], 0), f"{one['equal']}/{one['sources']}", number(one["peak_bytes"] / 1e6, 0)]
        for one in row["methods"]])
    for name, reason in row["absent"].items():
        yield f"{name}: {reason}"


if __name__ == "__main__":
    run_script(main)
