"""The distillation methods: which summaries a step reads, and what is asked of the drafter there.

The loss is `loss` times cross-entropy on the human summaries plus `kd_loss` times the method's term; kd_loss 0 is the
baseline. The method's term:

Seq_KD          cross-entropy on the target's own summaries (Kim and Rush 2016)
Supervised_KD   divergence from the target at every token of the human summaries (Hinton et al. 2015)
Imit_KD         cross-entropy with the target's argmax, at first after prefixes of its own summaries, then ever more often
                after those of the drafter's samples (Lin et al. 2020)
f_Distill       divergence, by name, at every token of the target's summaries (Wen et al. 2023; `lmbda` for their mixture)
on_policy_GKD   generalised Jensen-Shannon divergence by `beta` on a mixture, in which a step is on the drafter's own samples
                with probability `lmbda` (Agarwal et al. 2024)
MiniLLM         Seq_KD for the first half of the steps, since their students start fine-tuned; then reverse KL by policy
                gradient on samples mixed with the target's (Gu et al. 2024; divergences.policy_weights)
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from foredraft.errors import UserError
from foredraft.train.data.drafter_data import pad_sequences
from foredraft.train.data.pairs import IGNORE
from foredraft.train.drafter.divergences import (
    DIVERGENCES,
    blended_loss,
    bucket_divergence,
    log_probability,
    policy_weights,
)

METHODS = ("Seq_KD", "Supervised_KD", "Imit_KD", "f_Distill", "on_policy_GKD", "MiniLLM")
KD_DATA = ("gold", "pseudo", "mixed")
# Where a method's fixed summaries come from, and the share of steps on the drafter's own samples, unless told otherwise.
_DATA = {"Supervised_KD": "gold"}
_ON_POLICY = {"on_policy_GKD": 0.5}
# What Imit_KD's share of steps on fixed summaries decays to, exponentially, and where MiniLLM's own phase begins.
FIXED_AT_LAST, FINE_TUNED = 0.005, 0.5


@dataclass(frozen=True)
class DistillationConfig:
    """The weights of the two terms and the method; kd_data and lmbda None stand for the method's own."""

    loss: float = 1.0
    kd_loss: float = 1.0
    kd_temp: float = 8.0
    distill_method: str = "Seq_KD"
    divergence: str = "fkl"
    beta: float = 0.5
    lmbda: float | None = None
    kd_data: str | None = None
    teacher_mix: float = 0.2
    length_normalise: bool = True
    teacher_logits: int = 0  # train on this many of the teacher's likeliest ids, kept on disk; 0: on the teacher itself

    def __post_init__(self):
        def one_of(flag: str, value: str, known: tuple[str, ...]):
            if value not in known:
                raise UserError(f"{flag} {value} is not known; use {', '.join(known)}")

        one_of("--distill-method", self.distill_method, METHODS)
        one_of("--divergence", self.divergence, DIVERGENCES)
        if self.kd_data is not None:
            one_of("--kd-data", self.kd_data, KD_DATA)
        if self.loss < 0 or self.kd_loss < 0 or self.loss + self.kd_loss == 0:
            raise UserError(f"--loss {self.loss:g} and --kd-loss {self.kd_loss:g} are weights; give one above 0, none below")
        if self.kd_temp <= 0:
            raise UserError(f"--kd-temp is {self.kd_temp:g}; give a number above 0")
        for flag, value in (("--lmbda", self.lmbda), ("--beta", self.beta), ("--teacher-mix", self.teacher_mix)):
            if value is not None and not 0 <= value <= 1:
                raise UserError(f"{flag} is {value:g}; give a share from 0 to 1")
        if self.teacher_logits and self.on_policy() and self.kd_loss:
            raise UserError(f"--teacher-logits keeps the teacher's logits of fixed summaries; {self.distill_method} asks it "
                            "about the drafter's own; leave it out, or give --lmbda 0")
        if self.teacher_logits and self.data == "mixed":
            raise UserError("--teacher-logits goes with --kd-data gold or pseudo, not mixed")

    @property
    def data(self) -> str:
        return self.kd_data or _DATA.get(self.distill_method, "pseudo")

    def on_policy(self, progress: float = 1.0) -> float:
        """The share of steps on the drafter's own samples at a point from 0, the first step, to 1, the end."""
        if self.lmbda is not None:
            return self.lmbda
        if self.distill_method == "Imit_KD":
            return 1.0 - FIXED_AT_LAST**progress
        if self.distill_method == "MiniLLM":
            return float(progress >= FINE_TUNED)
        return _ON_POLICY.get(self.distill_method, 0.0)

    @property
    def form(self) -> str:
        """What is asked: "labels", "argmax" (the teacher's), "divergence" or "policy" (on samples; "labels" elsewhere)."""
        return {"Seq_KD": "labels", "Imit_KD": "argmax", "MiniLLM": "policy"}.get(self.distill_method, "divergence")

    @property
    def kind(self) -> str:
        """The divergence's name."""
        return {"on_policy_GKD": "jsd", "MiniLLM": "rkl"}.get(self.distill_method, self.divergence)

    @property
    def needs_teacher(self) -> bool:
        return self.kd_loss > 0 and self.form != "labels" and not self.teacher_logits

    def is_on_policy(self, seed: int, step: int, steps: int) -> bool:
        """Whether the method's term in a step, of so many, is on samples: the same on every process and after a resume."""
        return self.kd_loss > 0 and np.random.default_rng((seed, step, 7)).random() < self.on_policy(step / steps)


