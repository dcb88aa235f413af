"""Beam search of one request: its running beams, its hypotheses, and a step from the logits of a pass."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from foredraft.engine.runtime.requests import Hypothesis, Job
from foredraft.engine.sampling.logits_pipeline import process_row
from foredraft.kernels.core.backend import HAS_NUMBA
from foredraft.kernels.sampling.beam_candidates import BEAM_CANDIDATES
from foredraft.kernels.sampling.log_softmax import LOG_SOFTMAX
from foredraft.kernels.step.beam_step import BEAM_STEP, NEVER

BACKEND = "numba" if HAS_NUMBA else "reference"
# as beam_step.py has early_stopping
_STOPPING = {False: 0, True: 1, "never": 2}


@dataclass
class Records:
    """The scores and logits [n, V] of the running beams at every step, where a request asked for them."""

    scores: list[np.ndarray]
    logits: list[np.ndarray]


class BeamSearch:
    """The search of one request.

    Parameters
    ----------
    job : Job
    sequences : list of n int
        Sequences of the batch: beam i, in the order of scores, is decoded in sequences[i].
    start_token : int
    end_tokens : ndarray [E] int64
        -1 in unused columns.
    vocab_size : int

    Attributes
    ----------
    length : int
        Tokens of every beam, the start token included.
    passes : int
        Passes of the target so far; fewer than the steps where drafts saved some.
    tokens : ndarray [n, T] int64
    is_over : bool
    """

    def __init__(self, job: Job, sequences: list[int], start_token: int, end_tokens: np.ndarray, vocab_size: int):
        n, T = len(sequences), job.limit
        self.job, self.sequences, self.vocab_size, self.end_tokens = job, sequences, vocab_size, end_tokens
        self.length, self.passes, self.is_over = 1, 0, False
        self.num_candidates = max(2, 1 + int((end_tokens >= 0).sum())) * n
        self.tokens = np.zeros((n, T), np.int64)
        self.tokens[:, 0] = start_token
        self.scores = np.full(n, NEVER, np.float32)
        self.scores[0] = 0
        self.lineage = np.full((n, T), -1, np.int32)
        self._finished = (self.tokens.copy(), np.full(n, NEVER, np.float32), self.lineage.copy(), np.ones(n, np.int64),
                          np.zeros(n, np.bool_))
        self._improvable = np.ones(1, np.bool_)
        p = job.params
        self.records = Records([], []) if p.output_scores or p.output_logits else None

    def advance(self, logits: np.ndarray, r: int) -> np.ndarray:
        """Take one step.

        Parameters
        ----------
        logits : ndarray [B, R, V] float32
            Logits of the pass; log-probabilities replace them where the request has processors or records.
        r : int
            The query position of the beams' last token.

        Returns
        -------
        ndarray [n] int64
            The beam that each new running beam continues; `sequences` is not changed yet.

        Raises
        ------
        UserError
            A function of the caller failed.
        """
        p, n = self.job.params, len(self.scores)
        # at first all beams are the start token; only the first one's sequence is decoded
        rows = np.array(self.sequences if self.length > 1 else self.sequences[:1] * n, np.int64)
        normalise = not (self.job.processors or self.records)
        if not normalise:
            self._process(logits, r, rows)
        values, indices = np.empty(self.num_candidates, np.float32), np.empty(self.num_candidates, np.int64)
        BEAM_CANDIDATES[BACKEND](logits, rows, r, self.scores, normalise, p.do_sample, self.job.seed, self.length, values,
                                 indices)
        parents = np.empty(n, np.int64)
        self.is_over = BEAM_STEP[BACKEND](
            values, indices, self._stopped(indices), self.vocab_size, self.length, self.job.limit, self.end_tokens,
            float(p.length_penalty), _STOPPING[p.early_stopping], self.tokens, self.scores, self.lineage, *self._finished,
            self._improvable, parents)
        self.length += 1
        return parents

    def _process(self, logits: np.ndarray, r: int, rows: np.ndarray) -> None:
        """Replace the logits by log-probabilities and process these, as transformers does for beams."""
        before = logits[rows, r] if self.records is not None and self.job.params.output_logits else None
        done = set()
        for beam, sequence in enumerate(rows.tolist()):
            if sequence in done:
                continue
            done.add(sequence)
            row = logits[sequence, r]
            LOG_SOFTMAX[BACKEND](row)
            process_row(self.job.processors, self.tokens[beam, : self.length], row)
        if self.records is not None:
            if before is not None:
                self.records.logits.append(before)
            if self.job.params.output_scores:
                self.records.scores.append(logits[rows, r])

    def _stopped(self, indices: np.ndarray) -> np.ndarray:
        """Which candidates a stop rule ends, [k] bool."""
        stopped = np.zeros(len(indices), np.bool_)
        if self.job.stop_rules:
            for j, (beam, token) in enumerate(zip(*np.divmod(indices, self.vocab_size), strict=True)):
                tokens = [*self.tokens[beam, : self.length].tolist(), int(token)]
                stopped[j] = any(rule.ends(tokens) for rule in self.job.stop_rules)
        return stopped

    def hypotheses(self) -> list[Hypothesis]:
        """The num_return_sequences best hypotheses, best first."""
        tokens, scores, lineage, lengths, _ = self._finished
        return [Hypothesis(tokens[i, 1 : lengths[i]].tolist(), float(scores[i]), lineage[i, : lengths[i] - 1].tolist())
                for i in range(self.job.params.num_return_sequences)]
