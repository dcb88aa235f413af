"""SIMULATED speed-up of a drafter for FLAN-T5-XL on a GPU, because neither is available.

    python -m foredraft.bench.studies.simulate --drafter lookup --draft-tokens 5 --data articles.jsonl --limit 20

Measured: tokens per step, from a trace of the small target with this drafter and K. Modelled (bench/gpu/roofline.py): the
cost of a step, from the bytes and launches of the target's pass of K + 1 positions and of the drafter's passes. Assumed: the
drafter is accepted as often with the large target.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace

import numpy as np

from foredraft.bench.gpu.roofline import DRAFTERS, DRAWS, LISTED, MACHINES, Machine, Part, Step, config_of, parts
from foredraft.bench.harness import measure
from foredraft.bench.harness.methods import Method, drafting_method
from foredraft.bench.harness.settings import Settings
from foredraft.bench.report.tables import Table, number
from foredraft.cli import options
from foredraft.cli.measuring import open_model, read_articles, run_script, show
from foredraft.engine.drafters.cascade import CascadeDrafter
from foredraft.engine.drafters.layer_skip import SelfDrafter
from foredraft.engine.drafters.neural.eagle_head import EagleConfig, EagleDrafter
from foredraft.engine.drafters.neural.lstm import LSTMDrafter
from foredraft.engine.drafters.neural.t5_drafter import ShallowT5Drafter
from foredraft.engine.drafters.staged import StagedDrafter
from foredraft.engine.models.spec import ModelConfig
from foredraft.engine.protocols import Drafter

GEOMETRY, MACHINE = "flan-t5-xl", "h200"
# parts of a pass that a skipped sublayer saves, by the sublayer's index in a skip mask
SUBLAYER_PARTS = {"self-attention's matrices": 0, "self-attention": 0, "cross-attention's matrices": 1, "cross-attention": 1,
                  "feed-forward": 2}


class NotModelled(Exception):
    """The bytes of this drafter are not known; the message names it."""


def simulated(drafter: Drafter, K: int, trace: dict, settings: Settings) -> dict:
    """Microseconds of a step and of a plain step, tokens a second and speed-up, from a trace at K drafted tokens.

    All sequences of a batch count as running. Raises NotModelled.
    """
    c, machine = config_of(GEOMETRY), MACHINES[MACHINE]
    r = Step(settings.batch_size, K, sampled=settings.do_sample, drafter="none")
    plain = _us(parts(c, replace(r, draft_tokens=0)), machine)
    drafts, pass_ = _us(draft_parts(drafter, c, r, trace), machine), _us(parts(c, r), machine)
    tokens = trace["emitted"] / trace["steps"]
    return {
        "geometry": GEOMETRY, "machine": MACHINE, "step": asdict(r), "draft_tokens": K, "tokens_per_step": tokens,
        "plain_us": plain, "draft_us": drafts, "pass_us": pass_,
        "tokens_per_second": r.batch_size * tokens / (drafts + pass_) * 1e6, "speed_up": tokens * plain / (drafts + pass_)}


def draft_parts(drafter: Drafter, c: ModelConfig, r: Step, trace: dict) -> list[Part]:
    """The parts that drafting adds to a step: of a drafter of the same kind, made for a target of config c.

    A cascade is charged for all of its drafters in every step, a staged drafter for the passes of its T5,
    trace["passes_per_step"].
    """
    if isinstance(drafter, CascadeDrafter):
        return [part for one in drafter.drafters for part in draft_parts(one, c, r, trace)]
    if isinstance(drafter, StagedDrafter):
        share = trace["passes_per_step"] / r.draft_tokens
        # a pass drafts many tokens, and each has its distribution
        passes = [Part(part.name, round(part.launches * share), 0 if part.name == DRAWS else round(part.bytes * share),
                       round(part.flop * share), round(part.again * share)) for part in _modelled("t5shallow", c, r)]
        return [*passes, *draft_parts(drafter.drafter, c, r, trace), _distributions(c, r)]
    if isinstance(drafter, SelfDrafter):
        return [*_self(drafter, c, r), _distributions(c, r)]
    if isinstance(drafter, EagleDrafter):
        return [_head(c, r), _distributions(c, r)]
    if isinstance(drafter, LSTMDrafter | ShallowT5Drafter):
        return _modelled("lstm" if isinstance(drafter, LSTMDrafter) else "t5shallow", c, r)
    if drafter.name in DRAFTERS:
        return _modelled(drafter.name, c, r)
    raise NotModelled(f"{drafter.name}: its bytes are not modelled")


def _us(found: list[Part], machine: Machine) -> float:
    return sum(part.seconds(machine) for part in found) * 1e6


def _modelled(name: str, c: ModelConfig, r: Step) -> list[Part]:
    return [part for part in parts(c, replace(r, drafter=name)) if part.name.startswith("draft")]


def _distributions(c: ModelConfig, r: Step) -> Part:
    """Sampled drafts write their distributions, which the verification reads."""
    return Part("drafts' distributions", 0, 2 * r.sampled * r.batch_size * r.draft_tokens * c.vocab_size * 4, 0)


def _self(drafter: SelfDrafter, c: ModelConfig, r: Step) -> list[Part]:
    """K passes of one position through the target's decoder, with the share of each kind of sublayer that is kept."""
    shares, found = drafter.kept.mean(0), []
    for part in parts(c, replace(r, draft_tokens=0)):
        share = shares[SUBLAYER_PARTS[part.name]] if part.name in SUBLAYER_PARTS else 1.0
        if part.name == "head" and not drafter.vocabulary.is_full:
            share = (LISTED + r.batch_size * r.source) / c.vocab_size
        if part.name in (*SUBLAYER_PARTS, "embedding and closing norm", "head"):
            found.append(Part(f"drafts: {part.name}", *(round(r.draft_tokens * share * value) for value in (
                part.launches, part.bytes, part.flop, part.again))))
    return found


