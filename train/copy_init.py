"""The copy-ready initialisation: a two-token induction circuit written into a fresh T5.

A small T5 trained from scratch learns to copy from its source very late. The circuit that copies is known (an
induction head: Olsson et al. 2022, "In-context Learning and Induction Heads"), and attention can be initialised near a
useful function (Trockman and Kolter 2023, "Mimetic Initialization of Self-Attention Layers"), so it is written down
here and everything stays trainable. With source x, decoder input y and the widths C of the model and D of a head:

- the embedding keeps its last D dimensions empty: two slots of D/2; the other C - D dimensions are the body;
- encoder layer 0 writes P1 x[j-1] into the first slot and P2 x[j-2] into the second, by relative position alone;
- decoder layer 0 writes P2 y[t-1] into the second slot;
- one cross-attention looks for the j with x[j-1] = y[t] and x[j-2] = y[t-1] and returns the body of x[j].

P1 and P2 are D/2 orthonormal rows each over the body. After training starts nothing distinguishes these weights.
"""

from __future__ import annotations

import torch

from foredraft.errors import UserError

# Relative-bias logit of the "previous token" heads: exp(12) against at most a few hundred other positions.
LOOK_BACK = 12.0
# Scales of the query's two halves: the current token decides, the one before it breaks ties.
CURRENT, BEFORE = 0.6, 0.45
# Strength with which the copied token enters the residual stream.
COPY = 10.0
SEEN, REPEL = 0.4, 10.0
# Every other branch starts small, so that the circuit is heard at step zero.
OTHER = 0.3


@torch.no_grad()
def copy_init(model, seed: int = 0) -> None:
    """Write the copy circuit into ``model`` (a transformers T5ForConditionalGeneration, fp32), in place.

    Needs tied embeddings, two or more decoder layers and heads, ``d_model >= 2 * d_kv``. Deterministic in ``seed``.
    """
    config = model.config
    width, head = config.d_model, config.d_kv
    if not config.tie_word_embeddings or config.num_decoder_layers < 2 or config.num_heads < 2 or width < 2 * head:
        raise UserError(
            "copy-ready initialisation needs tied embeddings, 2+ decoder layers, 2+ heads and d_model >= 2 * d_kv; "
            f"this geometry has tied={config.tie_word_embeddings}, {config.num_decoder_layers} decoder layers, "
            f"{config.num_heads} heads, d_model {width}, d_kv {head}: use --init random"
        )
    draw = torch.Generator().manual_seed(seed)
    body, slot = width - head, head // 2
    first, second = slice(body, body + slot), slice(body + slot, width)
    half, other_half = slice(0, slot), slice(slot, head)

    for parameter in model.parameters():
        if parameter.dim() == 2 and parameter is not model.shared.weight:
            fan_in = parameter.shape[1]
            parameter.copy_(torch.randn(parameter.shape, generator=draw) * fan_in**-0.5)
    model.shared.weight.copy_(torch.randn(model.shared.weight.shape, generator=draw))
    model.shared.weight[:, body:] = 0

    encoder = [block.layer for block in model.encoder.block]
    decoder = [block.layer for block in model.decoder.block]
    branches = [layers[0].SelfAttention.o for layers in encoder + decoder]
    branches += [layers[1].EncDecAttention.o for layers in decoder]
    branches += [layers[-1].DenseReluDense.wo for layers in encoder + decoder]
    for branch in branches:
        branch.weight.mul_(OTHER)

    rows = torch.linalg.qr(torch.randn(body, 2 * slot, generator=draw)).Q.T  # [2 * D/2, body], orthonormal rows
    p1, p2 = rows[:slot], rows[slot:]

    def look_back(attention, index, bucket, projection, into):
        """Head ``index`` attends to one fixed offset and writes ``projection`` of what stands there into a slot."""
        span = slice(index * head, (index + 1) * head)
        attention.q.weight[span] = 0
        attention.k.weight[span] = 0
        attention.relative_attention_bias.weight[:, index] = 0
        attention.relative_attention_bias.weight[bucket, index] = LOOK_BACK
        attention.v.weight[span] = 0
        attention.v.weight[span.start : span.start + slot, :body] = projection
        attention.o.weight[:, span] = 0
        attention.o.weight[into, span.start : span.start + slot] = torch.eye(slot)

    look_back(encoder[0][0].SelfAttention, 0, 1, p1, first)
    look_back(encoder[0][0].SelfAttention, 1, 2, p2, second)
    look_back(decoder[0][0].SelfAttention, 0, 1, p2, second)
    # Later layers share layer 0's relative bias, so the same heads would look back again there: they start silent.
    for layers in encoder[1:]:
        layers[0].SelfAttention.o.weight[:, : 2 * head] = 0
    for layers in decoder[1:]:
        layers[0].SelfAttention.o.weight[:, :head] = 0

    if config.num_heads >= 3:
        look_back(decoder[0][0].SelfAttention, 1, 2, p2, first)
        for layers in decoder[1:]:
            layers[0].SelfAttention.o.weight[:, head : 2 * head] = 0
        repel = decoder[1][0].SelfAttention
        span = slice(2 * head, 3 * head)
        for weights in (repel.q.weight[span], repel.k.weight[span], repel.v.weight[span]):
            weights.zero_()
        repel.o.weight[:, span] = 0
        repel.q.weight[span][half, :body] = SEEN * p2
        repel.q.weight[span][other_half, second] = SEEN * torch.eye(slot)
        repel.k.weight[span][half, second] = SEEN * torch.eye(slot)
        repel.k.weight[span][other_half, first] = SEEN * torch.eye(slot)
        rest = torch.linalg.qr(torch.randn(body, head, generator=draw)).Q.T
        repel.v.weight[span][:, :body] = rest
        repel.o.weight[:body, span] = -REPEL * rest.T

    match = decoder[1][1].EncDecAttention
    match.v.weight.zero_()
    match.o.weight.zero_()
    for index in range(config.num_heads):
        span = slice(index * head, (index + 1) * head)
        query, key = match.q.weight[span], match.k.weight[span]
        query.zero_()
        key.zero_()
        query[half, :body] = CURRENT * p1
        query[other_half, second] = BEFORE * torch.eye(slot)
        key[half, first] = CURRENT * torch.eye(slot)
        key[other_half, second] = BEFORE * torch.eye(slot)
        carried = slice(index * head, min((index + 1) * head, body))
        size = carried.stop - carried.start
        if size > 0:
            match.v.weight[span][:size, carried] = torch.eye(size)
            match.o.weight[carried, span.start : span.start + size] = COPY * torch.eye(size)
