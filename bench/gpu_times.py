"""How fast is it on this GPU: bandwidth, plain passes, rounds, the embedded family from end to end, and transformers."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch

from foredraft.bench.gpu_sizes import (
    POSITION,
    Sizes,
    can_overlap,
    captured,
    fill_caches,
    microseconds,
    one_pass,
    passes,
    random_target,
    seconds,
)
from foredraft.bench.model import MACHINES, Machine, Round, config_of, predict, table
from foredraft.bench.steps import spread
from foredraft.engine.decode import decode
from foredraft.engine.draft_none import NoDrafter
from foredraft.engine.graph import GraphRounds
from foredraft.engine.state import DecodeState
from foredraft.kernels.overlap import OVERLAPPED


def measure_bandwidth(sizes: Sizes) -> Iterator[dict]:
    """GB/s read plus written by a copy far larger than the caches."""
    a = torch.ones(sizes.megabytes * 250_000, device=sizes.device)
    b = torch.empty_like(a)
    taken = spread(seconds(sizes, lambda: b.copy_(a)))["median"]
    name = torch.cuda.get_device_name() if sizes.device != "cpu" else "cpu"
    yield {"device": name, "copy_gb_s": 2 * a.nbytes / taken / 1e9}


def measure_steps(sizes: Sizes, bandwidth: float | None) -> Iterator[dict]:
    """A pass and the choice after it, captured: by rows read for one request, then by batch. Plain decoding, no drafts:
    acceptance on random weights means nothing. `share`: the bytes' time at the measured bandwidth over the pass's; None
    without one, and then `modelled_us` is by the maker's."""
    R = sizes.draft_tokens + 1
    for geometry in sizes.geometries:
        target = random_target(sizes, geometry)
        plain = {}
        for rows, reads in passes(sizes, geometry):
            fill_caches(target, rows, sizes.source, max(*sizes.reads, R))
            with torch.inference_mode():
                run = one_pass(target, rows, reads)
                taken = {"us": microseconds(seconds(sizes, captured(sizes, run)))}
                if rows == 1 and reads in (1, R):
                    taken["eager_us"] = microseconds(seconds(sizes, run))
                if rows == 1 and can_overlap(sizes):
                    target.launch = OVERLAPPED
                    taken["overlapping_us"] = microseconds(seconds(sizes, captured(sizes, run)))
                    target.launch = {}
            expected = predict(target.config, Round(rows, reads - 1, sizes.source, POSITION, drafter="none"),
                               Machine(bandwidth or MACHINES["h200"].bandwidth, MACHINES["h200"].rate))
            median = taken["us"]["median"]
            plain.setdefault(rows, median)
            yield {"geometry": geometry, "batch": rows, "reads": reads, "bytes": expected["bytes"],
                   "modelled_us": expected["us"], "share": expected["bytes_us"] / median if bandwidth else None,
                   "v": median / plain[rows], **taken}
        del target
        if sizes.device != "cpu":
            torch.cuda.empty_cache()


def _state(sizes: Sizes, rows: int, width: int) -> DecodeState:
    def column(value: float) -> torch.Tensor:
        return torch.full((rows,), value, device=sizes.device)

    return DecodeState(
        limits=column(sizes.new_tokens + 1), draft_tokens=column(0), temperature=column(0.0), top_k=column(0),
        top_p=column(1.0), seeds=torch.arange(rows, device=sizes.device), start_token=0, end_token=-1, width=width)


def measure_rounds(sizes: Sizes) -> Iterator[dict]:
    """Whole plain rounds by the engine's own loops, captured and eager, and what they add to the pass alone."""
    for geometry in sizes.large:
        target = random_target(sizes, geometry)
        for rows in sizes.batches:
            fill_caches(target, rows, sizes.source, max(1, sizes.new_tokens - POSITION + 2))
            graphs, drafter, taken = GraphRounds(), NoDrafter(), {}
            with torch.inference_mode():
                alone = spread(seconds(sizes, captured(sizes, one_pass(target, rows, 1))))["median"]
                for name in ("captured", "eager") if sizes.device != "cpu" else ("eager",):
                    times = []
                    for _ in range(4):
                        state = _state(sizes, rows, target.config.d_model)
                        start = time.perf_counter()
                        if name == "captured":
                            state = graphs.decode(state, target, drafter)
                        else:
                            decode(state, target, drafter)
                        state.lengths.tolist()
                        times.append((time.perf_counter() - start) / sizes.new_tokens)
                    # the first decode compiles and captures
                    taken[name] = spread(times[1:])["median"]
            yield {"geometry": geometry, "batch": rows, "pass_us": alone * 1e6,
                   **{f"{name}_us": value * 1e6 for name, value in taken.items()},
                   "overhead": taken.get("captured", taken["eager"]) / alone - 1}


