"""alpha, the acceptance rate of Leviathan et al. 2023: E[sum min(p, q)] over the prefixes of the target's output."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch

from foredraft.engine.state import DecodeState, Draft, Verification
from foredraft.train.drafter.divergences import acceptance_probability


def alpha_tv(model, sources: Sequence[Sequence[int]], outputs: Sequence[Sequence[int]], temperature: float,
             batch_size: int = 8) -> float:
    """alpha = E[sum_x min(p(x), q(x))] = 1 - E[total variation(p, q)] over every prefix of the target's own output.

    Both models are led along `outputs` (plain decoding at the same temperature) one token at a time. Every prefix counts
    once, from the empty one to the one before the end token. q is the drafter's distribution of the next token: a softmax,
    or a point mass, for which the sum is p(draft). A prefix without a draft counts 0. At temperature 0 p is the point mass
    on the argmax. alpha does not depend on K; accepted / tested of a decode does, as it sees only prefixes where a draft was
    tested (Leviathan et al. 2023, Corollary 3.6).
    """
    covered, prefixes = overlaps(model.target, [model.drafter], sources, outputs, temperature, batch_size)[0].sum(0)
    return float(covered / prefixes)


@torch.inference_mode()
def overlaps(target, drafters: Sequence, sources: Sequence[Sequence[int]], outputs: Sequence[Sequence[int]],
             temperature: float, batch_size: int = 8, on_batch: Callable[[], None] = lambda: None) -> np.ndarray:
    """alpha_tv's sums for each drafter and article [D, N, 2]: of min(p, q), and the number of prefixes.

    The target is led along its outputs once for all drafters.
    """
    parts = []
    for start in range(0, len(sources), batch_size):
        part = slice(start, start + batch_size)
        # tensors are created on the target's device
        with target.device:
            parts.append(_batch(target, drafters, sources[part], outputs[part], temperature))
        on_batch()
    return np.concatenate(parts, 1)


def interval(sums: np.ndarray, resamples: int = 2000) -> tuple[float, float]:
    """95 % bootstrap interval, over articles, of the ratio of the two columns' totals; sums [N, 2]."""
    count = len(sums)
    drawn = np.random.default_rng(0).multinomial(count, np.full(count, 1 / count), size=resamples) @ sums
    low, high = np.percentile(drawn[:, 0] / drawn[:, 1], [2.5, 97.5])
    return float(low), float(high)


def _batch(target, drafters, sources, outputs, temperature: float) -> np.ndarray:
    """The sums of one batch [D, B, 2]."""
    B, slots, longest = len(sources), range(len(sources)), max(map(len, outputs))
    vectors = [torch.tensor(list(source)) for source in sources]
    # two past the longest output: a drafter may still propose before the last token
    target.reserve(B, longest + 2, 1, max(map(len, sources)))
    encoded = target.admit(slots, vectors)
    for drafter in drafters:
        drafter.admit(slots, vectors, encoded)
    state = DecodeState(
        limits=torch.full((B,), longest + 2), draft_tokens=torch.ones(B, dtype=torch.int64),
        temperature=torch.full((B,), float(temperature)), top_k=torch.zeros(B, dtype=torch.int64), top_p=torch.ones(B),
        seeds=torch.arange(B), start_token=target.start_token, end_token=target.end_token,
        width=target.config.d_model)
    covered = torch.zeros(len(drafters), B, dtype=torch.float64)
    for position in range(longest):
        # a sequence whose output has ended reads nothing more
        forced = torch.tensor([ids[position] if position < len(ids) else target.end_token for ids in outputs])
        running = torch.tensor([position < len(ids) for ids in outputs])
        drafts = [drafter.draft(state) for drafter in drafters]
        nothing = Draft.empty(B, 1, target.device)
        hidden = target.decode(*state.inputs(nothing))
        p = None if temperature == 0 else torch.softmax(target.logits(hidden)[:, 0].float() / temperature, -1)
        for sums, draft in zip(covered, drafts, strict=True):
            overlap = (draft.tokens[:, 0] == forced).float() if p is None else _overlap(p, draft)
            sums += torch.where(running & (draft.lengths > 0), overlap, 0.0)
        verification = Verification(torch.stack((forced, forced), 1), torch.ones(B, dtype=torch.int64))
        state.commit(nothing, verification, hidden)
    target.release(slots)
    for drafter in drafters:
        drafter.release(slots)
    prefixes = np.array([len(ids) for ids in outputs], float)
    return np.stack((covered.numpy(), np.broadcast_to(prefixes, covered.shape)), 2)


def _overlap(p: torch.Tensor, draft: Draft) -> torch.Tensor:
    """sum_x min(p, q) [B] for p [B, V] and the first column of a draft."""
    overlap = p.gather(1, draft.tokens[:, :1])[:, 0]
    if draft.logits is None:
        return overlap
    q = torch.softmax(draft.logits[:, 0].float(), -1)
    return torch.where(draft.dense, acceptance_probability(p, q), overlap)
