"""One step of beam search for one request, as transformers takes it, for batches of one request.

    values [k] float32, indices [k] int64   the best continuations (sampling/beam_candidates.py), k > n
    stopped    [k] bool                     continuations that a stopping criterion ends
    V, length, max_length  int              vocabulary; tokens of the beams so far and at most, the start token included
    end_tokens [E] int64                    -1 in unused columns
    length_penalty float, early_stopping int    0: False, 1: True, 2: "never"
    tokens     [n, T] int64, scores [n] float32, lineage [n, T] int32      in and out: the running beams
    finished_tokens, finished_scores, finished_lineage, finished_lengths [n] int64, is_finished [n] bool
                                            in and out: the hypotheses, best first; scores are divided by length^penalty
    improvable [1] bool                     in and out: whether a running beam may still become better than a hypothesis
    parents    [n] int64                    out: the beam that each new running beam continues
    returns    bool                         whether the search is over

`lineage` holds the beam, at each step, that a sequence continued. Sums are float32, and -1e9 marks what may not be chosen,
as in transformers, so that ties and roundings come out the same.
"""

from __future__ import annotations

import numpy as np

from foredraft.kernels.core.backend import njit
from foredraft.kernels.core.rows import copy_row

# Added to scores that may not be chosen.
NEVER = np.float32(-1e9)


def _best(values: np.ndarray, n: int) -> np.ndarray:
    return np.argsort(-values, kind="stable")[:n]


def beam_step_reference(values, indices, stopped, V, length, max_length, end_tokens, length_penalty, early_stopping, tokens,
                        scores, lineage, finished_tokens, finished_scores, finished_lineage, finished_lengths, is_finished,
                        improvable, parents) -> bool:
    n, k = len(scores), len(values)
    came_from, chosen = indices // V, indices % V
    hits = stopped | np.isin(chosen, end_tokens[end_tokens >= 0]) | (length + 1 >= max_length)
    candidates, candidate_lineage = tokens[came_from].copy(), lineage[came_from].copy()
    candidates[:, length], candidate_lineage[:, length - 1] = chosen, came_from
    running_values = values + hits.astype(np.float32) * NEVER
    running = _best(running_values, n)
    ends_now = hits & (np.arange(k) < n)
    penalised = values / np.float32(float(length) ** length_penalty)
    if early_stopping == 1 and is_finished.all():
        penalised = penalised + NEVER
    if not improvable[0]:
        penalised = penalised + NEVER
    penalised = penalised + (~ends_now).astype(np.float32) * NEVER
    merged = np.concatenate([finished_scores, penalised])
    kept = _best(merged, n)
    finished_tokens[:] = np.concatenate([finished_tokens, candidates])[kept]
    finished_lineage[:] = np.concatenate([finished_lineage, candidate_lineage])[kept]
    finished_lengths[:] = np.concatenate([finished_lengths, np.full(k, length + 1)])[kept]
    finished_scores[:] = merged[kept]
    is_finished[:] = np.concatenate([is_finished, ends_now])[kept]
    tokens[:], lineage[:], scores[:] = candidates[running], candidate_lineage[running], running_values[running]
    parents[:] = came_from[running]
    longest = max_length - 1 if early_stopping == 2 and length_penalty > 0 else length
    possible = scores[0] / np.float32(float(longest) ** length_penalty)
    worst = np.where(is_finished, finished_scores.min(), NEVER)
    improvable[0] = improvable[0] and bool((possible > worst).any())
    return bool(not improvable[0] or (early_stopping == 1 and is_finished.all()) or hits.all())


@njit()
def _best_loop(values, order):
    """Write the indices of the largest values to `order` [n], the lower index first among equals."""
    n, count = order.shape[0], 0
    for i in range(values.shape[0]):
        if count == n and not values[i] > values[order[n - 1]]:
            continue
        place = count if count < n else n - 1
        while place > 0 and values[order[place - 1]] < values[i]:
            order[place] = order[place - 1]
            place -= 1
        order[place] = i
        count = min(count + 1, n)


@njit()
def beam_step_numba(values, indices, stopped, V, length, max_length, end_tokens, length_penalty, early_stopping, tokens,
                    scores, lineage, finished_tokens, finished_scores, finished_lineage, finished_lengths, is_finished,
                    improvable, parents):
    n, k = scores.shape[0], values.shape[0]
    hits, running_values, all_hit = stopped.copy(), values.copy(), True
    for j in range(k):
        token = indices[j] % V
        for e in range(end_tokens.shape[0]):
            hits[j] = hits[j] or (token == end_tokens[e] and end_tokens[e] >= 0)
        hits[j] = hits[j] or length + 1 >= max_length
        if hits[j]:
            running_values[j] += NEVER
        else:
            all_hit = False
    all_finished = True
    for i in range(n):
        all_finished = all_finished and is_finished[i]
    divisor = np.float32(np.float64(length) ** length_penalty)
    merged = np.empty(n + k, np.float32)
    copy_row(finished_scores, merged)
    for j in range(k):
        value = values[j] / divisor
        if early_stopping == 1 and all_finished:
            value += NEVER
        if not improvable[0]:
            value += NEVER
        if not (hits[j] and j < n):
            value += NEVER
        merged[n + j] = value
    kept, running = np.empty(n, np.int64), np.empty(n, np.int64)
    _best_loop(merged, kept)
    _best_loop(running_values, running)
    old_tokens, old_lineage = tokens[:, : length + 1].copy(), lineage[:, :length].copy()
    before_tokens, before_lineage = finished_tokens.copy(), finished_lineage.copy()
    before_lengths, before_finished = finished_lengths.copy(), is_finished.copy()
    for i in range(n):
        j = kept[i]
        finished_scores[i] = merged[j]
        if j < n:
            finished_tokens[i], finished_lineage[i] = before_tokens[j], before_lineage[j]
            finished_lengths[i], is_finished[i] = before_lengths[j], before_finished[j]
        else:
            beam, token = indices[j - n] // V, indices[j - n] % V
            finished_tokens[i, :length], finished_tokens[i, length] = old_tokens[beam, :length], token
            finished_lineage[i, : length - 1], finished_lineage[i, length - 1] = old_lineage[beam, : length - 1], beam
            finished_lengths[i], is_finished[i] = length + 1, hits[j - n] and j - n < n
    for i in range(n):
        beam, token = indices[running[i]] // V, indices[running[i]] % V
        tokens[i, :length], tokens[i, length] = old_tokens[beam, :length], token
        lineage[i, : length - 1], lineage[i, length - 1] = old_lineage[beam, : length - 1], beam
        scores[i], parents[i] = running_values[running[i]], beam
    longest = max_length - 1 if early_stopping == 2 and length_penalty > 0 else length
    possible = scores[0] / np.float32(np.float64(longest) ** length_penalty)
    lowest, can_improve, all_finished = finished_scores[0], False, True
    for i in range(n):
        lowest = min(lowest, finished_scores[i])
        all_finished = all_finished and is_finished[i]
    for i in range(n):
        can_improve = can_improve or possible > (lowest if is_finished[i] else NEVER)
    improvable[0] = improvable[0] and can_improve
    return (not improvable[0]) or (early_stopping == 1 and all_finished) or all_hit


BEAM_STEP = {"reference": beam_step_reference, "numba": beam_step_numba}