def measure_family(sizes: Sizes) -> Iterator[dict]:
    """The embedded target with its real acceptance: decoding tokens a second and tokens a round, by drafter and batch.

    The methods take turns; a method whose tokens differ from plain decoding's has no speed-up.
    """
    from foredraft.bench.cases import sample_texts
    from foredraft.engine.generate import load

    texts = [text for _, text in sample_texts()[: sizes.texts]]
    model = load(drafter="lookup", device=sizes.device, dtype=sizes.dtype, weights="bf16")
    methods = {"plain": (model.with_drafter(None), 0), "lookup": (model, sizes.draft_tokens),
               "ngram": (model.with_drafter("ngram"), sizes.draft_tokens)}
    for batch in sizes.batches:
        inputs = (texts * -(-batch // len(texts)))[: max(batch, len(texts))]
        outputs, rates = {}, {name: [] for name in methods}
        for turn in range(1 + min(3, sizes.repeats)):
            for name, (engine, K) in methods.items():
                out = engine.generate(inputs, max_new_tokens=2 * sizes.new_tokens, draft_tokens=K, batch_size=batch)
                outputs[name] = out
                if turn:
                    rates[name].append(out.stats.tokens_per_second)
        for name, out in outputs.items():
            same = out.token_ids == outputs["plain"].token_ids
            rate = spread(rates[name])["median"]
            yield {"batch": batch, "method": name, "tokens_per_second": rate, "same_tokens": same,
                   "speed_up": rate / spread(rates["plain"])["median"] if same else None,
                   "tokens_per_round": out.stats.tokens_per_step, "accepted_over_tested": out.stats.acceptance_rate}


def model_xl(sizes: Sizes, bandwidth: float | None, tokens_per_round: float, steps: Sequence[dict] = (),
             rounds: Sequence[dict] = (), geometry: str = "flan-t5-xl") -> Iterator[dict]:
    """FLAN-T5-XL's tokens a second MODELLED from the embedded family's acceptance, by two costs of a round.

    measured_us: the pass of K + 1 tokens that measure_steps took (`steps`), what measure_rounds found that a round adds to
    its pass (`rounds`), and the counted cost of the drafter; None where one of the two is missing. us: all of it counted, of
    bytes at `bandwidth`, or the maker's, and launches.
    """
    config_of(geometry)
    machine = replace(MACHINES["h200"], bandwidth=bandwidth or MACHINES["h200"].bandwidth)
    asked = [Round(rows, sizes.draft_tokens, sizes.source) for rows in sizes.batches]
    for row in table(geometry, machine, asked, tokens_per_round):
        batch, drafting = row["round"]["batch_size"], sum(part["us"] for part in row["parts"] if part["name"] == "draft")
        passes = [step["us"]["median"] for step in steps
                  if (step["geometry"], step["batch"], step["reads"]) == (geometry, batch, sizes.draft_tokens + 1)]
        added = [one["overhead"] * one["pass_us"] for one in rounds if (one["geometry"], one["batch"]) == (geometry, batch)]
        measured = passes[0] + max(added[0], 0.0) + drafting if passes and added else None
        yield {name: row[name] for name in ("geometry", "us", "plain_us", "v", "launches", "bytes", "tokens_per_round",
                                            "tokens_per_second", "plain_tokens_per_second")} | {
            "batch": batch, "modelled": True, "measured_us": measured,
            "measured_tokens_per_second": batch * tokens_per_round / measured * 1e6 if measured else None}
