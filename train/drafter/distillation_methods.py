"""Distillation methods: the summaries that a step is trained on, and the loss there.

The loss is `loss` times the cross-entropy on human summaries plus `kd_loss` times the method's term; kd_loss 0 is the
baseline. The student is the drafter, the teacher is the target. The terms:

Seq_KD          cross-entropy on the target's own summaries (sequence-level distillation; Kim and Rush 2016)
Supervised_KD   divergence from the teacher at every token of the human summaries (Hinton et al. 2015)
Imit_KD         cross-entropy with the teacher's argmax: after prefixes of the target's own summaries at first, and
                increasingly often after prefixes of the student's samples (Lin et al. 2020)
f_Distill       the divergence `divergence` at every token of the target's own summaries (Wen et al. 2023), and in a share
                `lmbda` of the steps of the student's samples
on_policy_GKD   generalised Jensen-Shannon divergence with weight `beta`, in a share `lmbda` of the steps on the student's
                samples (GKD, Agarwal et al. 2024; for drafters DistillSpec, Zhou et al. 2024)
MiniLLM         Seq_KD for the first half of the steps, because MiniLLM starts from a fine-tuned student; then reverse KL by
                policy gradient on samples of a mixture of teacher and student (Gu et al. 2024; divergences.policy_weights)
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
# Defaults of kd_data and lmbda that are not "pseudo" and 0.
_DATA = {"Supervised_KD": "gold"}
_ON_POLICY = {"on_policy_GKD": 0.5}
# The share of fixed summaries to which Imit_KD decays exponentially, and where MiniLLM's policy gradient begins (0 to 1).
FINAL_FIXED_SHARE, POLICY_START = 0.005, 0.5


@dataclass(frozen=True)
class DistillationConfig:
    """A distillation method and its parameters; names follow TRL's GKDConfig where it has them.

    Attributes
    ----------
    loss, kd_loss
        Weights of the cross-entropy on human summaries and of the method's term.
    kd_temp
        Temperature T of both distributions in a divergence, which is multiplied by T^2 (Hinton et al. 2015).
    distill_method
        One of METHODS.
    divergence
        "fkl", "rkl", "jsd" or "tvd", of Supervised_KD and f_Distill (divergences).
    beta
        Weight of the teacher in "jsd" and on_policy_GKD.
    lmbda
        Share of steps on the student's samples; None is the method's own.
    kd_data
        Fixed summaries: "gold" (human), "pseudo" (the target's own) or "mixed"; None is the method's own.
    teacher_mix
        Share of the teacher in MiniLLM's sampling distribution.
    length_normalise
        Normalise MiniLLM's rewards by the remaining length.
    teacher_logits
        Train on this many of the teacher's largest logits, cached on disk; 0 trains on the teacher itself.
    """

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
    teacher_logits: int = 0

    def __post_init__(self):
        def one_of(flag: str, value: str, known: tuple[str, ...]):
            if value not in known:
                raise UserError(f"{flag} is {value}; use {', '.join(known)}")

        one_of("--distill-method", self.distill_method, METHODS)
        one_of("--divergence", self.divergence, DIVERGENCES)
        if self.kd_data is not None:
            one_of("--kd-data", self.kd_data, KD_DATA)
        if self.loss < 0 or self.kd_loss < 0 or self.loss + self.kd_loss == 0:
            raise UserError(f"--loss is {self.loss:g}, --kd-loss {self.kd_loss:g}; give weights of 0 or more, one positive")
        if self.kd_temp <= 0:
            raise UserError(f"--kd-temp is {self.kd_temp:g}; give a number above 0")
        for flag, value in (("--lmbda", self.lmbda), ("--beta", self.beta), ("--teacher-mix", self.teacher_mix)):
            if value is not None and not 0 <= value <= 1:
                raise UserError(f"{flag} is {value:g}; give a share from 0 to 1")
        if self.teacher_logits and self.on_policy() and self.kd_loss:
            raise UserError(f"--teacher-logits caches logits of fixed summaries, but {self.distill_method} also uses the "
                            "drafter's own samples; omit it, or give --lmbda 0")
        if self.teacher_logits and self.data == "mixed":
            raise UserError("--teacher-logits requires --kd-data gold or pseudo, not mixed")

    @property
    def data(self) -> str:
        """The kind of fixed summaries: "gold", "pseudo" or "mixed"."""
        return self.kd_data or _DATA.get(self.distill_method, "pseudo")

    def on_policy(self, progress: float = 1.0) -> float:
        """The share of steps on the student's samples; progress is 0 at the first step and 1 at the end."""
        if self.lmbda is not None:
            return self.lmbda
        if self.distill_method == "Imit_KD":
            return 1.0 - FINAL_FIXED_SHARE**progress
        if self.distill_method == "MiniLLM":
            return float(progress >= POLICY_START)
        return _ON_POLICY.get(self.distill_method, 0.0)

    @property
    def objective(self) -> str:
        """"labels", "argmax" (of the teacher), "divergence", or "policy" (on samples; "labels" on fixed summaries)."""
        return {"Seq_KD": "labels", "Imit_KD": "argmax", "MiniLLM": "policy"}.get(self.distill_method, "divergence")

    @property
    def effective_divergence(self) -> str:
        """The divergence that the method uses."""
        return {"on_policy_GKD": "jsd", "MiniLLM": "rkl"}.get(self.distill_method, self.divergence)

    def is_on_policy(self, seed: int, step: int, steps: int) -> bool:
        """Whether a step is on the student's samples; the same in every process and after a resume."""
        return self.kd_loss > 0 and np.random.default_rng((seed, step, 7)).random() < self.on_policy(step / steps)


def fixed_summaries(method: DistillationConfig, batch: dict) -> list[np.ndarray]:
    """The fixed summary of each article of a batch."""
    summaries = []
    for gold, own, coin in zip(batch["gold"], batch["own"], batch["coin"].tolist(), strict=True):
        wanted = method.data if method.data != "mixed" else ("pseudo" if coin < 0.5 else "gold")
        summaries.append(own if wanted == "pseudo" else gold)
    return summaries


def step_inputs(method: DistillationConfig, batch: dict, samples: list[np.ndarray] | None, start_token: int) -> dict:
    """The decoder sequences of a step: first those with hard labels, then those of the method.

    Parameters
    ----------
    method
        The method.
    batch
        B articles (collate_drafter).
    samples
        The student's samples, used in place of the fixed summaries.
    start_token
        First input of the decoder.

    Returns
    -------
    dict
        `input_ids` and `labels` [N, T] int64; `source` [N], the article of each sequence; `hard`, the number of first
        sequences scored by cross-entropy on human summaries; `soft`, the number of last sequences scored by the method;
        `sampled`, whether those are samples. If the method is trained on the human summaries, they are both hard and soft.
    """
    B, kd = len(batch["coin"]), []
    if method.kd_loss:
        kd = fixed_summaries(method, batch) if samples is None else samples
    shared = bool(kd) and samples is None and method.data == "gold"
    gold = batch["gold"] if method.loss and not shared else []
    input_ids, labels = pad_sequences([*gold, *kd], start_token)
    numbers = torch.arange(B)
    out = {name: batch[name] for name in ("source_ids", "source_mask", "article", "encoder_output") if name in batch}
    return out | {
        "input_ids": input_ids, "labels": labels, "source": torch.cat([numbers] * (bool(gold) + bool(kd))),
        "hard": len(gold) or (B if shared and method.loss else 0), "soft": len(kd),
        "sampled": samples is not None,
    }


def token_counts(inputs: dict) -> tuple[int, int]:
    """Numbers of scored tokens of the hard and of the soft sequences."""
    scored = (inputs["labels"] != IGNORE).sum(1)
    return int(scored[: inputs["hard"]].sum()), int(scored[len(scored) - inputs["soft"] :].sum())


def step_loss(method: DistillationConfig, inputs: dict, logits: Tensor, query_teacher,
              counts: tuple[float, float]) -> Tensor:
    """The loss of a batch.

    Parameters
    ----------
    method
        The method.
    inputs
        The result of step_inputs.
    logits
        [N, V], the student's at the N scored tokens.
    query_teacher
        query_teacher(n) returns the teacher's logits [M, V] at the M scored tokens of the last n sequences; with
        `teacher_logits` their (tokens [M, k], log p [M, k]).
    counts
        token_counts of the whole update, by which the sums are divided.

    Returns
    -------
    Tensor
        A scalar, differentiable in `logits`.
    """
    labels = inputs["labels"]
    scored = labels != IGNORE
    lengths = scored.sum(1).tolist()
    flat, soft_count = labels[scored], inputs["soft"]
    M = sum(lengths[len(lengths) - soft_count :]) if soft_count else 0
    weights = torch.zeros(len(flat), device=logits.device)
    if inputs["hard"]:
        weights[: sum(lengths[: inputs["hard"]])] = method.loss / max(counts[0], 1)
    if not M:
        return blended_loss(logits, flat, weights)[0]
    share = method.kd_loss / max(counts[1], 1)
    if method.objective == "labels" or (method.objective == "policy" and not inputs["sampled"]):
        weights[-M:] += share
        return blended_loss(logits, flat, weights)[0]
    if method.objective == "divergence":
        if method.teacher_logits:
            divergence = bucket_divergence(logits[-M:], *query_teacher(soft_count), method.effective_divergence, method.beta,
                                           method.kd_temp)
            return blended_loss(logits, flat, weights)[0] + share * method.kd_temp**2 * divergence.sum()
        soft = torch.full((M,), share, device=logits.device)
        return blended_loss(logits, flat, weights, soft, query_teacher(soft_count), method.effective_divergence, method.beta,
                            method.kd_temp)[0]
    teacher = query_teacher(soft_count)
    if method.objective == "argmax":
        wanted = torch.cat((flat[: len(flat) - M], teacher.argmax(-1)))
        weights[-M:] += share
        return blended_loss(logits, wanted, weights)[0]
    log_p, log_q = log_probability(teacher, flat[-M:]), log_probability(logits[-M:], flat[-M:])
    importance, later = policy_weights(log_p, log_q, lengths[len(lengths) - soft_count :], method.teacher_mix,
                                       method.length_normalise)
    weights[-M:] += share * later
    return blended_loss(logits, flat, weights, share * importance, teacher, "rkl")[0]