def fixed_rows(method: DistillationConfig, batch: dict) -> list[np.ndarray]:
    """The method's fixed summary of each article of a batch."""
    rows = []
    for gold, own, coin in zip(batch["gold"], batch["own"], batch["coin"].tolist(), strict=True):
        wanted = method.data if method.data != "mixed" else ("pseudo" if coin < 0.5 else "gold")
        row = own if wanted == "pseudo" else gold
        rows.append(row)
    return rows


def step_inputs(method: DistillationConfig, batch: dict, samples: list[np.ndarray] | None, start_token: int) -> dict:
    """A collated batch to the rows of a step: input_ids, labels [N, T], row [N] (whose source), and of them
    `hard` rows scored by cross-entropy on human summaries, `soft` rows by the method, `sampled` ones or not; when the method
    reads the human summaries themselves, one row is both. `samples`: the drafter's own, in place of the fixed ones."""
    B, kd = len(batch["coin"]), []
    if method.kd_loss:
        kd = fixed_rows(method, batch) if samples is None else samples
    shared = bool(kd) and samples is None and method.data == "gold"
    gold = batch["gold"] if method.loss and not shared else []
    input_ids, labels = pad_sequences([*gold, *kd], start_token)
    places = torch.arange(B)
    out = {name: batch[name] for name in ("source_ids", "source_mask", "article", "encoder_output") if name in batch}
    return out | {
        "input_ids": input_ids, "labels": labels, "row": torch.cat([places] * (bool(gold) + bool(kd))),
        "hard": len(gold) or (B if shared and method.loss else 0), "soft": len(kd),
        "sampled": samples is not None,
    }


def token_counts(inputs: dict) -> tuple[int, int]:
    """Scored places of the cross-entropy on human summaries, and of the method."""
    scored = (inputs["labels"] != IGNORE).sum(1)
    return int(scored[: inputs["hard"]].sum()), int(scored[len(scored) - inputs["soft"] :].sum())


def step_loss(method: DistillationConfig, inputs: dict, logits: Tensor, ask, counts: tuple[float, float]) -> Tensor:
    """The loss of a step: sums over its places over `counts`, the places of ALL rows of the update (token_counts).

    logits [N, V]: the drafter's, of the scored places. ask(rows) gives the teacher's there, [M, V], for the last
    `rows` rows; with `teacher_logits` the (ids, log p) of them.
    """
    labels = inputs["labels"]
    scored = labels != IGNORE
    lengths = scored.sum(1).tolist()
    flat, soft_rows = labels[scored], inputs["soft"]
    M = sum(lengths[len(lengths) - soft_rows :]) if soft_rows else 0
    weights = torch.zeros(len(flat), device=logits.device)
    if inputs["hard"]:
        weights[: sum(lengths[: inputs["hard"]])] = method.loss / max(counts[0], 1)
    if not M:
        return blended_loss(logits, flat, weights)[0]
    share = method.kd_loss / max(counts[1], 1)
    if method.form == "labels" or (method.form == "policy" and not inputs["sampled"]):
        weights[-M:] += share
        return blended_loss(logits, flat, weights)[0]
    if method.form == "divergence":
        if method.teacher_logits:
            apart = bucket_divergence(logits[-M:], *ask(soft_rows), method.kind, method.beta, method.kd_temp)
            return blended_loss(logits, flat, weights)[0] + share * method.kd_temp**2 * apart.sum()
        soft = torch.full((M,), share, device=logits.device)
        return blended_loss(logits, flat, weights, soft, ask(soft_rows), method.kind, method.beta, method.kd_temp)[0]
    teacher = ask(soft_rows)
    if method.form == "argmax":
        wanted = torch.cat((flat[: len(flat) - M], teacher.argmax(-1)))
        weights[-M:] += share
        return blended_loss(logits, wanted, weights)[0]
    log_p, log_q = log_probability(teacher, flat[-M:]), log_probability(logits[-M:], flat[-M:])
    importance, later = policy_weights(log_p, log_q, lengths[len(lengths) - soft_rows :], method.teacher_mix,
                                       method.length_normalise)
    weights[-M:] += share * later
    return blended_loss(logits, flat, weights, share * importance, teacher, "rkl")[0]
