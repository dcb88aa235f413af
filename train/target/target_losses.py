"""Losses of a target: likelihood and unlikelihood over the vocabulary.

The unlikelihood terms are those of Welleck et al. 2020, "Neural Text Generation with Unlikelihood Training": besides
its label a position may have negative tokens c, which cost -log(1 - p(c)). The softmax over 32,128 tokens is most of a
small T5's memory traffic, so projection, loss and gradient are formed together, a block of positions at a time.
"""

from __future__ import annotations

import torch

from foredraft.train.data.pairs import IGNORE, PAD
from foredraft.train.target.greedy_output import greedy_output

# 1 - p counts as at least this much: the loss of a certain repetition stays finite.
CERTAIN = 1e-5
BLOCK = 256


def vocabulary_loss(
    hidden: torch.Tensor,
    embedding: torch.Tensor,
    labels: torch.Tensor,
    likelihood: float = 1.0,
    penalty: float = 0.0,
    candidates: torch.Tensor | None = None,
    negative: torch.Tensor | None = None,
    dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    """Mean over N positions of ``likelihood * -log p(label) + penalty * sum over negatives c of -log(1 - p(c))``.

    ``hidden`` [N, C] and ``embedding`` [V, C] are multiplied in ``dtype``; ``labels`` [N] int64; ``candidates`` [N, M]
    int64 token ids of which the ones where ``negative`` [N, M] is true are penalised. Differentiable once, in
    ``hidden`` and ``embedding``.
    """
    if candidates is None:
        candidates = labels.new_zeros(len(labels), 0)
        negative = candidates.bool()
    return _VocabularyLoss.apply(hidden, embedding, labels, likelihood, penalty, candidates, negative, dtype)


class _VocabularyLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, embedding, labels, likelihood, penalty, candidates, negative, dtype):
        rows, table = hidden.detach().to(dtype), embedding.detach().to(dtype)
        count = len(rows)
        slopes = torch.empty(count, len(table), dtype=dtype, device=rows.device)  # d loss / d logits
        logits = torch.empty(min(BLOCK, count), len(table), dtype=dtype, device=rows.device)
        work = torch.empty_like(logits, dtype=torch.promote_types(dtype, torch.float32))
        total = torch.zeros((), device=rows.device)
        for start in range(0, count, BLOCK):
            part = slice(start, min(start + BLOCK, count))
            size = part.stop - start
            probability = work[:size].copy_(torch.mm(rows[part], table.T, out=logits[:size]))
            probability.sub_(probability.amax(-1, keepdim=True)).exp_()
            probability.div_(probability.sum(-1, keepdim=True))
            label = labels[part, None]
            total -= likelihood * probability.gather(1, label).clamp_min(1e-37).log().sum()
            harm = probability.gather(1, candidates[part])
            rest = (1 - harm).clamp_min(CERTAIN)
            odds = torch.where(negative[part], harm / rest, 0.0)
            total -= penalty * torch.where(negative[part], rest.log(), 0.0).sum()
            probability *= likelihood - penalty * odds.sum(1, keepdim=True)
            probability.scatter_add_(1, candidates[part], penalty * odds)
            probability.scatter_add_(1, label, torch.full_like(label, -likelihood, dtype=probability.dtype))
            slopes[part] = probability.div_(count)
        if ctx.needs_input_grad[0] or ctx.needs_input_grad[1]:
            ctx.save_for_backward((slopes @ table).to(hidden.dtype), (slopes.T @ rows).to(embedding.dtype))
        return total / max(count, 1)

    @staticmethod
    def backward(ctx, upstream):
        hidden_slope, embedding_slope = ctx.saved_tensors
        return upstream * hidden_slope, upstream * embedding_slope, None, None, None, None, None, None


def earlier_tokens(labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Candidates of token-level unlikelihood (their eq. 3) for the N scored positions of ``labels`` [B, T], row by row.

    Returns ids [N, T] int64 and [N, T] bool: each distinct earlier token of the target that is not the label itself.
    """
    scored = labels != IGNORE
    rows, columns = scored.nonzero(as_tuple=True)  # [N], [N]
    same = labels[:, :, None] == labels[:, None, :]  # [B, T, T]
    first = ~torch.tril(same, diagonal=-1).any(-1) & scored
    positions = torch.arange(labels.shape[1], device=labels.device)
    negative = first[rows] & (positions < columns[:, None]) & ~same[rows, columns]
    return labels.clamp_min(0)[rows], negative


def repeated_ngrams(tokens: torch.Tensor, n: int = 4) -> torch.Tensor:
    """[B, T] bool: the position is in an ``n``-gram of its row that occurred in that row before (their section 5.2).

    ``tokens`` [B, T] ends a row with -100.
    """
    mask = torch.zeros(tokens.shape, dtype=torch.bool)
    for b, row in enumerate(tokens.tolist()):
        seen = set()
        for start in range(len(row) - n + 1):
            gram = tuple(row[start : start + n])
            if IGNORE in gram:
                break
            if gram in seen:
                mask[b, start : start + n] = True
            seen.add(gram)
    return mask.to(tokens.device)


def scored_hidden(model, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """[N, C]: what the vocabulary projection reads at the N scored positions of the batch, row by row."""
    encoded = model.encoder(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).last_hidden_state
    hidden = model.decoder(
        input_ids=batch["decoder_input_ids"],
        encoder_hidden_states=encoded,
        encoder_attention_mask=batch["attention_mask"],
        use_cache=False,
    ).last_hidden_state
    hidden = hidden[batch["labels"] != IGNORE]
    return hidden * model.config.d_model**-0.5 if model.config.scale_decoder_outputs else hidden


def target_loss(model, batch: dict[str, torch.Tensor], bf16: bool = False, unlikelihood: float = 0.0) -> torch.Tensor:
    """Mean negative log-likelihood of the labels in nats, plus ``unlikelihood`` times the token-level term."""
    labels = batch["labels"]
    candidates, negative = earlier_tokens(labels) if unlikelihood else (None, None)
    with torch.autocast(labels.device.type, dtype=torch.bfloat16, enabled=bf16):
        hidden = scored_hidden(model, batch)
    return vocabulary_loss(
        hidden,
        model.lm_head.weight,
        labels[labels != IGNORE],
        penalty=unlikelihood,
        candidates=candidates,
        negative=negative,
        dtype=torch.bfloat16 if bf16 else torch.float32,
    )


def repetition_loss(model, batch: dict[str, torch.Tensor], longest: int, bf16: bool = False) -> torch.Tensor:
    """Sequence-level unlikelihood of the repeated 4-grams in the model's own greedy output over the batch's sources."""
    labels = greedy_output(model, batch, longest)
    scored = labels != IGNORE
    start = labels.new_full((len(labels), 1), model.config.decoder_start_token_id)
    before = torch.cat([start, labels[:, :-1]], 1)
    own = {**batch, "decoder_input_ids": before.masked_fill(before == IGNORE, PAD), "labels": labels}
    with torch.autocast(labels.device.type, dtype=torch.bfloat16, enabled=bf16):
        hidden = scored_hidden(model, own)
    return vocabulary_loss(
        hidden,
        model.lm_head.weight,
        labels[scored],
        likelihood=0.0,
        penalty=1.0,
        candidates=labels[scored][:, None],
        negative=repeated_ngrams(labels)[scored][:, None],
        dtype=torch.bfloat16 if bf16 else torch.float32,
    )
