"""Trees of drafts: one pass of the target verifies several continuations (SpecInfer, Miao et al. 2023; staged trees, Spector
and Re 2023).

Each node's distribution is the target's after its own ancestors (kernels/model/attention.py), the verification walks down from child to child
(kernels/verify/accept.py), and the accepted path's cache rows are moved together (kernels/step/compact_tree_kv.py).
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from foredraft.engine.drafters.tree_shape import INDEPENDENT, Shape
from foredraft.engine.protocols import Capabilities, Drafter, DrafterSetup
from foredraft.engine.state import DecodeState, Draft, DraftBudget
from foredraft.errors import UserError


class TreeDrafter(Drafter):
    """Has `drafter`, one with `branches`, draft the nodes of `shape`, as many of the first as a row may draft.

    A neural drafter's children are its likeliest ids in greedy rows, else drawn: without replacement, or with `replaced`
    independently of each other. A lookup's are the places it could copy from, which branch where they first differ.
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
        """The shape, and whether children are drawn independently."""
        return Shape.parse(text.removesuffix(INDEPENDENT)), text.endswith(INDEPENDENT)

    def admit(self, rows: Sequence[int], sources: Sequence[Tensor], encoded: Sequence[Tensor]) -> None:
        self.drafter.admit(rows, sources, encoded)

    def release(self, rows: Sequence[int]) -> None:
        self.drafter.release(rows)

    def draft(self, state: DecodeState, budget: DraftBudget | None = None) -> Draft:
        return self.drafter.draft(state, budget, self.tree)
