"""Tree drafts: one pass of the target verifies several continuations (SpecInfer, Miao et al. 2023; Spector and Re 2023).

Each node attends to its own ancestors (kernels/model/attention.py), the verification goes down from child to child
(kernels/verify/accept.py), and the accepted path becomes contiguous in the cache (kernels/step/compact_tree_kv.py).
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from foredraft.engine.drafters.tree_shape import INDEPENDENT, Shape
from foredraft.engine.protocols import Capabilities, Drafter, DrafterSetup
from foredraft.engine.state import DecodeState, Draft, DraftBudget
from foredraft.errors import UserError


class TreeDrafter(Drafter):
    """Drafts the first nodes of a tree shape, as many as a sequence may draft.

    The children of a node are a neural drafter's most probable tokens in greedy sequences, otherwise samples; or lookup's
    other matches, which branch where their continuations first differ.

    Parameters
    ----------
    drafter : Drafter
        With the capability `trees`.
    shape : Shape
    replaced : bool
        Sample children independently; otherwise without replacement.
    """

    def __init__(self, drafter: Drafter, shape: Shape, replaced: bool = False):
        if not drafter.capabilities.trees:
            raise UserError(f"drafter {drafter.name!r} drafts no trees; use lookup, or a trained LSTM or CNN, in "
                            "tree:SHAPE:NAME")
        self.drafter, self.shape, self.tree = drafter, shape, shape.tree(replaced)
        self.name = f"tree:{len(shape.parents)}{INDEPENDENT if replaced else ''}:{drafter.name}"
        self.capabilities = Capabilities(point_masses=drafter.capabilities.point_masses, tree_drafts=True)

    @classmethod
    def create(cls, name: str, argument: str, setup: DrafterSetup) -> TreeDrafter:
        shape, _, drafter = argument.partition(":")
        if not drafter:
            raise UserError(f"drafter '{name}:{argument}': name a shape and a drafter, as in tree:2x1x1:lstm")
        return cls(setup.make(drafter), *cls.parse_shape(shape))

    @classmethod
    def parse_shape(cls, text: str) -> tuple[Shape, bool]:
        """The shape, and whether children are sampled independently."""
        return Shape.parse(text.removesuffix(INDEPENDENT)), text.endswith(INDEPENDENT)

    def admit(self, sequences: Sequence[int], sources: Sequence[Tensor], encoded: Sequence[Tensor]) -> None:
        self.drafter.admit(sequences, sources, encoded)

    def release(self, sequences: Sequence[int]) -> None:
        self.drafter.release(sequences)

    def draft(self, state: DecodeState, budget: DraftBudget | None = None) -> Draft:
        return self.drafter.draft(state, budget, self.tree)
