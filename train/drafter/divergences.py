"""Divergences of a student's distribution q from its teacher's p over the vocabulary, with their gradients in the same pass.

    fkl    forward KL                    sum p log p/q
    rkl    reverse KL                    sum q log q/p
    tvd    total variation distance      1/2 sum |p - q| = 1 - acceptance rate (Leviathan et al. 2023, Corollary 3.6)
    jsd    generalised Jensen-Shannon    b KL(p, m) + (1 - b) KL(q, m) with m = b p + (1 - b) q (Agarwal et al. 2024,
                                         "GKD", eq. 1); b = 0 stands for forward and b = 1 for reverse KL, as in TRL

All are f-divergences (f-distill; Wen et al. 2023). Both distributions are softmaxes at a temperature T, and soft terms are
multiplied by T^2, so that gradients keep their size (Hinton et al. 2015).

At V = 32,128 the logits are most of a small drafter's memory traffic, so loss and gradient are computed together for BLOCK
tokens at a time.
"""

from __future__ import annotations

import torch
from torch import Tensor

DIVERGENCES = ("fkl", "rkl", "jsd", "tvd")
BLOCK = 64
# Lower limit of probabilities inside a logarithm.
TINY = 1e-30


def acceptance_probability(p: Tensor, q: Tensor) -> Tensor:
    """The probability that a sample of q is accepted: sum_x min(p(x), q(x)) (Leviathan et al. 2023, Corollary 3.6).

    Parameters
    ----------
    p, q
        [..., V], distributions of target and drafter.

    Returns
    -------
    Tensor
        [...].
    """
    return torch.minimum(p, q).sum(-1)


def divergence_and_gradient(log_q: Tensor, log_p: Tensor, kind: str, beta: float = 0.5) -> tuple[Tensor, Tensor]:
    """A divergence and its gradient.

    Parameters
    ----------
    log_q, log_p
        [N, V], log distributions of student and teacher.
    kind
        "fkl", "rkl", "jsd" or "tvd".
    beta
        Weight b of the teacher in "jsd".

    Returns
    -------
    divergence : Tensor
        [N], in nats ("tvd": without unit), differentiable in `log_q`.
    gradient : Tensor
        [N, V], with respect to the student's logits divided by the temperature.
    """
    q, p = log_q.exp(), log_p.exp()
    if kind == "jsd" and beta in (0, 1):
        kind = "rkl" if beta else "fkl"
    if kind == "fkl":
        # 0 log 0 = 0, where logits are -inf
        return torch.where(p > 0, p * (log_p - log_q), 0.0).sum(-1), q - p
    if kind == "rkl":
        gradient = torch.where(q > 0, log_q - log_p, 0.0)
        loss = (q * gradient).sum(-1)
    elif kind == "tvd":
        gradient = 0.5 * torch.sign(q - p)
        loss = 0.5 * (q - p).abs().sum(-1)
    elif kind == "jsd":
        log_m = (beta * p + (1 - beta) * q).clamp_min(TINY).log()
        gradient = (1 - beta) * torch.where(q > 0, log_q - log_m, 0.0)
        loss = (q * gradient).sum(-1) + beta * torch.where(p > 0, p * (log_p - log_m), 0.0).sum(-1)
    else:
        raise ValueError(f"divergence {kind!r} is not one of {DIVERGENCES}")
    # the gradient of the softmax: q (g - sum q g)
    return loss, q * (gradient - (q * gradient).sum(-1, keepdim=True))