def _head(c: ModelConfig, r: Step) -> Part:
    """One layer on the target's states: the LSTM drafter's copy attention without its cell."""
    sizes = {name: field.default for name, field in EagleConfig.__dataclass_fields__.items()}
    B, C, K, F = r.batch_size, c.d_model, r.draft_tokens, sizes["d_ff"]
    inner = sizes["num_heads"] * sizes["d_kv"]
    weights = inner * 4 * C + F * (2 * C + inner) + C * F
    head = (LISTED + B * r.source) * C
    return Part("draft", 2 + K * (4 + 1 + r.sampled), K * (weights + B * r.source * 2 * inner + head) * r.item,
                K * B * 2 * (weights + (LISTED + r.source) * C))


def simulate(model, K: int, sources: Sequence[Sequence[int]], settings: Settings) -> dict:
    """`simulated` from a run of the model with its drafter at K; {"absent": reason} where the drafter is not modelled."""
    method, passes = counted(drafting_method(model, settings, K))
    stats = [method.run(batch, settings.seed + number * settings.batch_size).stats
             for number, batch in enumerate(measure.batches(sources, settings.batch_size))]
    try:
        return simulated(model.drafter, K, trace(stats) | passes(), settings)
    except NotModelled as reason:
        return {"absent": str(reason)}


def trace(stats: Sequence) -> dict:
    """Sums over DecodeStats: steps of sequences, passes, tokens drafted and emitted, tested and accepted by position."""
    sums = {name: sum(getattr(one, name) for one in stats) for name in ("steps", "passes", "drafted", "emitted")}
    return sums | {name: np.sum([getattr(one, name) for one in stats], axis=0).tolist()
                   for name in ("tested_at", "accepted_at")}


def counted(method: Method) -> tuple[Method, Callable[[], dict]]:
    """The method, and a function that returns the passes per step of a staged drafter's T5."""
    drafter, sums = method.model.drafter, {"passes": 0, "steps": 0}

    def run(sources, seed: int):
        before = getattr(drafter, "passes", 0)
        out = method.run(sources, seed)
        sums["passes"] += getattr(drafter, "passes", 0) - before
        sums["steps"] += out.stats.passes
        return out

    return replace(method, run=run), lambda: {"passes_per_step": sums["passes"] / max(sums["steps"], 1)}


def main(
    data: options.Data = None,
    drafter: options.Drafter = "lookup",
    draft_tokens: options.DraftTokensList = "1,3,5,8",
    temperature: options.Temperature = 0.0,
    batch_size: options.BatchSize = 1,
    target: options.Target = None,
    limit: options.Limit = 20,
    max_new_tokens: options.MaxNewTokens = 128,
) -> None:
    """Simulate a drafter's speed-up for a large target on a GPU from its acceptance on the small one."""
    settings = Settings(batch_size=batch_size, temperature=temperature, max_new_tokens=max_new_tokens)
    model = open_model(target, drafter)
    sources, lines = [case.source for case in read_articles(data, model, limit)], []
    for K in options.parse_numbers("--draft-tokens", draft_tokens, int, 1):
        found = simulate(model, K, sources, settings)
        lines.append([str(K), *(number(found.get(name)) for name in ("tokens_per_step", "draft_us", "pass_us", "speed_up")),
                      found.get("absent", "")])
    show([Table(f"SIMULATED: {drafter} for {GEOMETRY} on one {MACHINE}, B={batch_size}, T={temperature:g}",
                ("K", "tokens/step", "draft, us", "pass, us", "speed-up", ""), lines)])


if __name__ == "__main__":
    run_script(main)
