"""The beam requests of a batch: one pass of the target reads all their beams, and caches follow the beams.

After a step, the first new beam that continues a parent takes the parent's sequence. Every further one takes the sequence of
a beam that was dropped, and copies the parent's caches from the first position where the tokens of the two differ.

With drafts a pass also reads the draft of each beam. If every new beam continues its parent by the parent's drafted token,
and no two have the same parent, then the pass has read the next step's logits already, and that step needs no pass. Its
outcome is the same (docs/lossless.md).
"""

from __future__ import annotations

import numpy as np
import torch

from foredraft.engine.clock import now
from foredraft.engine.protocols import Drafter, PagedTarget
from foredraft.engine.runtime.beam_draft_length import BeamDraftLength
from foredraft.engine.runtime.beam_search import BeamSearch, Records
from foredraft.engine.runtime.requests import Job, Result
from foredraft.engine.state import DecodeState, Draft
from foredraft.errors import UserError


class BeamBatch:
    """Searches that run together.

    Parameters
    ----------
    target : PagedTarget
    drafter : Drafter
    state : DecodeState
        A state of the batch in which only the sequences of beams are ever unfinished.
    draft_length : BeamDraftLength
        Estimates of the model, kept between batches.

    Attributes
    ----------
    running : list of BeamSearch
    passes, steps : int
        Passes of the target; steps of all searches.
    copied_bytes : int
        Keys and values copied between beams so far.
    """

    def __init__(self, target: PagedTarget, drafter: Drafter, state: DecodeState, draft_length: BeamDraftLength):
        self.target, self.drafter, self.state, self.draft_length = target, drafter, state, draft_length
        self.running: list[BeamSearch] = []
        self.passes = self.steps = self.copied_bytes = 0

    def start(self, job: Job, sequences: list[int]) -> None:
        """A request starts in sequences that the target and the drafter have admitted."""
        for sequence in sequences:
            self.state.start(sequence, limit=job.limit, draft_tokens=job.draft_tokens, temperature=0.0, top_k=0, top_p=1.0,
                             seed=job.seed, end_tokens=job.end_tokens, start_token=job.start_token)
            self.state.finished[sequence] = sequence != sequences[0]
        start = self.state.start_token if job.start_token is None else job.start_token
        self.running.append(BeamSearch(job, sequences, start, self.state.end_tokens[sequences[0]].numpy().copy(),
                                       self.target.config.vocab_size))

    def stop(self, search: BeamSearch) -> None:
        """A request leaves."""
        self.running.remove(search)
        for sequence in search.sequences:
            self.state.stop(sequence)

    def step(self) -> list[BeamSearch]:
        """One pass, and every step that its logits suffice for; returns the searches that are over."""
        since = now()
        # calling a drafter costs time even if it proposes nothing
        drafts = self._set_draft_lengths() > 0
        draft = self.drafter.draft(self.state) if drafts else Draft.empty(self.state.batch_size, 0)
        tokens, positions, parents = self.state.inputs(draft)
        logits = self.target.logits(self.target.decode(tokens, positions, parents)).numpy()
        self.passes += 1
        if drafts:
            self.drafter.end_step()
        ended, outcomes = [], []
        for search in self.running:
            search.passes += 1
            try:
                counts = self._advance(search, logits, draft.tokens.numpy(), draft.lengths.numpy())
                outcomes.append((len(search.sequences), *counts))
            except UserError as error:
                search.job.error = UserError(f"{search.job.name}: {error}")
                search.is_over = True
            if search.is_over:
                ended.append(search)
        self.draft_length.learn(int((positions >= 0).sum()), now() - since, outcomes)
        return ended

    def _set_draft_lengths(self) -> int:
        """Set how many tokens the beams draft in this pass, none in the first pass of a search; returns the most."""
        begun = [search for search in self.running if search.length > 1]
        most = max((search.job.draft_tokens for search in begun), default=0)
        width = self.draft_length.choose(most, [len(search.sequences) for search in begun])
        for search in self.running:
            self.state.host.draft_tokens[search.sequences] = min(width, search.job.draft_tokens) if search in begun else 0
        return width

    def _advance(self, search: BeamSearch, logits: np.ndarray, drafted: np.ndarray, lengths: np.ndarray) -> tuple[int, int]:
        """Take the steps of one search; returns how many drafted positions were tested, and how many saved a pass."""
        has_begun, r = search.length > 1, 0
        while True:
            parents = search.advance(logits, r)
            self.steps += 1
            if search.is_over:
                return r, r
            most = int(lengths[search.sequences].max())
            self._follow(search, parents)
            following = zip(search.sequences, search.tokens[:, search.length - 1].tolist(), strict=True)
            if not has_begun or len(set(parents.tolist())) < len(parents) or any(
                    lengths[sequence] <= r or drafted[sequence, r] != token for sequence, token in following):
                return r + (r < most), r
            r += 1

    def _follow(self, search: BeamSearch, parents: np.ndarray) -> None:
        """Give every running beam a sequence whose caches hold all its tokens but the last, and write its tokens."""
        host, length = self.state.host, search.length
        before = search.sequences
        taken: dict[int, int] = {}
        for beam, parent in enumerate(parents.tolist()):
            if before[parent] not in taken.values():
                taken[beam] = before[parent]
        free = [sequence for sequence in before if sequence not in taken.values()]
        cached = length - 1
        after = []
        for beam, parent in enumerate(parents.tolist()):
            sequence = taken.get(beam)
            if sequence is None:
                sequence, source = free.pop(), before[parent]
                same = 0
                # the first pass wrote the cache of the first sequence alone
                if length > 2:
                    differing = np.flatnonzero(host.tokens[sequence, :cached] != host.tokens[source, :cached])
                    same = int(differing[0]) if len(differing) else cached
                self.copied_bytes += self.target.cache.copy_slots(source, sequence, same, cached)
            after.append(sequence)
        search.sequences = after
        for beam, sequence in enumerate(after):
            host.tokens[sequence, :length] = search.tokens[beam, :length]
        host.lengths[after] = length
        if length == 2:
            self.state.finished[torch.tensor(after)] = False

    def result(self, search: BeamSearch, reason: str | None = None) -> Result:
        """The result of a search that is over or was cancelled."""
        records = search.records or Records([], [])
        scores, logits = (np.array(steps) if steps else None for steps in (records.scores, records.logits))
        return search.job.beam_result(search.hypotheses(), search.passes, scores, logits, search.end_tokens.tolist(), reason)