def blended_loss(logits: Tensor, labels: Tensor, hard: Tensor, soft: Tensor | None = None, teacher: Tensor | None = None,
                 kind: str = "fkl", beta: float = 0.5, temperature: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    """Weighted sum of cross-entropy and divergence: sum_n hard[n] (-log q(labels[n])) + sum_m soft[m] T^2 D(p[m], q[m]).

    Parameters
    ----------
    logits
        [N, V], the student's.
    labels
        [N] int64.
    hard
        [N] float32, weights of the cross-entropy.
    soft
        [M] float32, weights of the divergence.
    teacher
        [M, V], the teacher's logits for the LAST M of the N tokens; None for M = 0.
    kind, beta
        The divergence (divergence_and_gradient).
    temperature
        T of the divergence; the cross-entropy is at temperature 1.

    Returns
    -------
    loss : Tensor
        A scalar, differentiable once, in `logits`.
    cross_entropy : Tensor
        [N], -log q(label), without gradient.
    divergence : Tensor
        [M], without gradient.
    """
    if teacher is None:
        teacher, soft = logits.new_zeros(0, logits.shape[1]), hard.new_zeros(0)
    return _BlendedLoss.apply(logits, labels, hard, soft, teacher.detach(), kind, beta, temperature)


class _BlendedLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx, logits, labels, hard, soft, teacher, kind, beta, temperature):
        N, M = len(logits), len(teacher)
        gradients = torch.empty_like(logits)
        cross_entropy = torch.zeros(N, device=logits.device, dtype=torch.promote_types(logits.dtype, torch.float32))
        divergence = cross_entropy.new_zeros(M)
        first = N - M  # tokens before it have no teacher
        for start in [*range(0, first, BLOCK), *range(first, N, BLOCK)]:
            part = slice(start, min(start + BLOCK, N if start >= first else first))
            student = logits[part].to(cross_entropy.dtype)
            log_q = torch.log_softmax(student, -1)
            label = labels[part, None]
            cross_entropy[part] = -log_q.gather(1, label)[:, 0]
            # in place if the types allow it, because a copy is as slow as an exponential
            gradient = torch.exp(log_q, out=gradients[part]) if gradients.dtype == log_q.dtype else log_q.exp()
            gradient.scatter_add_(1, label, torch.full_like(label, -1.0, dtype=gradient.dtype))
            gradient.mul_(hard[part, None])
            if start >= first:
                own = slice(part.start - first, part.stop - first)
                if temperature != 1:
                    log_q = torch.log_softmax(student / temperature, -1)
                log_p = torch.log_softmax(teacher[own].to(cross_entropy.dtype) / temperature, -1)
                divergence[own], soft_gradient = divergence_and_gradient(log_q, log_p, kind, beta)
                # T^2 of the term times 1/T of the logits
                gradient.addcmul_(soft_gradient, soft[own, None], value=temperature)
            if gradients.dtype != gradient.dtype:
                gradients[part] = gradient
        ctx.save_for_backward(gradients)
        total = (hard * cross_entropy).sum() + temperature**2 * (soft * divergence).sum()
        ctx.mark_non_differentiable(cross_entropy, divergence)
        return total, cross_entropy, divergence

    @staticmethod
    def backward(ctx, upstream, _cross_entropy, _divergence):
        (gradients,) = ctx.saved_tensors
        return (gradients.mul_(upstream), *[None] * 7)


def bucket_divergence(logits: Tensor, top_tokens: Tensor, top_log_p: Tensor, kind: str, beta: float = 0.5,
                      temperature: float = 1.0) -> Tensor:
    """A divergence over k + 1 buckets: the teacher's k most probable tokens, and all other tokens together.

    By the data processing inequality this is a lower bound of the divergence over the vocabulary.

    Parameters
    ----------
    logits
        [N, V], the student's.
    top_tokens
        [N, k] int64, the teacher's most probable tokens.
    top_log_p
        [N, k], their log-probabilities at the same temperature, over the WHOLE vocabulary.
    kind, beta, temperature
        See blended_loss.

    Returns
    -------
    Tensor
        [N], differentiable in `logits`.
    """
    log_q = torch.log_softmax(logits.float() / temperature, -1).gather(1, top_tokens)
    log_q, log_p = _with_tail(log_q), _with_tail(top_log_p.float())
    return divergence_and_gradient(log_q, log_p, kind, beta)[0]


def _with_tail(log_distribution: Tensor) -> Tensor:
    """[N, k] to [N, k + 1]: the remaining mass, at least 1e-7, is appended."""
    rest = (1 - log_distribution.exp().sum(-1, keepdim=True)).clamp_min(1e-7)
    return torch.cat((log_distribution, rest.log()), -1)


@torch.no_grad()
def log_probability(logits: Tensor, tokens: Tensor) -> Tensor:
    """log softmax(logits)[tokens] [N] float32, for logits [N, V] and tokens [N], BLOCK of them at a time."""
    parts = [
        torch.log_softmax(logits[start : start + BLOCK].float(), -1).gather(1, tokens[start : start + BLOCK, None])[:, 0]
        for start in range(0, len(logits), BLOCK)
    ]
    return torch.cat(parts) if parts else logits.new_zeros(0, dtype=torch.float32)


@torch.no_grad()
def policy_weights(log_p: Tensor, log_q: Tensor, lengths: list[int], teacher_mix: float,
                   normalise: bool = True) -> tuple[Tensor, Tensor]:
    """MiniLLM's weights of sampled tokens (Gu et al. 2024, section 2.2).

    A token y_t was sampled from a p + (1 - a) q with a = teacher_mix. Its importance weight is
    w_t = q(y_t) / (a p(y_t) + (1 - a) q(y_t)), the approximation of the product over earlier tokens. The reward of the
    following tokens is R_{t+1} = sum_{t' > t} log p/q, divided by their number T - t - 1 if `normalise` (eq. 6). With the
    single-step term computed exactly (eq. 4), the gradient of the reverse KL is
    E sum_t w_t (grad KL(q_t, p_t) - R_{t+1} grad log q(y_t)).

    Parameters
    ----------
    log_p, log_q
        [N], of the sampled tokens, sequence after sequence.
    lengths
        Tokens of each sequence.
    teacher_mix
        a.
    normalise
        Divide rewards by the number of following tokens.

    Returns
    -------
    importance : Tensor
        [N], w_t.
    weights : Tensor
        [N], w_t R_{t+1}.
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
