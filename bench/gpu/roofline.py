"""Roofline model of a step on a GPU, from its bytes, arithmetic and launches: MODELLED, never measured.

    python -m foredraft.bench.gpu.roofline --geometry flan-t5-xl --tokens-per-step 3

    time = sum over parts of max(bytes / bandwidth, (bytes + again) / (cache * bandwidth), flop / rate)
           + launches * cost of one

`bytes` counts weights, caches and logits once a step. `again` counts what the second-level cache serves: the weights that
tiles of rows after the first read, and the inputs that each program reads (tiles: kernels/model/linear_triton.py). The cache
is ASSUMED to be `cache` times as fast as memory; this was not measured.
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass, replace
from typing import Annotated

import typer

from foredraft.bench.harness.geometry import GEOMETRIES
from foredraft.bench.report.tables import Table
from foredraft.cli import options
from foredraft.cli.measuring import run_script, show
from foredraft.engine.drafters.neural.cnn import CNNConfig
from foredraft.engine.drafters.neural.lstm import LSTMConfig
from foredraft.engine.models.spec import ModelConfig
from foredraft.engine.models.t5_cuda import END_LAUNCHES, LAYER_LAUNCHES
from foredraft.errors import UserError
from foredraft.kernels.model.cross_attention_triton import PAGE
from foredraft.kernels.model.linear_triton import HEIGHT, WIDTH, tile
from foredraft.kernels.model.lm_head_triton import WIDTH as HEAD_WIDTH


@dataclass(frozen=True)
class Machine:
    """`bandwidth` in GB/s and `rate` in TFLOP/s (bf16, dense), as the maker states; without a rate arithmetic takes no time.
    `launch_us`: a launch inside a graph. `cache`: bandwidth of the second-level cache over memory's, assumed."""

    bandwidth: float
    rate: float | None
    launch_us: float = 1.3
    cache: float = 1.2


MACHINES = {
    "h200": Machine(4800, 989), "h100": Machine(3350, 989), "h100-nvl": Machine(3938, 835), "h100-pcie": Machine(2039, 756),
    "a100": Machine(2039, 312), "l4": Machine(300, 121),
}
# Drafters that run on the device. Of trained ones: layers, draft vocabulary without the source's tokens, default sizes.
DRAFTERS = ("none", "lookup", "ngram", "lookup+ngram", "t5shallow", "lstm", "cnn")
LAYERS, LISTED = {"t5shallow": 2, "lstm": 1, "cnn": 3}, 1024
DRAWS = "draft: sampling"
SIZES = {"lstm": LSTMConfig.__dataclass_fields__, "cnn": CNNConfig.__dataclass_fields__}
# launches of a step outside target and drafter
STEP_LAUNCHES = {"inputs": 1, "top-k and top-p": 1, "verification and commit": 1, "host's view": 3}


@dataclass(frozen=True)
class Step:
    """A step's workload: B sequences of `source` source tokens at decoder position `position`, K drafts each.

    `cuts`: top-k or top-p is on. `item`: bytes of a weight.
    """

    batch_size: int = 1
    draft_tokens: int = 0
    source: int = 512
    position: int = 64
    sampled: bool = False
    cuts: bool = False
    drafter: str = "lookup"
    item: int = 2


@dataclass(frozen=True)
class Part:
    """One part of a step: launches, bytes read or written in device memory, FLOP, bytes read from the second-level cache."""

    name: str
    launches: int
    bytes: int
    flop: int
    again: int = 0

    def seconds(self, machine: Machine) -> float:
        work = max(self.bytes, (self.bytes + self.again) / machine.cache) / machine.bandwidth / 1e9
        if machine.rate is not None:
            work = max(work, self.flop / machine.rate / 1e12)
        return work + self.launches * machine.launch_us / 1e6


def machine_of(device: str, bandwidth: float) -> Machine:
    """The machine of a device name, at the measured bandwidth, with the maker's rate if it is one of MACHINES."""
    words = "-" + re.sub(r"[^a-z0-9]+", "-", device.lower()) + "-"
    named = [name for name in MACHINES if f"-{name}-" in words]
    return Machine(bandwidth, MACHINES[max(named, key=len)].rate if named else None)


def config_of(geometry: str) -> ModelConfig:
    """UserError: no such geometry."""
    if geometry not in GEOMETRIES:
        raise UserError(f"geometry {geometry!r} is not known; one of {', '.join(GEOMETRIES)}")
    return ModelConfig.from_dict(GEOMETRIES[geometry], geometry)


