"""How far a student's distribution q is from its teacher's p, row by row over the vocabulary, with the gradient in the same pass.

Forward KL sum p log p/q; reverse KL sum q log q/p; total variation 1/2 sum |p - q| = 1 - acceptance (Leviathan et al. 2023,
Corollary 3.6); the generalised Jensen-Shannon divergence of Agarwal et al. 2024 (GKD, eq. 1), with m = b p + (1 - b) q:
b KL(p, m) + (1 - b) KL(q, m), whose ends b = 0 and b = 1 stand for forward and reverse KL, as in TRL. Both distributions are
softmaxes at one temperature T; soft terms carry T^2 (Hinton et al. 2015), so that gradients keep their size.

At 32,128 ids the logits are most of a small drafter's memory traffic: loss and slopes are formed a block of rows at a time.
"""

from __future__ import annotations

import torch
from torch import Tensor

DIVERGENCES = ("fkl", "rkl", "jsd", "tvd")
BLOCK = 64
# Probabilities below this count as this much inside a logarithm.
TINY = 1e-30


def divergence_rows(log_q: Tensor, log_p: Tensor, kind: str, beta: float = 0.5) -> tuple[Tensor, Tensor]:
    """Log distributions [N, V] to the divergence [N] and its slope [N, V] in the student's (tempered) logits."""
    q, p = log_q.exp(), log_p.exp()
    if kind == "jsd" and beta in (0, 1):
        kind = "rkl" if beta else "fkl"
    if kind == "fkl":
        # 0 log 0 = 0, where a distribution was cut to -inf
        return torch.where(p > 0, p * (log_p - log_q), 0.0).sum(-1), q - p
    if kind == "rkl":
        slope = torch.where(q > 0, log_q - log_p, 0.0)
        loss = (q * slope).sum(-1)
    elif kind == "tvd":
        slope = 0.5 * torch.sign(q - p)
        loss = 0.5 * (q - p).abs().sum(-1)
    elif kind == "jsd":
        log_m = (beta * p + (1 - beta) * q).clamp_min(TINY).log()
        slope = (1 - beta) * torch.where(q > 0, log_q - log_m, 0.0)
        loss = (q * slope).sum(-1) + beta * torch.where(p > 0, p * (log_p - log_m), 0.0).sum(-1)
    else:
        raise ValueError(f"divergence {kind!r} is not one of {DIVERGENCES}")
    # through the softmax: ds = q (g - sum q g)
    return loss, q * (slope - (q * slope).sum(-1, keepdim=True))


def blended_loss(logits: Tensor, labels: Tensor, hard: Tensor, soft: Tensor | None = None, teacher: Tensor | None = None,
                 kind: str = "fkl", beta: float = 0.5, temperature: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    """sum_n hard[n] * -log q(labels[n]) + sum_m soft[m] * T^2 * D(p[m], q[m]); differentiable once, in `logits`.

    logits [N, V]; labels [N] int64; hard [N] float32. teacher [M, V]: the logits of p for the LAST M of the N rows, with
    their weights soft [M] float32. Also returns, without gradient, -log q(label) [N] at temperature 1 and D [M].
    """
    if teacher is None:
        teacher, soft = logits.new_zeros(0, logits.shape[1]), hard.new_zeros(0)
    return _BlendedLoss.apply(logits, labels, hard, soft, teacher.detach(), kind, beta, temperature)


class _BlendedLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx, logits, labels, hard, soft, teacher, kind, beta, temperature):
        N, M = len(logits), len(teacher)
        slopes = torch.empty_like(logits)
        surprise = torch.zeros(N, device=logits.device, dtype=torch.promote_types(logits.dtype, torch.float32))
        apart = surprise.new_zeros(M)
        first = N - M  # rows before it have no teacher
        for start in [*range(0, first, BLOCK), *range(first, N, BLOCK)]:
            part = slice(start, min(start + BLOCK, N if start >= first else first))
            student = logits[part].to(surprise.dtype)
            log_q = torch.log_softmax(student, -1)
            label = labels[part, None]
            surprise[part] = -log_q.gather(1, label)[:, 0]
            # in place where the types allow: a copy costs as much as an exponential
            slope = torch.exp(log_q, out=slopes[part]) if slopes.dtype == log_q.dtype else log_q.exp()
            slope.scatter_add_(1, label, torch.full_like(label, -1.0, dtype=slope.dtype))
            slope.mul_(hard[part, None])
            if start >= first:
                own = slice(part.start - first, part.stop - first)
                if temperature != 1:
                    log_q = torch.log_softmax(student / temperature, -1)
                log_p = torch.log_softmax(teacher[own].to(surprise.dtype) / temperature, -1)
                apart[own], soft_slope = divergence_rows(log_q, log_p, kind, beta)
                # T^2 of the term times 1/T of the tempered logits
                slope.addcmul_(soft_slope, soft[own, None], value=temperature)
            if slopes.dtype != slope.dtype:
                slopes[part] = slope
        ctx.save_for_backward(slopes)
        total = (hard * surprise).sum() + temperature**2 * (soft * apart).sum()
        ctx.mark_non_differentiable(surprise, apart)
        return total, surprise, apart

    @staticmethod
    def backward(ctx, upstream, _surprise, _apart):
        (slopes,) = ctx.saved_tensors
        return (slopes.mul_(upstream), *[None] * 7)


