"""The embedded target from end to end, with its real acceptance, by drafter."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path

from foredraft.bench.gpu.sizes import Sizes
from foredraft.bench.harness.cases import sample_texts
from foredraft.bench.harness.measure import spread
from foredraft.engine.generate import Model
from foredraft.engine.load import load
from foredraft.errors import UserError


def measure_family(sizes: Sizes) -> Iterator[dict]:
    """Untrained drafters, greedily, at every batch size: tokens a second of decoding, and tokens per step."""
    plain = _plain(sizes)
    methods = {"plain": (plain, 0)} | {name: (plain.with_drafter(name), sizes.draft_tokens) for name in ("lookup", "ngram")}
    yield from _decoded(sizes, methods, sizes.batches, (0.0,))


def measure_drafters(sizes: Sizes) -> Iterator[dict]:
    """Trained drafters and lookup at temperature 0 and 1, at two batch sizes; whether point masses give plain decoding's
    tokens."""
    plain = _plain(sizes)
    methods = {"plain": (plain, 0)}
    for folder in sorted(path.parent for path in Path(sizes.drafters).glob("*/config.json")):
        try:
            methods[folder.name] = plain.with_drafter(folder), sizes.draft_tokens
        except UserError as error:
            yield {"method": folder.name, "absent": str(error)}
    for name in ("lookup", "lookup+ngram"):
        methods[name] = plain.with_drafter(name), sizes.draft_tokens
    differ = []
    for row in _decoded(sizes, methods, sizes.batches[:2], (0.0, 1.0)):
        if row["same_tokens"] is False:
            differ.append(f"{row['method']}, batch {row['batch']}, temperature {row['temperature']:g}")
        yield row
    yield {"check": "point-mass drafts give plain decoding's tokens", "passed": not differ, "said": "; ".join(differ)}


def _plain(sizes: Sizes) -> Model:
    return load(drafter=None, device=sizes.device, dtype=sizes.dtype, weights="bf16")


def _decoded(sizes: Sizes, methods: dict[str, tuple[Model, int]], batches: Sequence[int],
             temperatures: Sequence[float]) -> Iterator[dict]:
    """A record for each batch size, temperature and method (a model and its K), interleaved; "plain" is the first.

    `same_tokens`: None for drafters that sample from a distribution of their own; other methods whose tokens differ from
    plain decoding's have no speed-up.
    """
    texts = [text for _, text in sample_texts()[: sizes.texts]]
    for batch, temperature in product(batches, temperatures):
        inputs = (texts * -(-batch // len(texts)))[: max(batch, len(texts))]
        sampling = dict(do_sample=True, temperature=temperature, seed=5) if temperature else {}
        outputs, rates = {}, {name: [] for name in methods}
        for repeat in range(1 + min(3, sizes.repeats)):
            for name, (model, K) in methods.items():
                out = outputs[name] = model.generate(
                    inputs, max_new_tokens=2 * sizes.new_tokens, draft_tokens=K, batch_size=batch, **sampling)
                # the first pass compiles and captures
                if repeat:
                    rates[name].append(out.stats.tokens_per_second)
        for name, out in outputs.items():
            same = out.token_ids == outputs["plain"].token_ids
            comparable = not temperature or name in ("plain", "lookup", "lookup+ngram")
            rate = spread(rates[name])["median"]
            yield {"batch": batch, "temperature": temperature, "method": name, "tokens_per_second": rate,
                   "same_tokens": same if comparable else None,
                   "speed_up": rate / spread(rates["plain"])["median"] if same or not comparable else None,
                   "tokens_per_step": out.stats.tokens_per_step, "accepted_over_tested": out.stats.acceptance_rate}
