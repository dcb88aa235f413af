"""Stand-ins for targets and drafters, small enough to enumerate."""

from __future__ import annotations

import numpy as np
import torch

from foredraft.engine.state import DecodeState, Draft
from foredraft.kernels.philox import DRAFT, uniform_reference


class TableTarget:
    """p(next | last id, position) from a table [positions, V, V] of logits; hidden IS the logits.

    Position-dependent, so that an answer from the wrong row shows.
    """

    start_token = 0

    def __init__(self, table: torch.Tensor, end_token: int = -1):
        self.table, self.end_token = table, end_token

    def admit(self, rows, sources):
        return [torch.zeros(1, 1) for _ in rows]

    def release(self, rows):
        pass

    def decode(self, tokens, positions, parents=None):
        place = positions.clamp(min=0, max=self.table.shape[0] - 1)
        return torch.where(positions[..., None] >= 0, self.table[place, tokens], torch.nan)

    def logits(self, hidden):
        return hidden

    def choose(self, hidden):
        return hidden.nan_to_num(nan=-1e9).argmax(-1)

    def keep(self, path):
        pass


class ScriptedDrafter:
    """Point masses that follow `truth[row]` (the ids after the start token), wrong wherever `wrong(row, position)` says.

    lengths(row, round) ids are proposed; so acceptances and rejections are forced where a test wants them.
    """

    name = "scripted"

    def __init__(self, truth, wrong=lambda row, position: False, lengths=lambda row, round_: 10**9, vocabulary=100):
        self.truth, self.wrong, self.lengths, self.vocabulary = truth, wrong, lengths, vocabulary
        self.round = 0

    def admit(self, rows, sources, encoded):
        pass

    def release(self, rows):
        pass

    def draft(self, state: DecodeState) -> Draft:
        draft = Draft.empty(state.rows, state.max_draft)
        for row, room in enumerate(state.allowed().tolist()):
            length = int(state.lengths[row])
            ids = self.truth[row][length - 1 : length - 1 + min(room, self.lengths(row, self.round))]
            for i, token in enumerate(ids):
                draft.tokens[row, i] = (token + 1) % self.vocabulary if self.wrong(row, length + i) else token
            draft.lengths[row] = len(ids)
            draft.origin[row] = 1
        self.round += 1
        return draft


class TableDrafter:
    """Dense drafts from a table [positions, V, V] of logits, sampled with the production random stream."""

    name = "table"

    def __init__(self, table: torch.Tensor):
        self.table = table

    def admit(self, rows, sources, encoded):
        pass

    def release(self, rows):
        pass

    def draft(self, state: DecodeState) -> Draft:
        B, K, V = state.rows, state.max_draft, self.table.shape[-1]
        draft = Draft.empty(B, K)
        draft.dense[:] = True
        draft.logits = torch.zeros(B, K, V)
        last = state.tokens.gather(1, state.lengths[:, None] - 1)[:, 0]
        for i in range(K):
            place = (state.lengths - 1 + i).clamp(max=self.table.shape[0] - 1)
            draft.logits[:, i] = self.table[place, last]
            cumulative = torch.softmax(draft.logits[:, i].double(), -1).cumsum(-1).numpy()
            for row in range(B):
                noise = uniform_reference(int(state.seeds[row]), DRAFT, int(state.lengths[row]), i)
                draft.tokens[row, i] = min(int(np.searchsorted(cumulative[row], noise, side="right")), V - 1)
            last = draft.tokens[:, i]
        draft.lse = torch.logsumexp(draft.logits.double(), -1)
        draft.lengths = state.allowed()
        return draft


def make_state(rows: int, new_tokens: int | list[int], draft_tokens: int | list[int], width: int, *, temperature=0.0,
               top_k=0, top_p=1.0, seeds=None, end_token=1) -> DecodeState:
    """A fresh state; scalars stand for every row."""

    def column(value, dtype):
        return torch.as_tensor(value, dtype=dtype).expand(rows).clone()

    return DecodeState(
        limits=column(new_tokens, torch.int64) + 1, draft_tokens=column(draft_tokens, torch.int64),
        temperature=column(temperature, torch.float32), top_k=column(top_k, torch.int64),
        top_p=column(top_p, torch.float32),
        seeds=torch.arange(rows) if seeds is None else torch.as_tensor(seeds, dtype=torch.int64),
        start_token=0, end_token=end_token, width=width)