def _again(weights: int, rows: int, item: int, height: int = HEIGHT, width: int = WIDTH) -> int:
    """Bytes of a product that the cache serves: of weights to tiles of rows beyond the first, of inputs to every program."""
    return weights * (-(-rows // height) - 1) * item + weights * rows * item // width


def _draft(c: ModelConfig, r: Step, listed: int) -> list[Part]:
    """The K drafts of a step. A trained drafter reads its weights for each; its head reads `listed` tokens and the
    source's."""
    B, C, K = r.batch_size, c.d_model, r.draft_tokens
    if r.drafter == "none" or not K:
        return []
    if r.drafter in ("lookup", "ngram", "lookup+ngram"):
        return [Part("draft", 1, B * (r.source + r.position) * 8, 0)]
    layers = LAYERS[r.drafter]

    tiles = tile(B, r.item == 2) if r.drafter == "t5shallow" else (HEIGHT, WIDTH)

    def read(name: str, times: int, launches: int, weights: int, cached: int = 0) -> Part:
        return Part(f"draft: {name}", times * launches, times * (weights + cached) * r.item, times * B * 2 * weights,
                    times * _again(weights, B, r.item, *tiles))

    if r.drafter == "t5shallow":
        inner = c.num_heads * c.d_kv
        network = [read("embedding and closing norm", K, END_LAUNCHES - 1, 0),
                   read("layers", K, LAYER_LAUNCHES * layers,
                        layers * (6 * inner * C + (3 if c.gated else 2) * c.d_ff * C),
                        layers * B * (r.source + r.position) * 2 * inner)]
    else:
        U, F, heads, head_size = (SIZES[r.drafter][name].default for name in ("hidden_size", "d_ff", "num_heads", "d_kv"))
        inner = heads * head_size
        # a CNN embeds tokens by a launch of its own; the first of the two tokens that begin a step passes the cell only
        cell = (read("cell", K + 1, layers, 4 * U * (C + U)) if r.drafter == "lstm" else
                read("cell", K + 1, 1 + layers, U * C + layers * SIZES["cnn"]["kernel"].default * 2 * U * U))
        network = [cell, read("copy attention", K, 4, inner * (U + 3 * C) + (F + 1) * (U + inner + C) + C * F,
                              B * r.source * 2 * inner)]
    # the drafter's inputs and draft lengths; sampled drafts write their distributions, which the verification reads
    return [Part("draft: buffers", 2, 0, 0), *network,
            Part("draft: head", K, K * (listed + B * r.source) * C * r.item, K * B * 2 * (listed + r.source) * C,
                 K * _again(listed * C, B, r.item, width=HEAD_WIDTH)),
            Part(DRAWS, K * r.sampled * (1 + r.cuts), K * r.sampled * B * c.vocab_size * 8, 0)]


def parts(c: ModelConfig, r: Step, listed: int = LISTED) -> list[Part]:
    """The parts of one step in order; their launches are those of a real step (tests/bench/gpu/test_roofline.py)."""
    if r.drafter not in DRAFTERS:
        raise UserError(f"drafter {r.drafter!r} is not modelled; one of {', '.join(DRAFTERS)}")
    L, C, F, V, inner = c.num_decoder_layers, c.d_model, c.d_ff, c.vocab_size, c.num_heads * c.d_kv
    B, M = r.batch_size, r.batch_size * (r.draft_tokens + 1)
    height, width = tile(M, r.item == 2)
    pages = -(-r.source // PAGE) * PAGE

    def matrices(name: str, launches: int, weights: int, gate: int = 0) -> Part:
        """`gate`: weights of the gated product, which computes at least 32 of its two outputs at a time."""
        again = _again(weights, M, r.item, height, width) + _again(gate, M, r.item, height, max(width, 2 * WIDTH))
        return Part(name, L * launches, L * (weights + gate) * r.item, L * (weights + gate) * M * 2, L * again)

    def attention(name: str, keys: int, again: int = 0) -> Part:
        read = L * B * keys * 2 * inner * r.item
        return Part(name, L, read, L * M * keys * 4 * inner, again * read)

    written = M * V * 4 if r.sampled else 0
    return [
        *_draft(c, r, listed),
        Part("inputs", STEP_LAUNCHES["inputs"], 0, 0),
        Part("embedding and closing norm", END_LAUNCHES - 1, M * C * r.item, 0),
        matrices("self-attention's matrices", 2, 4 * inner * C),
        # each sixteen query positions read the cache
        attention("self-attention", r.position + r.draft_tokens + 1, r.draft_tokens // 16),
        matrices("cross-attention's matrices", 2, 2 * inner * C),
        attention("cross-attention", pages),
        matrices("feed-forward", LAYER_LAUNCHES - 6, (1 if c.gated else 2) * F * C, 2 * F * C * c.gated),
        Part("head", 1, V * C * r.item + written, V * C * M * 2, _again(V * C, M, r.item, height, HEAD_WIDTH)),
        Part("top-k and top-p", STEP_LAUNCHES["top-k and top-p"] * r.cuts, 2 * written * r.cuts, 0),
        Part("verification and commit", STEP_LAUNCHES["verification and commit"], written, 0),
        Part("host's view", STEP_LAUNCHES["host's view"], 0, 0),
    ]


def predict(c: ModelConfig, r: Step, machine: Machine) -> dict:
    """Bytes, launches and microseconds of a step, by part and in all; `bytes_us`: the time of bytes read once, alone."""
    found = parts(c, r)
    return {
        "step": asdict(r), "machine": asdict(machine), "launches": sum(part.launches for part in found),
        "bytes": sum(part.bytes for part in found), "again": sum(part.again for part in found),
        "us": sum(part.seconds(machine) for part in found) * 1e6,
        "bytes_us": sum(part.bytes for part in found) / machine.bandwidth / 1e3,
        "parts": [asdict(part) | {"us": part.seconds(machine) * 1e6} for part in found],
    }


def table(geometry: str, machine: Machine, steps: list[Step], tokens_per_step: float) -> list[dict]:
    """A prediction for each Step, beside its plain step (K = 0): v, and tokens a second at `tokens_per_step`."""
    c, rows = config_of(geometry), []
    for r in steps:
        plain = predict(c, Step(**asdict(r) | {"draft_tokens": 0}), machine)
        found = predict(c, r, machine)
        tokens = tokens_per_step if r.draft_tokens else 1.0
        rows.append(found | {
            "geometry": geometry, "plain_us": plain["us"], "v": found["us"] / plain["us"], "tokens_per_step": tokens,
            "plain_tokens_per_second": r.batch_size / plain["us"] * 1e6,
            "tokens_per_second": r.batch_size * tokens / found["us"] * 1e6})
    return rows


def main(
    geometry: Annotated[str, typer.Option(help="Sizes of t5-small, flan-t5-small, -base, -large or -xl.")] = "flan-t5-xl",
    batch_sizes: options.BatchSizeList = "1,8,32,128",
    draft_tokens: options.MaxDraftTokens = 5,
    tokens_per_step: Annotated[float, typer.Option(help="As measured on a trained target; 1 if unknown.")] = 1.0,
    source: Annotated[int, typer.Option(min=1, help="Source tokens.")] = 512,
    position: Annotated[int, typer.Option(min=0, help="Decoder position: the middle of a summary.")] = 64,
    drafter: Annotated[str, typer.Option(help=f"{', '.join(DRAFTERS)}.")] = "lookup",
    sampled: Annotated[bool, typer.Option("--sampled", help="Above temperature 0: logits are written.")] = False,
    machine: Annotated[str, typer.Option(help=f"{', '.join(MACHINES)}: the maker's figures.")] = "h200",
    bandwidth: Annotated[float | None, typer.Option(help="GB/s, instead of the machine's.")] = None,
    launch_us: Annotated[float | None, typer.Option(help="A launch, microseconds; eager ones cost 5 or more.")] = None,
    cache: Annotated[float | None, typer.Option(help="Second-level cache's bandwidth over memory's; assumed.")] = None,
    as_json: options.Json = False,
) -> None:
    """Model the time of a step in bf16."""
    if machine not in MACHINES:
        raise UserError(f"--machine {machine!r} is not known; one of {', '.join(MACHINES)}")
    sizes = options.parse_numbers("--batch-sizes", batch_sizes, int, 1)
    known = MACHINES[machine]
    for name, value in (("bandwidth", bandwidth), ("launch_us", launch_us), ("cache", cache)):
        if value is not None:
            if value <= 0:
                raise UserError(f"--{name.replace('_', '-')} is {value}; give a number above 0")
            known = replace(known, **{name: value})
    steps = [Step(size, draft_tokens, source, position, sampled, drafter=drafter) for size in sizes]
    rows = table(geometry, known, steps, tokens_per_step)
    show([
        Table(f"{geometry}, K={draft_tokens}, {source} source tokens, {known.bandwidth:.0f} GB/s, {known.launch_us} us a "
              f"launch, a cache {known.cache:g} times as fast: MODELLED, not measured",
              ("B", "launches", "MB", "MB cached", "MB once, us", "plain step, us", "step, us", "v(K+1)", "plain tok/s",
               "tok/s"), [
                  [str(size), str(row["launches"]), f"{row['bytes'] / 1e6:,.0f}", f"{row['again'] / 1e6:,.0f}",
                   f"{row['bytes_us']:,.0f}", f"{row['plain_us']:,.0f}", f"{row['us']:,.0f}", f"{row['v']:.2f}",
                   f"{row['plain_tokens_per_second']:,.0f}", f"{row['tokens_per_second']:,.0f}"]
                  for size, row in zip(sizes, rows, strict=True)]),
        Table(f"parts of a step at B={sizes[0]}", ("part", "launches", "MB", "MB cached", "us"), [
            [part["name"], str(part["launches"]), f"{part['bytes'] / 1e6:,.2f}", f"{part['again'] / 1e6:,.2f}",
             f"{part['us']:,.1f}"]
            for part in rows[0]["parts"]])])
    if as_json:
        print(json.dumps({"modelled": rows}))


if __name__ == "__main__":
    run_script(main)
