"""What the decode loop needs from a target, and the base class of every drafter."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from foredraft.engine.state import DecodeState, Draft, DraftBudget


class Target(Protocol):
    """The model whose distribution is kept. Tokens and positions are int64, hidden states and logits float32."""

    start_token: int
    end_token: int  # the first of end_tokens, or -1
    end_tokens: tuple[int, ...]
    device: torch.device  # of its tensors, and of the states it decodes

    def admit(self, sequences: Sequence[int], sources: Sequence[Tensor]) -> list[Tensor]: ...  # encoder outputs [S_i, C]
    def release(self, sequences: Sequence[int]) -> None: ...
    def decode(self, tokens: Tensor, positions: Tensor, parents: Tensor | None = None) -> Tensor: ...  # [B, R, C]
    def logits(self, hidden: Tensor) -> Tensor: ...  # [B, R, V]
    def choose(self, hidden: Tensor) -> Tensor: ...  # [B, R]: the argmax, without writing the logits
    def keep(self, path: Tensor) -> None: ...  # trees only: makes the cache entries of the accepted path [B, R] contiguous


class ModelSizes(Protocol):
    """The sizes of a target that states and buffers depend on."""

    d_model: int  # C
    vocab_size: int  # V


class PagedCache(Protocol):
    """Keys and values of a target, sources in pages; see models/kv_cache.py."""

    num_sequences: int

    def used_bytes(self) -> int: ...
    def plan(self, num_sequences: int, slots: int, longest: int, pages: int | None, limit: int) -> tuple[int, int]: ...
    def nbytes(self, num_sequences: int, slots: int, pages: int) -> int: ...
    def clear(self) -> None: ...
    def fits(self, source: int) -> bool: ...  # now
    def check_source(self, source: int) -> None: ...  # UserError: never


class PagedTarget(Target, Protocol):
    """What continuous batching needs of a target."""

    config: ModelSizes
    cache: PagedCache

    def reserve(self, num_sequences: int, positions: int, draft_tokens: int, source: int,
                pages: int | None = None) -> None: ...


class CapturableTarget(Target, Protocol):
    """What CUDA graphs need of a target; `generation` increases whenever buffers move."""

    config: ModelSizes
    generation: int
    source_bucket: int  # source pages that a pass reads

    def reserve(self, num_sequences: int, positions: int, draft_tokens: int, source: int) -> None: ...
    def check_memory(self, needed: int, what: str, advice: str) -> None: ...  # UserError: fewer bytes are free


@dataclass(frozen=True)
class Capabilities:
    """What a drafter can do. The engine refuses what is missing in one line.

    Parameters
    ----------
    point_masses : bool
        Each drafted token is certain (q = 1), so that seeded sampled output equals plain seeded sampling.
    trees : bool
        `draft` accepts a tree (kernels/drafting/tree_children.py) as its third argument.
    stops_early : bool
        A draft ends where the expected gain of one more token is below its cost (`DraftBudget.costs`).
    big_little : bool
        A neural model that can write for Big Little Decoder: its draft ends at `state.fallback`.
    tree_drafts : bool
        Its drafts are trees: block verification and adaptive draft lengths do not apply.
    adaptive : bool
        Its draft lengths always adapt; `draft_tokens` as a number is then the longest draft.
    """

    point_masses: bool = False
    trees: bool = False
    stops_early: bool = False
    big_little: bool = False
    tree_drafts: bool = False
    adaptive: bool = False


@dataclass(frozen=True)
class DrafterSetup:
    """What a drafter can be made from: the target, its folder, its tokenizer or None, the device, and other drafters."""

    target: Any
    folder: Path
    tokenizer: Any
    device: str
    make: Callable[[str], Drafter]  # of a spec, as in foredraft.load


class Drafter:
    """Proposes tokens. Write `admit`, `release` and `draft`; everything else has a default.

    Attributes
    ----------
    name : str
        Shown in reports.
    capabilities : Capabilities
        Set on the class, or on the instance of a wrapper.
    generation : int
        Increases whenever device buffers move, so that CUDA graphs captured before are dropped.
    """

    name: str = "custom"
    capabilities: Capabilities = Capabilities()
    generation: int = 0

    def admit(self, sequences: Sequence[int], sources: Sequence[Tensor], encoded: Sequence[Tensor]) -> None:
        """Start new requests in some sequences of the batch.

        Parameters
        ----------
        sequences : n indices into the batch
        sources : n source token tensors [S_i] int64
        encoded : n encoder outputs of the target [S_i, C] float32
        """
        raise NotImplementedError(f"{type(self).__name__} has no method admit; write one that may do nothing")

    def release(self, sequences: Sequence[int]) -> None:
        """The requests in these sequences have ended."""
        raise NotImplementedError(f"{type(self).__name__} has no method release; write one that may do nothing")

    def draft(self, state: DecodeState, budget: DraftBudget | None = None) -> Draft:
        """Propose at most `state.allowed(budget)` tokens for each sequence.

        Parameters
        ----------
        state : DecodeState
            Committed tokens and the settings of each sequence; not to be changed.
        budget : DraftBudget or None
            Limits of this step, from a draft-length policy or a cascade. A drafter given to `foredraft.load` may leave this
            argument out: its draft is then cut to the budget.

        Returns
        -------
        Draft
            tokens [B, K] int64, lengths [B] int64.
        """
        raise NotImplementedError(f"{type(self).__name__} has no method draft; write one that returns a Draft")

    @classmethod
    def create(cls, name: str, argument: str, setup: DrafterSetup) -> Drafter:
        """Make the drafter that "name" or "name:argument" stands for."""
        return cls(argument) if argument else cls()

    def cheap_draft(self, state: DecodeState, budget: DraftBudget) -> Draft | None:
        """A nearly free draft for a sampled sequence that is alone in its batch; None where there is none."""
        return None

    def end_step(self) -> None:
        """A step has ended; called before its sequences are released."""
