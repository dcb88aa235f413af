"""The copy initialisation of a target: two induction circuits written into the attention of a fresh T5.

A small T5 learns to copy from its source very late, and then repeats itself: after a sentence was copied it is copied again.
Both have known remedies in attention, an induction head (Olsson et al. 2022, "In-context Learning and Induction Heads"), and
attention can be initialised near a useful function (Trockman and Kolter 2023, "Mimetic Initialization of Self-Attention
Layers"). Here both circuits are written into the weights, which remain trainable.

With source x, decoder input y, and the widths C of the model and D of a head:

- The last D dimensions of the embedding are empty: two slots of D/2. The two dimensions before them are 1 for every token
  but `<pad>`, and a mark for `<pad>`, with which every output begins. The rest is the body.
- Encoder layer 0 writes P1 x[j-1] to the first slot and P2 x[j-2] to the second, by relative position alone.
- Decoder layer 0 writes P2 y[t-2] to the first slot and P2 y[t-1] to the second.
- COPY, in decoder layer 1: a cross-attention finds the j with x[j-1] = y[t] and x[j-2] = y[t-1], and adds the body of x[j].
- REPEL, before it: a self-attention finds the j with y[j-1] = y[t] and y[j-2] = y[t-1], and subtracts a part of the body of
  y[j], so that no three tokens are repeated. Without such a j it attends to the start token, which has no body. What it
  subtracts is orthogonal to P1, with which COPY compares.

P1 and P2 have D/2 orthonormal rows each over the body.
"""

from __future__ import annotations

import torch

from foredraft.errors import UserError

# Relative-bias logit of the heads that attend to one earlier position; exp(12) outweighs a few hundred other positions.
LOOK_BACK = 12.0
# Scales of the halves of COPY's query: the present token decides, the token before it breaks ties.
CURRENT, BEFORE = 0.6, 0.45
# Weight of the copied token in the residual stream, larger than that of the present token.
COPY = 4.0
# REPEL: scale of the query, weight of what it subtracts, logit at the start token (above that of one matching token and
# below that of two), and its heads. Chosen on validation articles before training.
SEEN, SUBTRACT, REST = 0.5, 5.0, 9.0
REPEL_HEADS = (2, 3)
# Scale of all other branches, so that the circuits dominate at first.
OTHER = 0.3


@torch.no_grad()
def copy_init(model, seed: int = 0) -> None:
    """Write the circuits into a model, in place.

    Parameters
    ----------
    model
        A transformers T5ForConditionalGeneration in float32, with tied embeddings, two or more decoder layers, four or more
        heads, and d_model >= 4 d_kv.
    seed
        Seed of the random weights.

    Raises
    ------
    UserError
        The model's geometry is unsuitable.
    """
    config = model.config
    width, head = config.d_model, config.d_kv
    if not config.tie_word_embeddings or config.num_decoder_layers < 2 or config.num_heads < 4 or width < 4 * head:
        raise UserError(
            "--init copy needs tied embeddings, 2 or more decoder layers, 4 or more heads and d_model >= 4 * d_kv; "
            f"this geometry has tied={config.tie_word_embeddings}, {config.num_decoder_layers} decoder layers, "
            f"{config.num_heads} heads, d_model {width}, d_kv {head}: use --init random"
        )
    rng = torch.Generator().manual_seed(seed)
    slot, body = head // 2, width - head - 2
    always, begin = body, body + 1
    first, second = slice(width - head, width - slot), slice(width - slot, width)
    encoder = [block.layer for block in model.encoder.block]
    decoder = [block.layer for block in model.decoder.block]

    for parameter in model.parameters():
        if parameter.dim() == 2 and parameter is not model.shared.weight:
            parameter.copy_(torch.randn(parameter.shape, generator=rng) * parameter.shape[1] ** -0.5)
    branches = [layers[0].SelfAttention.o for layers in encoder + decoder]
    branches += [layers[1].EncDecAttention.o for layers in decoder]
    branches += [layers[-1].DenseReluDense.wo for layers in encoder + decoder]
    for branch in branches:
        branch.weight.mul_(OTHER)

    embedding = model.shared.weight
    embedding.copy_(torch.randn(embedding.shape, generator=rng))
    embedding[:, body:] = 0
    embedding[:, always] = 1
    embedding[config.pad_token_id] = 0
    embedding[config.pad_token_id, begin] = body**0.5

    rows = torch.linalg.qr(torch.randn(body, 2 * slot, generator=rng)).Q.T  # [D, body], orthonormal
    p1, p2 = rows[:slot], rows[slot:]
    unseen = torch.linalg.qr(torch.cat([p1.T, torch.randn(body, body - slot, generator=rng)], 1)).Q.T[slot:]

    _look_back(encoder, 0, 1, p1, first, head)
    _look_back(encoder, 1, 2, p2, second, head)
    _look_back(decoder, 0, 1, p2, second, head)
    _look_back(decoder, 1, 2, p2, first, head)

    eye = torch.eye(slot)
    repel = decoder[1][0].SelfAttention
    for n, index in enumerate(REPEL_HEADS):
        span = slice(index * head, (index + 1) * head)
        query, key, value = _cleared(repel, span)
        # all layers of a stack share the relative bias of the first
        decoder[0][0].SelfAttention.relative_attention_bias.weight[:, index] = 0
        query[:slot, :body], query[slot:, second] = SEEN * p2, SEEN * eye
        key[:slot, second], key[slot:, first] = SEEN * eye, SEEN * eye
        # the last dimension attends to the start token, whose mark is about sqrt(C) after the RMS norm
        query[-1], key[-1] = 0, 0
        query[-1, always], key[-1, begin] = REST / width**0.5, 1
        part = unseen[n * head : (n + 1) * head]
        value[: len(part), :body] = part
        repel.o.weight[:body, span.start : span.start + len(part)] = -SUBTRACT * part.T

    copy = decoder[1][1].EncDecAttention
    for index in range(config.num_heads):
        span = slice(index * head, (index + 1) * head)
        query, key, value = _cleared(copy, span)
        query[:slot, :body], query[slot:, second] = CURRENT * p1, BEFORE * eye
        key[:slot, first], key[slot:, second] = CURRENT * eye, BEFORE * eye
        carried = torch.arange(min(span.start, body), min(span.stop, body))
        value[carried - span.start, carried] = 1
        copy.o.weight[carried, carried] = COPY


def _cleared(attention, span: slice) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Set a head (rows `span` of the projections) to zero; returns its query, key and value weights [D, C] to write to."""
    attention.o.weight[:, span] = 0
    return tuple(projection.weight[span].zero_() for projection in (attention.q, attention.k, attention.v))


def _look_back(stack: list, index: int, bucket: int, projection: torch.Tensor, into: slice, head: int) -> None:
    """Make head `index` of the first layer attend to one relative position and write its `projection` to the slot `into`.

    The other layers share the relative bias, so the output of the same head there is set to zero.
    """
    span = slice(index * head, (index + 1) * head)
    attention = stack[0][0].SelfAttention
    _, _, value = _cleared(attention, span)
    attention.relative_attention_bias.weight[:, index] = 0
    attention.relative_attention_bias.weight[bucket, index] = LOOK_BACK
    slot, body = projection.shape
    value[:slot, :body] = projection
    attention.o.weight[into, span.start : span.start + slot] = torch.eye(slot)
    for layers in stack[1:]:
        layers[0].SelfAttention.o.weight[:, span] = 0
