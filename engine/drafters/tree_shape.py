"""The shape of a draft tree: as text, as parents, and in a file of `foredraft tune-tree`.

"3x2x1" gives the last committed token 3 children, each of them 2, and each of those 1: SpecInfer's expansion configuration
(Miao et al. 2023). With "+iid" children are sampled independently, otherwise without replacement.
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from foredraft.atomic_write import write_atomic
from foredraft.engine.params import MAX_DRAFT_TOKENS
from foredraft.errors import UserError
from foredraft.kernels.drafting.tree_children import Tree

INDEPENDENT = "+iid"


@dataclass(frozen=True)
class Shape:
    """A tree of draft tokens.

    Attributes
    ----------
    parents : tuple of int
        The query position that each node follows: 0 is the last committed token, j + 1 node j. A node comes after its parent
        and better siblings, so the first n nodes are the shape's best tree of n nodes.
    figures : dict or None
        Of the search.
    """

    parents: tuple[int, ...]
    figures: dict[str, Any] | None = None

    @classmethod
    def parse(cls, text: str) -> Shape:
        """Read "3x2x1" or a .json file. UserError: neither, or too many nodes."""
        if text.endswith(".json"):
            return cls.load(text)
        if re.fullmatch("[1-9][0-9]{0,99}(x[1-9][0-9]{0,99})*", text) is None:
            raise UserError(f"tree {text!r} is no shape; give the children of a node by level, as in 3x2x1, or a .json file "
                            "of foredraft tune-tree")
        widths = [int(width) for width in text.split("x")]
        if sum(int(n) for n in np.cumprod(np.array(widths, object))) > MAX_DRAFT_TOKENS:
            raise UserError(f"tree {text!r} has more than {MAX_DRAFT_TOKENS} nodes; give fewer children or levels")
        paths: list[tuple[int, ...]] = [()]
        for level, width in enumerate(widths):
            paths += [(*path, rank) for path in paths if len(path) == level for rank in range(width)]
        return cls.of_paths(sorted(paths[1:], key=lambda path: (sum(path), len(path), path)))

    @classmethod
    def of_paths(cls, paths: list[tuple[int, ...]]) -> Shape:
        """From nodes as paths of ranks, parents first; (0, 1) is the second child of the first child."""
        positions = {(): 0} | {path: number + 1 for number, path in enumerate(paths)}
        return cls(tuple(positions[path[:-1]] for path in paths))

    @classmethod
    def load(cls, path: str | Path) -> Shape:
        """Read a shape file. UserError: no such file, or no shape in it."""
        try:
            entries = json.loads(Path(path).read_text(encoding="utf-8"))
            parents = tuple(int(parent) for parent in entries["parents"])
        except FileNotFoundError:
            raise UserError(f"{path}: no such shape; foredraft tune-tree writes one") from None
        except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
            raise UserError(f"{path}: not a shape ({type(error).__name__}: {error}); write it again with foredraft "
                            "tune-tree") from None
        if not 0 < len(parents) <= MAX_DRAFT_TOKENS or not all(0 <= parent <= node for node, parent in enumerate(parents)):
            raise UserError(f"{path}: not a shape; `parents` holds 1 to {MAX_DRAFT_TOKENS} earlier query positions")
        return cls(parents, entries.get("figures"))

    def save(self, path: str | Path) -> None:
        write_atomic(path, json.dumps(asdict(self), indent=1) + "\n")

    @property
    def paths(self) -> list[tuple[int, ...]]:
        """Each node as a path of ranks from the root."""
        found, born = [()], [0] * (len(self.parents) + 1)
        for parent in self.parents:
            found.append((*found[parent], born[parent]))
            born[parent] += 1
        return found[1:]

    def tree(self, replaced: bool = False) -> Tree:
        """The arrays that kernels/drafting/tree_children.py takes."""
        return Tree(np.array(self.parents, np.int64), np.array([len(path) for path in self.paths], np.int64), replaced)


def is_shape_file(path: str | Path) -> bool:
    """Whether a file is one of Shape.save."""
    try:
        return bool(Shape.load(path).parents)
    except UserError:
        return False
