"""End-to-end timing of the device's drafters on the embedded target: trained ones if there are any, else untrained."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch

from foredraft.bench.gpu.sizes import Sizes
from foredraft.bench.harness.measure import spread
from foredraft.errors import UserError


def measure_drafters(sizes: Sizes) -> Iterator[dict]:
    """Tokens a second and per step at temperature 0 and 1, by drafter and batch size, interleaved.

    Tokens must equal plain decoding's, except for drafters that sample from their own distribution, whose tokens follow the
    same distribution.
    """
    from foredraft.bench.harness.cases import sample_texts
    from foredraft.engine.generate import load

    texts = [text for _, text in sample_texts()[: sizes.texts]]
    plain = load(drafter=None, device=sizes.device, dtype=sizes.dtype, weights="bf16")
    methods = {"plain": (plain, 0)}
    with tempfile.TemporaryDirectory() as scratch:
        for name, folder in _folders(sizes, plain.path, Path(scratch)).items():
            try:
                methods[name] = plain.with_drafter(folder), sizes.draft_tokens
            except UserError as error:
                yield {"method": name, "absent": str(error)}
    for name in ("lookup", "lookup+ngram"):
        methods[name] = plain.with_drafter(name), sizes.draft_tokens
    differ = []
    for batch in sizes.batches[:2]:
        inputs = (texts * -(-batch // len(texts)))[: max(batch, len(texts))]
        for temperature in (0.0, 1.0):
            distribution = dict(do_sample=True, temperature=temperature, seed=5) if temperature else {}
            outputs, rates = {}, {name: [] for name in methods}
            for repeat in range(1 + min(3, sizes.repeats)):
                for name, (model, K) in methods.items():
                    out = outputs[name] = model.generate(
                        inputs, max_new_tokens=2 * sizes.new_tokens, draft_tokens=K, batch_size=batch, **distribution)
                    # the first pass compiles and captures
                    if repeat:
                        rates[name].append(out.stats.tokens_per_second)
            for name, out in outputs.items():
                same = out.token_ids == outputs["plain"].token_ids
                is_point = not temperature or name in ("plain", "lookup", "lookup+ngram")
                if is_point and not same:
                    differ.append(f"{name}, batch {batch}, temperature {temperature:g}")
                rate = spread(rates[name])["median"]
                yield {"batch": batch, "temperature": temperature, "method": name, "tokens_per_second": rate,
                       "same_tokens": same if is_point else None,
                       "speed_up": rate / spread(rates["plain"])["median"] if same or not is_point else None,
                       "tokens_per_step": out.stats.tokens_per_step, "accepted_over_tested": out.stats.acceptance_rate}
    yield {"check": "point-mass drafts give plain decoding's tokens", "passed": not differ, "said": "; ".join(differ)}


def _folders(sizes: Sizes, target: Path, scratch: Path) -> dict[str, Path]:
    """Trained drafters of `sizes.drafters` by folder name; without any, untrained ones: the target's first two decoder
    layers, and an LSTM that copies."""
    from foredraft.engine.drafters.registry import model_class

    found = sorted(path.parent for path in Path(sizes.drafters).glob("*/config.json")) if sizes.drafters else []
    if found:
        return {folder.name: folder for folder in found}
    made = {}
    for kind in ("t5shallow", "lstm"):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = model_class(kind).from_target(target)
        name = f"{kind} (untrained)"
        made[name] = scratch / kind
        model.save(made[name])
    return made
