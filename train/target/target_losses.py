"""Losses of a target: likelihood and unlikelihood (Welleck et al. 2020).

Besides its label a position may have negative tokens c, which add -log(1 - p(c)). The softmax over V = 32,128 tokens is most
of a small T5's memory traffic, so projection, loss and gradient are computed together, for BLOCK positions at a time.
"""

from __future__ import annotations

import torch

from foredraft.train.data.pairs import IGNORE, PAD
from foredraft.train.target.greedy_output import greedy_output

# Lower limit of 1 - p, so that the loss of a certain repetition is finite.
MIN_COMPLEMENT = 1e-5
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
    """Mean over N positions of likelihood (-log p(label)) + penalty (sum over negative tokens c of -log(1 - p(c))).

    Parameters
    ----------
    hidden, embedding
        [N, C] and [V, C], whose product are the logits.
    labels
        [N] int64.
    likelihood, penalty
        Weights of the two terms.
    candidates, negative
        [N, M] int64 tokens, of which those are negative where [N, M] bool is true.
    dtype
        Type of the multiplications.

    Returns
    -------
    Tensor
        A scalar in nats, differentiable once, in `hidden` and `embedding`.
    """
    if candidates is None:
        candidates = labels.new_zeros(len(labels), 0)
        negative = candidates.bool()
    return _VocabularyLoss.apply(hidden, embedding, labels, likelihood, penalty, candidates, negative, dtype)


class _VocabularyLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, embedding, labels, likelihood, penalty, candidates, negative, dtype):
        inputs, table = hidden.detach().to(dtype), embedding.detach().to(dtype)
        count = len(inputs)
        gradients = torch.empty(count, len(table), dtype=dtype, device=inputs.device)  # d loss / d logits
        logits = torch.empty(min(BLOCK, count), len(table), dtype=dtype, device=inputs.device)
        work = torch.empty_like(logits, dtype=torch.promote_types(dtype, torch.float32))
        total = torch.zeros((), device=inputs.device)
        for start in range(0, count, BLOCK):
            part = slice(start, min(start + BLOCK, count))
            size = part.stop - start
            probability = work[:size].copy_(torch.mm(inputs[part], table.T, out=logits[:size]))
            probability.sub_(probability.amax(-1, keepdim=True)).exp_()
            probability.div_(probability.sum(-1, keepdim=True))
            label = labels[part, None]
            total -= likelihood * probability.gather(1, label).clamp_min(1e-37).log().sum()
            negative_p = probability.gather(1, candidates[part])
            rest = (1 - negative_p).clamp_min(MIN_COMPLEMENT)
            odds = torch.where(negative[part], negative_p / rest, 0.0)
            total -= penalty * torch.where(negative[part], rest.log(), 0.0).sum()
            probability *= likelihood - penalty * odds.sum(1, keepdim=True)
            probability.scatter_add_(1, candidates[part], penalty * odds)
            probability.scatter_add_(1, label, torch.full_like(label, -likelihood, dtype=probability.dtype))
            gradients[part] = probability.div_(count)
        if ctx.needs_input_grad[0] or ctx.needs_input_grad[1]:
            ctx.save_for_backward((gradients @ table).to(hidden.dtype), (gradients.T @ inputs).to(embedding.dtype))
        return total / max(count, 1)

    @staticmethod
    def backward(ctx, upstream):
        hidden_gradient, embedding_gradient = ctx.saved_tensors
        return upstream * hidden_gradient, upstream * embedding_gradient, None, None, None, None, None, None


def earlier_tokens(labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Candidates of token-level unlikelihood (Welleck et al. 2020, eq. 3).

    Parameters
    ----------
    labels
        [B, T] int64 with N scored positions.

    Returns
    -------
    candidates : Tensor
        [N, T] int64.
    negative : Tensor
        [N, T] bool, true for each distinct earlier token of the sequence that is not the label.
    """
    scored = labels != IGNORE
    sequences, positions = scored.nonzero(as_tuple=True)  # [N], [N]
    same = labels[:, :, None] == labels[:, None, :]  # [B, T, T]
    first = ~torch.tril(same, diagonal=-1).any(-1) & scored
    earlier = torch.arange(labels.shape[1], device=labels.device) < positions[:, None]  # [N, T]
    negative = first[sequences] & earlier & ~same[sequences, positions]
    return labels.clamp_min(0)[sequences], negative


def repeated_ngrams(tokens: torch.Tensor, n: int = 4) -> torch.Tensor:
    """[B, T] bool: the position is in an n-gram that occurred earlier in its sequence (Welleck et al. 2020, section 5.2).

    tokens [B, T] int64, -100 past the end of a sequence.
    """
    mask = torch.zeros(tokens.shape, dtype=torch.bool)
    for b, sequence in enumerate(tokens.tolist()):
        seen = set()
        for start in range(len(sequence) - n + 1):
            gram = tuple(sequence[start : start + n])
            if IGNORE in gram:
                break
            if gram in seen:
                mask[b, start : start + n] = True
            seen.add(gram)
    return mask.to(tokens.device)


def scored_hidden(model, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """The input [N, C] of the vocabulary projection at the N scored positions of the batch, sequence after sequence."""
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
    """Mean negative log-likelihood of the labels in nats, plus `unlikelihood` times token-level unlikelihood."""
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
    """Sequence-level unlikelihood of repeated 4-grams in the model's greedy output for the batch's sources."""
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
