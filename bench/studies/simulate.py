"""What a way of drafting would give at the costs of FLAN-T5-XL on a GPU: SIMULATED, for neither is at hand.

Acceptance is measured: how many ids a round emits is that of a trace of the small target with this drafter and K. What a
round costs is modelled (model.py): the target's pass of K + 1 rows and the drafter's passes by their bytes and launches.
That a drafter is right as often beside another target is an assumption.
"""

from __future__ import annotations

from dataclasses import asdict, replace

from foredraft.bench.gpu.roofline import DRAFTERS, DRAWS, LISTED, MACHINES, Machine, Part, Round, config_of, parts
from foredraft.bench.harness.settings import Settings
from foredraft.engine.drafters.cascade import CascadeDrafter
from foredraft.engine.drafters.layer_skip import SelfDrafter
from foredraft.engine.drafters.neural.eagle_head import EagleConfig, EagleDrafter
from foredraft.engine.drafters.neural.lstm import LSTMDrafter
from foredraft.engine.drafters.neural.t5_drafter import ShallowT5Drafter
from foredraft.engine.drafters.staged import StagedDrafter
from foredraft.engine.models.t5_weights import ModelConfig
from foredraft.engine.protocols import Drafter

GEOMETRY, MACHINE = "flan-t5-xl", "h200"
# Of a pass, the parts that a skipped sublayer saves, by the sublayers' letters (engine/drafters/skip_mask.py).
SUBLAYER_PARTS = {"self-attention's matrices": 0, "self-attention": 0, "cross-attention's matrices": 1, "cross-attention": 1,
                  "feed-forward": 2}


class NotModelled(Exception):
    """No bytes are known for this drafter; the message names it."""


def simulated(drafter: Drafter, K: int, trace: dict, settings: Settings) -> dict:
    """Of a trace at draft_tokens K (contest.trace): a round's microseconds, the plain step's, tokens a second, speed-up.

    All rows of a batch count as running. Raises NotModelled.
    """
    c, machine = config_of(GEOMETRY), MACHINES[MACHINE]
    r = Round(settings.batch_size, K, sampled=settings.do_sample, drafter="none")
    plain = _us(parts(c, replace(r, draft_tokens=0)), machine)
    drafts, pass_ = _us(draft_parts(drafter, c, r, trace), machine), _us(parts(c, r), machine)
    tokens = trace["emitted"] / trace["steps"]
    return {
        "geometry": GEOMETRY, "machine": MACHINE, "round": asdict(r), "draft_tokens": K, "tokens_per_step": tokens,
        "plain_us": plain, "draft_us": drafts, "pass_us": pass_,
        "tokens_per_second": r.batch_size * tokens / (drafts + pass_) * 1e6, "speed_up": tokens * plain / (drafts + pass_)}


def draft_parts(drafter: Drafter, c: ModelConfig, r: Round, trace: dict) -> list[Part]:
    """What a round's drafts add to the target's pass: the drafter of the same kind made for a target of config c.

    A cascade is charged for all its drafters in every round; a staged one for the passes that its T5 made,
    trace["passes_a_round"].
    """
    if isinstance(drafter, CascadeDrafter):
        return [part for one in drafter.drafters for part in draft_parts(one, c, r, trace)]
    if isinstance(drafter, StagedDrafter):
        share = trace["passes_a_round"] / r.draft_tokens
        # a pass gives many ids, each of which has its distribution
        passes = [Part(part.name, round(part.launches * share), 0 if part.name == DRAWS else round(part.bytes * share),
                       round(part.flop * share)) for part in _modelled("t5shallow", c, r)]
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


def _modelled(name: str, c: ModelConfig, r: Round) -> list[Part]:
    return [part for part in parts(c, replace(r, drafter=name)) if part.name.startswith("draft")]


def _distributions(c: ModelConfig, r: Round) -> Part:
    """Drawn drafts write their distributions, which the verification reads."""
    return Part("drafts' distributions", 0, 2 * r.sampled * r.batch_size * r.draft_tokens * c.vocab_size * 4, 0)


def _self(drafter: SelfDrafter, c: ModelConfig, r: Round) -> list[Part]:
    """K passes of one row of the target's decoder, with the share of each kind of sublayer that the small one keeps."""
    shares, found = drafter.kept.mean(0), []
    for part in parts(c, replace(r, draft_tokens=0)):
        share = shares[SUBLAYER_PARTS[part.name]] if part.name in SUBLAYER_PARTS else 1.0
        if part.name == "head" and not drafter.lists.whole:
            share = (LISTED + r.batch_size * r.source) / c.vocab_size
        if part.name in (*SUBLAYER_PARTS, "embedding and closing norm", "head"):
            found.append(Part(f"drafts: {part.name}", *(round(r.draft_tokens * share * value) for value in (
                part.launches, part.bytes, part.flop))))
    return found


def _head(c: ModelConfig, r: Round) -> Part:
    """One layer on the target's states: an LSTM's pointer without its cell."""
    sizes = {name: field.default for name, field in EagleConfig.__dataclass_fields__.items()}
    B, C, K, F = r.batch_size, c.d_model, r.draft_tokens, sizes["d_ff"]
    inner = sizes["num_heads"] * sizes["d_kv"]
    weights = inner * 4 * C + F * (2 * C + inner) + C * F
    head = (LISTED + B * r.source) * C
    return Part("draft", 2 + K * (4 + 1 + r.sampled), K * (weights + B * r.source * 2 * inner + head) * r.item,
                K * B * 2 * (weights + (LISTED + r.source) * C))
