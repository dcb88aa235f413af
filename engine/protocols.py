"""What the decode loop asks of a target and of a drafter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor, device

from foredraft.engine.state import DecodeState, Draft


class Target(Protocol):
    """The model whose distribution is kept. Token ids and positions are int64; hidden states and logits are float32."""

    start_token: int
    end_token: int
    device: device  # where its tensors and a state's lie

    def admit(self, sequences: Sequence[int], sources: Sequence[Tensor]) -> list[Tensor]: ...  # n encoder outputs [S_i, C]
    def release(self, sequences: Sequence[int]) -> None: ...
    def decode(self, tokens: Tensor, positions: Tensor, parents: Tensor | None = None) -> Tensor: ...  # [B, R, C]
    def logits(self, hidden: Tensor) -> Tensor: ...  # [B, R, V]
    def choose(self, hidden: Tensor) -> Tensor: ...  # [B, R], the argmax; logits are never written
    def keep(self, path: Tensor) -> None: ...  # trees only: moves the cache entries of the accepted path together


@dataclass(frozen=True)
class Capabilities:
    """What a drafter can do; the engine refuses what is missing in one line.

    point_masses: each draft is one certain token (q = 1), so that seeded sampled output equals seeded plain sampling.
    trees: `draft` takes a tree of drafts (kernels/drafting/tree_children.py) as a second argument.
    stops_early: a draft ends where the drafter's own confidence is too low for the costs in `state.costs`.
    big_little: a neural model that can draft for Big Little Decoder: it stops at `state.fallback`.
    """

    point_masses: bool = False
    trees: bool = False
    stops_early: bool = False
    big_little: bool = False


class Drafter:
    """Proposes tokens. Write `admit`, `release` and `draft`; everything else has a default.

    name: what reports call it. proposer: an entry of `state.PROPOSERS`, for colours and statistics.
    generation: counts how often its device buffers moved; graphs captured before the last move hold the old place.
    """

    name: str = "custom"
    capabilities: Capabilities = Capabilities()
    generation: int = 0

    def admit(self, sequences: Sequence[int], sources: Sequence[Tensor], encoded: Sequence[Tensor]) -> None:
        """New requests start in these sequences of the batch.

        Parameters
        ----------
        sequences : n indices of the batch
        sources : n source token tensors [S_i] int64
        encoded : n encoder outputs of the TARGET [S_i, C] float32; read them or ignore them
        """
        raise NotImplementedError(f"{type(self).__name__}.admit is missing; write it, or pass")

    def release(self, sequences: Sequence[int]) -> None:
        """The requests in these sequences have ended."""
        raise NotImplementedError(f"{type(self).__name__}.release is missing; write it, or pass")

    def draft(self, state: DecodeState) -> Draft:
        """Propose at most `state.allowed()` tokens a sequence. First read the committed tokens not seen yet."""
        raise NotImplementedError(f"{type(self).__name__}.draft is missing; return a Draft")

    def first_draft(self, state: DecodeState) -> Draft | None:
        """A draft at hardly any cost for a sampled sequence that is alone in its batch; None: there is none."""
        return None

    def end_step(self) -> None:
        """A step has ended; called before sequences are released."""
