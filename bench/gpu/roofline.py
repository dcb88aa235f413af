"""What a round must cost on a GPU, from the bytes it reads, its arithmetic, and its launches: a model, never a measurement.

    time = sum over parts of max(bytes / bandwidth, flop / rate) + launches * cost of one

Bytes are those of weights, caches and logits, each counted once a round; what the second-level cache holds is not.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass

from foredraft.bench.harness.geometry import GEOMETRIES
from foredraft.engine.drafters.neural.cnn import CNNConfig
from foredraft.engine.drafters.neural.lstm import LSTMConfig
from foredraft.engine.models.t5_cuda import END_LAUNCHES, LAYER_LAUNCHES
from foredraft.engine.models.t5_weights import ModelConfig
from foredraft.errors import UserError
from foredraft.kernels.model.cross_attention_triton import PAGE


@dataclass(frozen=True)
class Machine:
    """bandwidth in GB/s and rate in TFLOP/s (bf16, dense): the maker's figures; without a rate arithmetic takes no time.
    launch_us: a launch inside a graph."""

    bandwidth: float
    rate: float | None
    launch_us: float = 1.3


MACHINES = {
    "h200": Machine(4800, 989), "h100": Machine(3350, 989), "h100-nvl": Machine(3938, 835), "h100-pcie": Machine(2039, 756),
    "a100": Machine(2039, 312), "l4": Machine(300, 121),
}
# Drafters that run on the device; of the trained ones: their layers, the ids of a restricted head, those of a source not
# counted, and the sizes that the LSTM and the CNN have by default.
DRAFTERS = ("none", "lookup", "ngram", "lookup+ngram", "t5shallow", "lstm", "cnn")
LAYERS, LISTED = {"t5shallow": 2, "lstm": 1, "cnn": 3}, 1024
DRAWS = "draft: draws"
SIZES = {"lstm": LSTMConfig.__dataclass_fields__, "cnn": CNNConfig.__dataclass_fields__}
# Launches of the round around target and drafter.
ROUND_LAUNCHES = {"inputs": 1, "top-k and top-p": 1, "verification and commit": 1, "host's view": 3}


@dataclass(frozen=True)
class Round:
    """What is decoded: B rows of `source` source tokens at decoder position `position`, K drafts each; `cuts`: by top-k or
    top-p; `item`: bytes of a weight."""

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
    """One part of a round: launches, bytes read or written in device memory, flop."""

    name: str
    launches: int
    bytes: int
    flop: int

    def seconds(self, machine: Machine) -> float:
        work = self.bytes / machine.bandwidth / 1e9
        if machine.rate is not None:
            work = max(work, self.flop / machine.rate / 1e12)
        return work + self.launches * machine.launch_us / 1e6


def machine_of(device: str, bandwidth: float) -> Machine:
    """A device as its driver names it, at the bandwidth measured there; its rate is the maker's, where it is one of
    MACHINES."""
    words = "-" + re.sub(r"[^a-z0-9]+", "-", device.lower()) + "-"
    named = [name for name in MACHINES if f"-{name}-" in words]
    return Machine(bandwidth, MACHINES[max(named, key=len)].rate if named else None)


def config_of(geometry: str) -> ModelConfig:
    """UserError: no such geometry."""
    if geometry not in GEOMETRIES:
        raise UserError(f"geometry {geometry!r} is not known; one of {', '.join(GEOMETRIES)}")
    return ModelConfig.from_dict(GEOMETRIES[geometry], geometry)


def _draft(c: ModelConfig, r: Round, listed: int) -> list[Part]:
    """A round's K drafts; a trained drafter reads its weights for each, and its head `listed` ids and the source's."""
    B, C, K = r.batch_size, c.d_model, r.draft_tokens
    if r.drafter == "none" or not K:
        return []
    if r.drafter in ("lookup", "ngram", "lookup+ngram"):
        return [Part("draft", 1, B * (r.source + r.position) * 8, 0)]
    layers = LAYERS[r.drafter]

    def read(name: str, times: int, launches: int, weights: int, cached: int = 0) -> Part:
        return Part(f"draft: {name}", times * launches, times * (weights + cached) * r.item, times * B * 2 * weights)

    if r.drafter == "t5shallow":
        inner = c.num_heads * c.d_kv
        network = [read("embedding and closing norm", K, END_LAUNCHES - 1, 0),
                   read("layers", K, LAYER_LAUNCHES * layers,
                        layers * (6 * inner * C + (3 if c.gated else 2) * c.d_ff * C),
                        layers * B * (r.source + r.position) * 2 * inner)]
    else:
        U, F, heads, head_size = (SIZES[r.drafter][name].default for name in ("hidden_size", "d_ff", "num_heads", "d_kv"))
        inner = heads * head_size
        # a CNN's ids enter by a launch of their own; the first of the two ids that begin a round passes the cell alone
        cell = (read("cell", K + 1, layers, 4 * U * (C + U)) if r.drafter == "lstm" else
                read("cell", K + 1, 1 + layers, U * C + layers * SIZES["cnn"]["kernel"].default * 2 * U * U))
        network = [cell, read("pointer", K, 4, inner * (U + 3 * C) + (F + 1) * (U + inner + C) + C * F,
                              B * r.source * 2 * inner)]
    # its turn's beginning and end; drawn drafts write their distributions, which the verification reads
    return [Part("draft: turn", 2, 0, 0), *network,
            Part("draft: head", K, K * (listed + B * r.source) * C * r.item, K * B * 2 * (listed + r.source) * C),
            Part(DRAWS, K * r.sampled * (1 + r.cuts), K * r.sampled * B * c.vocab_size * 8, 0)]


def parts(c: ModelConfig, r: Round, listed: int = LISTED) -> list[Part]:
    """The parts of one round, in order; their launches are what a real step makes (tests/bench/test_model.py)."""
    if r.drafter not in DRAFTERS:
        raise UserError(f"drafter {r.drafter!r} is not modelled; one of {', '.join(DRAFTERS)}")
    L, C, F, V, inner = c.num_decoder_layers, c.d_model, c.d_ff, c.vocab_size, c.num_heads * c.d_kv
    B, rows = r.batch_size, r.batch_size * (r.draft_tokens + 1)
    pages = -(-r.source // PAGE) * PAGE

    def matrices(name: str, launches: int, weights: int) -> Part:
        return Part(name, L * launches, L * weights * r.item, L * weights * rows * 2)

    def attention(name: str, keys: int) -> Part:
        return Part(name, L, L * B * keys * 2 * inner * r.item, L * rows * keys * 4 * inner)

    written = rows * V * 4 if r.sampled else 0
    return [
        *_draft(c, r, listed),
        Part("inputs", ROUND_LAUNCHES["inputs"], 0, 0),
        Part("embedding and closing norm", END_LAUNCHES - 1, rows * C * r.item, 0),
        matrices("self-attention's matrices", 2, 4 * inner * C),
        attention("self-attention", r.position + r.draft_tokens + 1),
        matrices("cross-attention's matrices", 2, 2 * inner * C),
        attention("cross-attention", pages),
        matrices("feed-forward", LAYER_LAUNCHES - 6, (3 if c.gated else 2) * F * C),
        Part("head", 1, V * C * r.item + written, V * C * rows * 2),
        Part("top-k and top-p", ROUND_LAUNCHES["top-k and top-p"] * r.cuts, written * r.cuts, 0),
        Part("verification and commit", ROUND_LAUNCHES["verification and commit"], written, 0),
        Part("host's view", ROUND_LAUNCHES["host's view"], 0, 0),
    ]


def launches(c: ModelConfig, r: Round) -> int:
    return sum(part.launches for part in parts(c, r))


def predict(c: ModelConfig, r: Round, machine: Machine) -> dict:
    """Bytes, launches and microseconds of a round, by part and in all; `bytes_us` is what the bytes alone would take."""
    found = parts(c, r)
    return {
        "round": asdict(r), "machine": asdict(machine), "launches": sum(part.launches for part in found),
        "bytes": sum(part.bytes for part in found), "us": sum(part.seconds(machine) for part in found) * 1e6,
        "bytes_us": sum(part.bytes for part in found) / machine.bandwidth / 1e3,
        "parts": [asdict(part) | {"us": part.seconds(machine) * 1e6} for part in found],
    }


def table(geometry: str, machine: Machine, rounds: list[Round], tokens_per_step: float) -> list[dict]:
    """A prediction for each Round beside its plain step (K = 0): v, and tokens a second at `tokens_per_step`."""
    c, rows = config_of(geometry), []
    for r in rounds:
        plain = predict(c, Round(**asdict(r) | {"draft_tokens": 0}), machine)
        found = predict(c, r, machine)
        tokens = tokens_per_step if r.draft_tokens else 1.0
        rows.append(found | {
            "geometry": geometry, "plain_us": plain["us"], "v": found["us"] / plain["us"], "tokens_per_step": tokens,
            "plain_tokens_per_second": r.batch_size / plain["us"] * 1e6,
            "tokens_per_second": r.batch_size * tokens / found["us"] * 1e6})
    return rows
