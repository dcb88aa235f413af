"""The results of a call."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from foredraft.engine.runtime.requests import Result
from foredraft.engine.sampling.recorder import TokenLogprob
from foredraft.engine.stats import DecodeStats


@dataclass
class Output:
    """The results of `Model.generate`, in the order of its inputs, num_return_sequences entries for each.

    Attributes
    ----------
    texts : list of (str or None)
        None without a tokenizer.
    token_ids : list of list of int
        Without the start token, with the end token where it was emitted.
    proposers : list of list of int
        Who proposed each token, an index into `registry.PROPOSERS`; 0 is the target.
    finish_reasons : list of str
        As in Result.
    request_stats : list of DecodeStats
        Of each entry; `acceptance_rate` is that of its drafts.
    logprobs : list of (list of TokenLogprob or None)
    scores, logits : list of (ndarray [n, V] float32 or None)
        What `logprobs`, `output_scores` and `output_logits` ask for. Of beam search [n, num_beams, V], as in Result.
    sequence_scores : list of (float or None)
        The scores of hypotheses of beam search (Hypothesis.score).
    beam_indices : list of (list of int or None)
        The beam that a hypothesis of beam search continued at each step (Hypothesis.beams).
    stats : DecodeStats
        Of the whole call.
    warnings : list of str
    """

    texts: list[str | None] = field(default_factory=list)
    token_ids: list[list[int]] = field(default_factory=list)
    proposers: list[list[int]] = field(default_factory=list)
    finish_reasons: list[str] = field(default_factory=list)
    request_stats: list[DecodeStats] = field(default_factory=list)
    logprobs: list[list[TokenLogprob] | None] = field(default_factory=list)
    scores: list[np.ndarray | None] = field(default_factory=list)
    logits: list[np.ndarray | None] = field(default_factory=list)
    sequence_scores: list[float | None] = field(default_factory=list)
    beam_indices: list[list[int] | None] = field(default_factory=list)
    stats: DecodeStats = field(default_factory=DecodeStats)
    warnings: list[str] = field(default_factory=list)

    def add(self, result: Result) -> None:
        """Append the result of a request, without adding to `stats`."""
        if result.hypotheses is None:
            outputs = [(result.text, result.token_ids, result.proposers, None, None)]
        else:
            outputs = [(one.text, one.token_ids, [0] * len(one.token_ids), one.score, one.beams)
                       for one in result.hypotheses]
        for text, tokens, proposers, score, beams in outputs:
            self.texts.append(text)
            self.token_ids.append(tokens)
            self.proposers.append(proposers)
            self.sequence_scores.append(score)
            self.beam_indices.append(beams)
            self.finish_reasons.append(result.finish_reason)
            self.request_stats.append(result.stats)
            self.logprobs.append(result.logprobs)
            self.scores.append(result.scores)
            self.logits.append(result.logits)
        self.warnings += result.warnings
