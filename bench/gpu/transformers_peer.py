"""transformers on a GPU at a real model's sizes, random weights: eager, and with a static cache and torch.compile."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from foredraft.bench.gpu.sizes import Sizes, microseconds
from foredraft.bench.harness.peers.step_peers import timed
from foredraft.bench.harness.steps import random_source

# arguments of `generate` for each engine
ENGINES = {"eager": {}, "static + compile": {"cache_implementation": "static"}}


def measure_peers(sizes: Sizes) -> Iterator[dict]:
    """Microseconds a token of transformers on the same sizes in bf16.

    One request: eager, and with a static cache and torch.compile. Larger batches, at the large sizes: eager only, because
    each batch size would compile for long.
    """
    one = [(geometry, sizes.batches[:1], ENGINES) for geometry in sizes.geometries]
    for geometry, batches, engines in one + [(geometry, sizes.batches[1:], ("eager",)) for geometry in sizes.large]:
        model = _model(sizes, geometry)
        for name in engines:
            for B in batches:
                known = {"geometry": geometry, "engine": f"transformers {name}", "batch": B}
                yield known | _peer(sizes, model, B, ENGINES[name])
        del model


def _model(sizes: Sizes, geometry: str):
    from transformers import GenerationConfig, T5Config, T5ForConditionalGeneration

    with torch.device(sizes.device):
        model = T5ForConditionalGeneration(T5Config(**sizes.geometries[geometry])).to(torch.bfloat16).eval()
    model.generation_config = GenerationConfig(decoder_start_token_id=0, eos_token_id=None, pad_token_id=0)
    return model


def _peer(sizes: Sizes, model, B: int, options: dict) -> dict:
    vocabulary = model.config.vocab_size
    ids = torch.tensor([random_source(sizes.source, vocabulary)] * B, device=sizes.device)

    @torch.inference_mode()
    def run(source: Tensor, tokens: int) -> list[int]:
        out = model.generate(source, attention_mask=torch.ones_like(source), max_new_tokens=tokens, min_new_tokens=tokens,
                             do_sample=False, **options)
        return out[0, 1:].tolist()

    short, long = sizes.new_tokens // 4, sizes.new_tokens
    try:
        # the first call compiles
        taken = [timed(run, ids, short, long)[0] for _ in range(4)][1:]
    except Exception as error:  # another library may raise anything; it is reported
        return {"absent": f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"}
    return {"us": microseconds(taken)}
