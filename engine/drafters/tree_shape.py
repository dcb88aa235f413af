"""The shape of a draft tree: written as text, kept as parents, saved by `foredraft tune-tree`.

"3x2x1" gives the last committed id 3 children, each of them 2, and each of those 1: SpecInfer's expansion configuration
(Miao et al. 2023). "+iid" behind it draws sampled children independently; else they are drawn without replacement. A shape
file is JSON with `parents`.
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
    """parents: the row that each node follows, 0 the last committed id, j + 1 node j; a node after its parent and the
    siblings before it, the best first, so that its first n nodes are the shape's best tree of n. figures: of the search."""

    parents: tuple[int, ...]
    figures: dict[str, Any] | None = None

    @classmethod
    def parse(cls, text: str) -> Shape:
        """Of children by level, or of a .json file. UserError: neither, or too many nodes."""
        if text.endswith(".json"):
            return cls.load(text)
        if re.fullmatch("[1-9][0-9]*(x[1-9][0-9]*)*", text) is None:
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
        """Of nodes named by the ranks that lead to them, (0, 1) the second child of the first; parents come first."""
        rows = {(): 0} | {path: number + 1 for number, path in enumerate(paths)}
        return cls(tuple(rows[path[:-1]] for path in paths))

    @classmethod
    def load(cls, path: str | Path) -> Shape:
        """UserError: no such file, no shape in it."""
        try:
            entries = json.loads(Path(path).read_text(encoding="utf-8"))
            parents = tuple(int(parent) for parent in entries["parents"])
        except FileNotFoundError:
            raise UserError(f"{path}: no such shape; foredraft tune-tree writes one") from None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path}: not a shape ({type(error).__name__}: {error}); write it again with foredraft "
                            "tune-tree") from None
        if not 0 < len(parents) <= MAX_DRAFT_TOKENS or not all(0 <= row <= node for node, row in enumerate(parents)):
            raise UserError(f"{path}: not a shape; `parents` must be 1 to {MAX_DRAFT_TOKENS} rows, each node's before it")
        return cls(parents, entries.get("figures"))

    def save(self, path: str | Path) -> None:
        write_atomic(path, json.dumps(asdict(self), indent=1) + "\n")

    @property
    def paths(self) -> list[tuple[int, ...]]:
        """The ranks that lead to each node."""
        found, born = [()], [0] * (len(self.parents) + 1)
        for parent in self.parents:
            found.append((*found[parent], born[parent]))
            born[parent] += 1
        return found[1:]

    def tree(self, replaced: bool = False) -> Tree:
        """For kernels/drafting/tree_children.py."""
        return Tree(np.array(self.parents, np.int64), np.array([len(path) for path in self.paths], np.int64), replaced)
