"""Speed on this GPU: bandwidth, plain passes, steps, and the embedded family from end to end."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence

import torch

from foredraft.bench.gpu.roofline import MACHINES, Machine, Step, machine_of, predict, table
from foredraft.bench.gpu.sizes import (
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
from foredraft.bench.harness.measure import spread
from foredraft.engine.drafters.cuda.lookup_cuda import LookupDrafterCuda
from foredraft.engine.drafters.none import NoDrafter
from foredraft.engine.loop import decode
from foredraft.engine.models.t5_cuda import T5Cuda
from foredraft.engine.protocols import Drafter
from foredraft.engine.runtime.cuda_graphs import CapturedSteps
from foredraft.engine.state import DecodeState
from foredraft.kernels.core.pdl_triton import PDL_LAUNCH


def measure_bandwidth(sizes: Sizes) -> Iterator[dict]:
    """GB/s read plus written by a copy larger than the caches."""
    a = torch.ones(sizes.megabytes * 250_000, device=sizes.device)
    b = torch.empty_like(a)
    taken = spread(seconds(sizes, lambda: b.copy_(a)))["median"]
    name = torch.cuda.get_device_name() if sizes.device != "cpu" else "cpu"
    yield {"device": name, "copy_gb_s": 2 * a.nbytes / taken / 1e9}


def modelled_on(bandwidth: Sequence[dict]) -> tuple[str, Machine]:
    """The machine of the roofline model, and its name: the measured one, or else an H200 with the maker's figures."""
    if not bandwidth:
        return "H200, the maker's figures", MACHINES["h200"]
    machine = machine_of(bandwidth[0]["device"], bandwidth[0]["copy_gb_s"])
    return bandwidth[0]["device"] + ("" if machine.rate else ", arithmetic left out"), machine


def measure_steps(sizes: Sizes, bandwidth: Sequence[dict]) -> Iterator[dict]:
    """A captured pass with the choice of the next tokens, by tokens a pass for one request, then by batch size.

    No drafts: acceptance on random weights means nothing. `bandwidth`: measure_bandwidth's records. `share`: the time of the
    bytes at that bandwidth over the time of the pass (None without it).
    """
    R, (name, machine) = sizes.draft_tokens + 1, modelled_on(bandwidth)
    for geometry in sizes.geometries:
        target = random_target(sizes, geometry)
        plain = {}
        for B, reads in passes(sizes, geometry):
            fill_caches(target, B, sizes.source, max(*sizes.reads, R))
            with torch.inference_mode():
                run = one_pass(target, B, reads)
                taken = {"us": microseconds(seconds(sizes, captured(sizes, run)))}
                if B == 1 and reads in (1, R):
                    taken["eager_us"] = microseconds(seconds(sizes, run))
                if B == 1 and can_overlap(sizes):
                    target.launch = PDL_LAUNCH
                    taken["overlapping_us"] = microseconds(seconds(sizes, captured(sizes, run)))
                    target.launch = {}
            expected = predict(target.config, Step(B, reads - 1, sizes.source, POSITION, drafter="none"), machine)
            median = taken["us"]["median"]
            plain.setdefault(B, median)
            yield {"geometry": geometry, "batch": B, "reads": reads, "bytes": expected["bytes"],
                   "modelled_us": expected["us"], "modelled_on": name,
                   "share": expected["bytes_us"] / median if bandwidth else None, "v": median / plain[B], **taken}
        del target
        if sizes.device != "cpu":
            torch.cuda.empty_cache()


def _state(sizes: Sizes, B: int, K: int, width: int) -> DecodeState:
    def column(value: float) -> torch.Tensor:
        return torch.full((B,), value, device=sizes.device)

    return DecodeState(
        limits=column(sizes.new_tokens + 1), draft_tokens=column(K), temperature=column(0.0), top_k=column(0),
        top_p=column(1.0), seeds=torch.arange(B, device=sizes.device), start_token=0, end_token=-1, width=width)


