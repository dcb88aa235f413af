"""Verification on CUDA: verify.py's contract by Triton kernels, in buffers that graphs can capture."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from foredraft.engine.state import DecodeState, Draft, Verification
from foredraft.kernels.core.split_softmax_triton import Scratch, make_scratch
from foredraft.kernels.sampling.top_k_top_p_triton import top_k_top_p_triton
from foredraft.kernels.verify.accept_triton import accept_greedy_triton, accept_sampled_triton

if TYPE_CHECKING:
    from foredraft.engine.protocols import Target


class Workspace:
    """Buffers of a verification on CUDA: tokens, path [B, R], counts [B] int64, and those of sampled sequences."""

    def __init__(self, B: int, R: int, device: torch.device | str):
        self.device = device
        self.tokens, self.path = (torch.zeros(B, R, dtype=torch.int64, device=self.device) for _ in range(2))
        self.counts = torch.ones(B, dtype=torch.int64, device=self.device)
        self.floors = torch.empty(B, R, device=self.device)
        self.ties = torch.empty(B, R, dtype=torch.int32, device=self.device)
        self.scratch: Scratch | None = None

    def sampled(self, logits: Tensor) -> Scratch:
        """Scratch memory, allocated for the first logits [B, R, V]."""
        if self.scratch is None:
            self.scratch = make_scratch(*logits.shape, self.device)
        return self.scratch


def workspace_bytes(B: int, R: int, V: int) -> int:
    """Bytes of a Workspace, that of sampled sequences included."""
    space, scratch = Workspace(B, R, "meta"), make_scratch(B, R, V, "meta")
    return sum(tensor.nbytes for tensor in (space.tokens, space.path, space.counts, space.floors, space.ties, *scratch))


def verify_on_cuda(state: DecodeState, draft: Draft, hidden: Tensor, target: Target) -> Verification:
    """One launch after the target's logits or argmax, two with top-k or top-p, into buffers that graphs can capture."""
    if state.workspace is None:
        state.workspace = Workspace(state.batch_size, state.max_draft + 1, state.tokens.device)
    space, commit, commit_into = state.workspace, draft.parents is None, state.committed_into(draft, hidden)
    outputs = (space.tokens, space.counts, space.path)
    if state.greedy:
        accept_greedy_triton(target.choose(hidden), draft.tokens, draft.lengths, draft.parents, commit_into, *outputs,
                             commit)
    else:
        logits, thresholds = target.logits(hidden), (None, None)
        if state.has_top_k_top_p:
            thresholds = space.floors, space.ties
            top_k_top_p_triton(logits, draft.lengths, state.finished, state.temperature, state.top_k, state.top_p,
                               *thresholds)
        accept_sampled_triton(
            logits, draft.tokens, draft.lengths, draft.parents, draft.dense, draft.logits, draft.lse, state.temperature,
            *thresholds, state.seeds, commit_into, *outputs, space.sampled(logits), commit, state.block)
    return Verification(space.tokens, space.counts, None if commit else space.path, commit)