def bucket_divergence(logits: Tensor, top_ids: Tensor, top_log_p: Tensor, kind: str, beta: float = 0.5,
                      temperature: float = 1.0) -> Tensor:
    """D [N] between distributions over k + 1 buckets: the teacher's k likeliest ids, and all others together.

    logits [N, V]; top_ids [N, k] int64; top_log_p [N, k]: log p of them at the same temperature, over the WHOLE vocabulary.
    Merging ids only lowers an f-divergence, so this bounds the full one from below. Differentiable in `logits`.
    """
    log_q = torch.log_softmax(logits.float() / temperature, -1).gather(1, top_ids)
    log_q, log_p = _with_tail(log_q), _with_tail(top_log_p.float())
    q, p = log_q.exp(), log_p.exp()
    if kind == "jsd" and beta in (0, 1):
        kind = "rkl" if beta else "fkl"
    if kind == "fkl":
        return (p * (log_p - log_q)).sum(-1)
    if kind == "rkl":
        return (q * (log_q - log_p)).sum(-1)
    if kind == "tvd":
        return 0.5 * (p - q).abs().sum(-1)
    log_m = (beta * p + (1 - beta) * q).log()
    return (beta * p * (log_p - log_m) + (1 - beta) * q * (log_q - log_m)).sum(-1)


def _with_tail(log_distribution: Tensor) -> Tensor:
    """[N, k] to [N, k + 1]: the mass that is left comes last, never quite 0."""
    rest = (1 - log_distribution.exp().sum(-1, keepdim=True)).clamp_min(1e-7)
    return torch.cat((log_distribution, rest.log()), -1)


@torch.no_grad()
def log_probability(logits: Tensor, tokens: Tensor) -> Tensor:
    """log softmax(logits)[tokens] [N] float32, a block of rows at a time."""
    parts = [
        torch.log_softmax(logits[start : start + BLOCK].float(), -1).gather(1, tokens[start : start + BLOCK, None])[:, 0]
        for start in range(0, len(logits), BLOCK)
    ]
    return torch.cat(parts) if parts else logits.new_zeros(0, dtype=torch.float32)


@torch.no_grad()
def policy_weights(log_p: Tensor, log_q: Tensor, lengths: list[int], teacher_mix: float,
                   normalise: bool = True) -> tuple[Tensor, Tensor]:
    """MiniLLM's weights of the sampled tokens (Gu et al. 2024, section 2.2): importance w [N] and w R_{t+1} [N].

    log_p, log_q [N]: of each sampled token y_t, sequence after sequence of `lengths`. y was drawn from
    a p + (1 - a) q, a = teacher_mix; w_t = q(y_t) / (a p(y_t) + (1 - a) q(y_t)), their approximation of the product.
    R_{t+1} = sum_{t' > t} log p/q, over T - t - 1, the tokens still to come, when `normalise` (their eq. 6). With the
    single-step part kept exact (their eq. 4), d reverse KL = E sum_t w_t (d KL(q_t, p_t) - R_{t+1} d log q(y_t)).
    """
    importance = 1 / (teacher_mix * (log_p - log_q).exp() + (1 - teacher_mix))
    rewards = (log_p - log_q).split(lengths)
    later = []
    for reward in rewards:
        total = reward.flip(0).cumsum(0).flip(0)
        following = torch.cat((total[1:], total.new_zeros(1)))
        if normalise:
            left = torch.arange(len(reward) - 1, -1, -1, device=reward.device).clamp_min(1)
            following = following / left
        later.append(following)
    return importance, importance * torch.cat(later)