def measure_loop(sizes: Sizes) -> Iterator[dict]:
    """Steps of the engine's loops, plain and with lookup drafts, captured and eager, and their overhead over the passes of
    target and drafter. Random weights write loops, so that lookup drafts `drafted` tokens a step."""
    for geometry in sizes.large:
        target = random_target(sizes, geometry)
        for B in sizes.batches:
            for K in (0, sizes.draft_tokens):
                with torch.inference_mode():
                    found = _time_loop(sizes, target, B, K)
                yield {"geometry": geometry, "batch": B, "draft_tokens": K, **found}


def start_loop(sizes: Sizes, target: T5Cuda, B: int, K: int) -> tuple[Drafter, Callable[[], DecodeState]]:
    """A drafter, and a function that admits the requests to it and returns a new state."""
    fill_caches(target, B, sizes.source, max(K + 1, sizes.new_tokens - POSITION + 2))
    drafter = LookupDrafterCuda(sizes.device) if K else NoDrafter()
    sources = list(torch.randint(3, target.config.vocab_size, (B, sizes.source)))

    def fresh() -> DecodeState:
        drafter.admit(range(B), sources, sources)
        return _state(sizes, B, K, target.config.d_model)

    return drafter, fresh


def _time_loop(sizes: Sizes, target: T5Cuda, B: int, K: int) -> dict:
    graphs, (drafter, fresh), taken = CapturedSteps(), start_loop(sizes, target, B, K), {}

    def alone(run: Callable[[], object]) -> float:
        return spread(seconds(sizes, captured(sizes, run)))["median"]

    halfway = fresh()
    halfway.lengths.fill_(sizes.new_tokens // 2 + 1)
    one, many = alone(one_pass(target, B, K + 1)), 10
    # many in one graph, because the graph's launch costs more than one draft
    drafting = alone(lambda: [drafter.draft(halfway) for _ in range(many)]) / many if K else 0.0
    for name in ("captured", "eager") if sizes.device != "cpu" else ("eager",):
        times = []
        for _ in range(4):
            state = fresh()
            # wait until the device has admitted the requests
            state.lengths.tolist()
            start = time.perf_counter()
            if name == "captured":
                state = graphs.decode(state, target, drafter)
            else:
                decode(state, target, drafter)
            steps = int(state.num_steps.max())
            # one more captured step is queued before the host sees the end
            times.append((time.perf_counter() - start) / (steps + (name == "captured")))
        # the first decode compiles and captures
        taken[name] = spread(times[1:])["median"]
    whole = taken.get("captured", taken["eager"])
    return {"pass_us": one * 1e6, "draft_us": drafting * 1e6, **{f"{name}_us": value * 1e6 for name, value in taken.items()},
            "drafted": float(state.drafted.sum() / state.num_steps.sum()), "added_us": (whole - one - drafting) * 1e6,
            "overhead": whole / (one + drafting) - 1}


def model_xl(sizes: Sizes, bandwidth: Sequence[dict], tokens_per_step: float, steps: Sequence[dict] = (),
             loop: Sequence[dict] = (), geometry: str = "flan-t5-xl") -> Iterator[dict]:
    """FLAN-T5-XL's tokens a second, MODELLED from the embedded family's acceptance and two costs of a step.

    measured_us: the pass of K + 1 tokens (`steps`, from measure_steps) and the time of a draft and overhead of a step
    (`loop`, from measure_loop); None if either is missing. us: bytes, arithmetic and launches on the machine of
    `bandwidth`.
    """
    (name, machine), K = modelled_on(bandwidth), sizes.draft_tokens
    for row in table(geometry, machine, [Step(B, K, sizes.source) for B in sizes.batches], tokens_per_step):
        batch = row["step"]["batch_size"]
        passes = [step["us"]["median"] for step in steps
                  if (step["geometry"], step["batch"], step["reads"]) == (geometry, batch, K + 1)]
        around = [one["draft_us"] + max(one["added_us"], 0.0) for one in loop
                  if (one["geometry"], one["batch"], one["draft_tokens"]) == (geometry, batch, K)]
        measured = passes[0] + around[0] if passes and around else None
        yield {key: row[key] for key in ("geometry", "us", "plain_us", "v", "launches", "bytes", "tokens_per_step",
                                            "tokens_per_second", "plain_tokens_per_second")} | {
            "batch": batch, "modelled": True, "modelled_on": name, "measured_us": measured,
            "measured_tokens_per_second": batch * tokens_per_step / measured * 1e6 if measured else None}
