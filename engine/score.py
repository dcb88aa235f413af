"""Log-probabilities of given target texts, by teacher forcing.

A sequence of the batch belongs to one source at a time. The source is admitted once. Then its targets are read one after the
other, R query positions a pass, each target from position 0. When all are read, the next source is admitted.
"""

from __future__ import annotations

import math
import operator
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from foredraft.engine.inputs import check_inputs, cut_source, tokens_of
from foredraft.engine.params import BatchConfig
from foredraft.errors import UserError

if TYPE_CHECKING:
    from foredraft.engine.generate import Model
    from foredraft.engine.models.t5 import T5
    from foredraft.engine.models.t5_cuda import T5Cuda

# The most query positions of a sequence in one pass, and the most logits [B, R, V] of a pass (16 MB) where R is above 1.
MAX_POSITIONS, MAX_LOGITS = 16, 2**22


@dataclass
class Scores:
    """The results of `Model.score`, one entry for each target, in the order of sources and of their targets.

    Attributes
    ----------
    sums : list of float
        Natural logarithm of the probability of each target, given its source.
    token_log_probs : list of list of float
        Of each token, given the source and the tokens before it.
    token_ids : list of list of int
        The tokens that were scored.
    warnings : list of str
        Sources that were cut.
    """

    sums: list[float] = field(default_factory=list)
    token_log_probs: list[list[float]] = field(default_factory=list)
    token_ids: list[list[int]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def score(model: Model, sources: Any, targets: Any, config: BatchConfig) -> Scores:
    """`Model.score`, with checked settings."""
    scores, target, limit = Scores(), model.target, config.max_source or model.source_limit
    texts, wanted = _pair(sources, targets)

    def tokens(name: str, item: Any) -> list[int]:
        return tokens_of(name, item, model.tokenizer, target.config.vocab_size, model.path)

    encoder_tokens, decoder_tokens = [], []
    for number, (text, items) in enumerate(zip(texts, wanted, strict=True), 1):
        name = f"source {number}"
        source, warnings = cut_source(name, tokens(name, text), limit, target.end_token)
        scores.warnings += warnings
        encoder_tokens.append(torch.tensor(source, dtype=torch.int64))
        decoder_tokens.append([tokens(f"target {index} of {name}", item) for index, item in enumerate(items, 1)])
    if encoder_tokens:
        try:
            model.ownership.acquire(scores)
            found = token_log_probs(target, encoder_tokens, decoder_tokens, config.batch_size)
        finally:
            try:
                model.ownership.release(scores)
            finally:
                # an interrupt may have come before the first call did anything
                model.ownership.release(scores)
        scores.token_ids = [one for several in decoder_tokens for one in several]
        scores.token_log_probs = [one for several in found for one in several]
        scores.sums = [math.fsum(one) for one in scores.token_log_probs]
    return scores


def _pair(sources: Any, targets: Any) -> tuple[list, list[list]]:
    """Every source, and the targets of each. UserError: one has none."""
    if isinstance(sources, str):
        sources, targets = [sources], [targets]
    sources, targets = list(check_inputs(sources)), [targets] if isinstance(targets, str) else list(check_inputs(targets))
    if len(sources) != len(targets):
        raise UserError(f"{len(targets)} targets for {len(sources)} sources; give one target, or one list of targets, for "
                        "each source")
    return sources, [_several(f"the target of source {number}", item) for number, item in enumerate(targets, 1)]


def _several(name: str, item: Any) -> list:
    """One target, or several, as a list."""
    if isinstance(item, str):
        return [item]
    try:
        items = list(check_inputs(item))
    except UserError:
        raise UserError(f"{name} is of type {type(item).__name__}; give a text, token ids, or a list of targets") from None
    if not items:
        raise UserError(f"{name} is empty; give at least one token id, or at least one target")
    try:
        operator.index(items[0])
    except (TypeError, ValueError):
        return items
    return [items]


class _Pass(NamedTuple):
    """What a sequence reads in one pass."""

    start: int  # the position of the first token
    tokens: Sequence[int]
    wanted: Sequence[int]  # the token after each
    result: list[float]  # where the log-probabilities of `wanted` go


@torch.inference_mode()
def token_log_probs(target: T5 | T5Cuda, sources: Sequence[Tensor], targets: Sequence[Sequence[Sequence[int]]],
                    batch_size: int, max_positions: int = MAX_POSITIONS) -> list[list[list[float]]]:
    """The log-probability of each token of each target of each source; the caller owns the model.

    Parameters
    ----------
    target : Target
        Left without admitted sequences.
    sources : n tensors [S_i] int64
    targets : for each source at least one target, for each target at least one token
    batch_size, max_positions : int
        The most sequences, and query positions of each, in a pass.

    Returns
    -------
    list of list of list of float
        By source, target and token.
    """
    B, V = min(batch_size, len(sources)), target.config.vocab_size
    longest = max(len(one) for several in targets for one in several)
    R = max(1, min(longest, max_positions, MAX_LOGITS // (B * V)))
    found: list[list[list[float]]] = [[[] for _ in several] for several in targets]
    waiting = deque(range(len(sources)))
    running: list[Iterator[_Pass]] = [iter(())] * B
    on_device = torch.cuda.device(target.device) if target.device.type == "cuda" else nullcontext()
    target.reserve(B, longest, R - 1, max(map(len, sources)))
    try:
        with on_device:
            while True:
                tokens, wanted = torch.zeros(2, B, R, dtype=torch.int64)
                positions, results = torch.full((B, R), -1), list[list[float]]()
                for sequence in range(B):
                    part = next(running[sequence], None)
                    if part is None and waiting:
                        source = waiting.popleft()
                        target.admit([sequence], [sources[source]])
                        running[sequence] = _passes(target.start_token, targets[source], found[source], R)
                        part = next(running[sequence])
                    if part is not None:
                        n = len(part.tokens)
                        tokens[sequence, :n], wanted[sequence, :n] = torch.tensor([part.tokens, part.wanted])
                        positions[sequence, :n] = torch.arange(part.start, part.start + n)
                        results += [part.result] * n
                if not results:
                    return found
                hidden = target.decode(tokens.to(target.device), positions.to(target.device))
                read = positions >= 0
                # log_softmax reduces each row alone, in a fixed order: a result does not depend on the batch
                log_probs = target.logits(hidden)[read.to(target.device)].log_softmax(-1)  # [n, V]
                chosen = log_probs.gather(1, wanted[read].to(target.device)[:, None])[:, 0]
                for result, value in zip(results, chosen.tolist(), strict=True):
                    result.append(value)
    finally:
        target.release(range(B))


def _passes(start_token: int, targets: Iterable[Sequence[int]], found: Iterable[list[float]],
            R: int) -> Iterator[_Pass]:
    """The passes of one source."""
    for wanted, result in zip(targets, found, strict=True):
        read = [start_token, *wanted[:-1]]
        for start in range(0, len(wanted), R):
            yield _Pass(start, read[start : start + R], wanted[start : start + R], result)
