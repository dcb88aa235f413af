"""Beam search: seconds a summary and a step, beside greedy decoding and other engines with as many beams.

    python -m foredraft.bench.studies.beam_speed [--geometry flan-t5-base] [--beams 2,4,8]

All methods decode the same sources to the same length, ignoring end tokens, in random orders. The seconds of a step are the
difference between two lengths, divided by their distance. Outputs are compared with foredraft's without drafts.
"""

from __future__ import annotations

import re
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Annotated

import typer

from foredraft.bench.harness.cases import describe
from foredraft.bench.harness.ctranslate2_peer import Translator
from foredraft.bench.harness.geometry import write_checkpoint
from foredraft.bench.harness.interleave import orders, wait_until_idle
from foredraft.bench.harness.methods import Absent, load_peer
from foredraft.bench.harness.record import common_fields
from foredraft.bench.report.tables import Table, number
from foredraft.cli import options
from foredraft.cli.measuring import counting, finish, open_model, read_articles, run_script

# The shorter of the two lengths, in tokens.
SHORT = 8
# (source, number of tokens) -> (output, passes of the target, or None where they are unknown)
Run = Callable[[Sequence[int], int], tuple[list[int], int | None]]


def methods(model, weights: str | None, beams: Sequence[int]) -> tuple[dict[str, Run], dict[str, str]]:
    """Runs by name, and by name the reasons why a peer cannot run."""
    plain = model.with_drafter(None)

    def ours(drafted: bool, n: int) -> Run:
        used, draft_tokens = (model, "auto") if drafted else (plain, 0)

        def run(source: Sequence[int], tokens: int) -> tuple[list[int], int]:
            out = used.generate([list(source)], max_new_tokens=tokens, eos_token_id=[], num_beams=n,
                                draft_tokens=draft_tokens)
            return out.token_ids[0], out.stats.steps

        return run

    found: dict[str, Run] = {"greedy": ours(False, 1), "greedy, drafts": ours(True, 1)}
    for n in beams:
        found |= {f"{n} beams": ours(False, n), f"{n} beams, drafts": ours(True, n)}
    absent = {}
    for name, build in (("transformers", _transformers), ("CTranslate2", _ctranslate2)):
        try:
            found |= {f"{name}, {n} beams": run for n, run in build(model.path, weights, [1, *beams]).items()}
        except Absent as reason:
            absent[name] = str(reason)
    return found, absent


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
        row = common_fields("beam-speed", model=model, data=describe(data, found)) | {
            "geometry": geometry, "drafter": drafter, "max_new_tokens": max_new_tokens, "repeats": repeats,
            "methods": rows, "absent": absent}
    finish([row], out, _tables(row), as_json)


def _tables(row: dict) -> Iterator[Table | str]:
    greedy = row["methods"][0]
    columns = ("method", "s a summary", "ms a step", "step / greedy", "passes", "equal")
    yield Table(f"beam search, {row['geometry'] or 'target'}", columns, [
        [one["name"], number(one["seconds"], 3), number(one["step_ms"]), number(one["step_ms"] / greedy["step_ms"]),
         number(one["passes"], 0), f"{one['equal']}/{one['sources']}"] for one in row["methods"]])
    for name, reason in row["absent"].items():
        yield f"{name}: {reason}"


if __name__ == "__main__":
    run_script(main)
