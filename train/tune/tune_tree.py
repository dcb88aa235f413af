"""Which tree of drafts pays: the shape whose expected ids a second are most, from what was accepted at each depth and rank
and what drafts and passes cost on this machine.

A node is worth the product of the acceptance rates on its way, so that the best n nodes of the trees of at most so many
levels are the n of highest worth: Sequoia's programme (Chen et al. 2024, section 4.1) with rates by depth besides rank.
"""

from __future__ import annotations

import heapq
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from foredraft.engine.drafters.tree import TreeDrafter
from foredraft.engine.drafters.tree_shape import Shape
from foredraft.engine.generate import Model
from foredraft.engine.models.checkpoint import weights_hash
from foredraft.engine.params import MAX_DRAFT_TOKENS
from foredraft.engine.protocols import Drafter
from foredraft.engine.state import DecodeState, Draft
from foredraft.engine.verify import verify
from foredraft.errors import UserError
from foredraft.train.tune.tune_skip import Bench

# Timed repeats of each part; the shortest counts, for others may be at work on the machine.
REPEATS = 15


class TreeBench(Bench):
    """Articles on which trees of a drafter are tried."""

    def __init__(self, model: Model, sources: list[np.ndarray], max_new_tokens: int, temperature: float, replaced: bool):
        super().__init__(model, sources, max_new_tokens, MAX_DRAFT_TOKENS, 0, temperature)
        self.model, self.replaced = model, replaced

    def tree(self, paths: list[tuple[int, ...]], rows: int) -> TreeDrafter:
        drafter: Drafter = TreeDrafter(self.model.drafter, Shape.of_paths(paths), self.replaced)
        drafter.admit(range(rows), self.sources[:rows], self.encoded[:rows])
        return drafter

    @torch.inference_mode()
    def accepted(self, levels: int, children: int) -> np.ndarray:
        """[levels, children]: how often each child was taken of all the times its parent, on the branch of first children,
        was reached, by decoding with all children of that branch."""
        paths = [(0,) * level + (rank,) for rank in range(children) for level in range(levels)]
        taken, reached = np.zeros((levels, children)), np.zeros(levels)

        def count(draft: Draft, path: np.ndarray, counts: np.ndarray) -> None:
            for parents, rows, accepted in zip(draft.parents.numpy(), path, counts - 1, strict=True):
                for depth in range(min(accepted + 1, levels)):
                    reached[depth] += 1
                    if depth == accepted:
                        break
                    node = rows[depth + 1] - 1
                    rank = int((parents[:node] == rows[depth]).sum())
                    taken[depth, rank] += 1
                    if rank:
                        # its children were not tried
                        break

        self.decode(paths, count)
        return taken / np.maximum(reached, 1)[:, None]

    @torch.inference_mode()
    def decode(self, paths: list[tuple[int, ...]], count: Callable[[Draft, np.ndarray, np.ndarray], None]) -> float:
        """Decode all articles with a tree; `count` is told of the running rows of every round. Ids a round."""
        drafter, state = self.tree(paths, len(self.sources)), self._state(len(self.sources), len(paths))
        while not bool(state.finished.all()):
            running = (~state.finished).nonzero()[:, 0]
            draft = drafter.draft(state)
            hidden = self.target.decode(*state.inputs(draft))
            verification = verify(state, draft, hidden, self.target)
            self.target.keep(verification.path)
            count(Draft(draft.tokens[running], draft.lengths[running], draft.dense[running], draft.proposer[running],
                        parents=draft.parents[running]), verification.path[running].numpy(), verification.counts[running].numpy())
            state.commit(draft, verification, hidden)
        self._check(state)
        return float((state.lengths - 1).sum() / state.num_steps.sum())

    @torch.inference_mode()
    def seconds(self, orders: list[list[tuple[int, ...]]], nodes: int) -> tuple[np.ndarray, np.ndarray]:
        """Of drafting the first n nodes of each order [orders, nodes + 1], and of a pass over 0 to `nodes` drafts with its
        verification [nodes + 1]; for one sequence, in the middle of the first article's output."""
        middle = max(2, len(self.truth[0]) // 2)

        def state_of(most: int) -> DecodeState:
            state = self._state(1, most)
            state.tokens[0, 1:middle] = torch.from_numpy(self.truth[0][: middle - 1])
            state.lengths[0] = middle
            state.limits[0] = max(int(state.limits[0]), middle + most + 1)
            return state

        drafts, passes = np.full((len(orders), nodes + 1), np.inf), np.full(nodes + 1, np.inf)
        drafts[:, 0] = 0
        drafters = [self.tree(paths, 1) for paths in orders]
        states = [state_of(nodes) for _ in orders]
        plain = state_of(nodes)
        given = []
        for most in range(nodes + 1):
            given.append(Draft.empty(1, nodes))
            given[-1].lengths[:] = most
            given[-1].parents = torch.zeros(1, nodes, dtype=torch.int64)
        for _ in range(REPEATS):
            for most in range(nodes + 1):
                began = time.perf_counter()
                verify(plain, given[most], self.target.decode(*plain.inputs(given[most])), self.target)
                passes[most] = min(passes[most], time.perf_counter() - began)
                for number, (drafter, state) in enumerate(zip(drafters, states, strict=True)):
                    if 0 < most <= len(orders[number]):
                        state.draft_tokens[0] = most
                        began = time.perf_counter()
                        drafter.draft(state)
                        drafts[number, most] = min(drafts[number, most], time.perf_counter() - began)
        return drafts, passes


def best_first(accepted: np.ndarray, levels: int, children: int, nodes: int) -> tuple[list[tuple[int, ...]], list[float]]:
    """The nodes of highest worth of a tree of so many levels and children, at most `nodes`, and the worth of each; the best
    n of them are the first n. accepted [levels, children] by depth and rank."""
    paths, worths = [], []
    waiting = [(-float(accepted[0, 0]), (0,), 1.0)]
    while waiting and len(paths) < nodes:
        worth, path, parent = heapq.heappop(waiting)
        if worth == 0:
            break
        paths.append(path)
        worths.append(-worth)
        depth, rank = len(path), path[-1]
        if rank + 1 < children:
            heapq.heappush(waiting, (-parent * float(accepted[depth - 1, rank + 1]), (*path[:-1], rank + 1), parent))
        if depth < levels:
            heapq.heappush(waiting, (worth * float(accepted[depth, 0]), (*path, 0), -worth))
    return paths, worths


def tune_tree(model: Model, sources: list[np.ndarray], out: str | Path, max_new_tokens: int = 128, nodes: int = 24,
              children: int = 3, levels: int = 8, temperature: float = 0.0, replaced: bool = False) -> Shape:
    """Measure on the articles, and write the best shape to `out`. UserError: the model's drafter drafts no trees.

    Where no branch pays the best shape is a chain. sources: n id vectors that end in `</s>`. nodes, children, levels: the
    most of each. temperature: of the requests to come.
    """
    if children * levels > MAX_DRAFT_TOKENS or nodes > MAX_DRAFT_TOKENS:
        raise UserError(f"{children} children on {levels} levels, {nodes} nodes: a tree has {MAX_DRAFT_TOKENS} nodes at "
                        "most; give fewer")
    bench = TreeBench(model, sources, max_new_tokens, temperature, replaced)
    accepted = bench.accepted(levels, children)
    # trees by their levels, and the chain
    found = [best_first(accepted, most, children, nodes) for most in range(1, levels + 1)]
    found.append(best_first(accepted, levels, 1, nodes))
    if not found[0][0]:
        raise UserError(f"drafter {model.drafter.name!r} drafted nothing that stood; there is no tree to tune")
    drafts, passes = bench.seconds([paths for paths, _ in found], nodes)
    tokens = np.ones((len(found), nodes + 1))
    for number, (paths, worths) in enumerate(found):
        tokens[number, 1 : len(paths) + 1] += np.cumsum(worths)
    speeds = tokens / (drafts + passes)

    def choice(which: slice) -> tuple[dict, list[tuple[int, ...]]]:
        number, most = np.unravel_index(np.argmax(speeds[which, 1:]), speeds[which, 1:].shape)
        number, most = int(number) + which.start, int(most) + 1
        paths = found[number][0][:most]
        return {"nodes": most, "levels": max(map(len, paths)), "predicted_tokens_per_step": float(tokens[number, most]),
                "tokens_per_step": bench.decode(paths, lambda *_: None), "speed_up": float(speeds[number, most] * passes[0]),
                "draft_seconds": float(drafts[number, most]), "pass_seconds": float(passes[most])}, paths

    tree, paths = choice(slice(0, levels + 1))
    chain, _ = choice(slice(levels, levels + 1))
    shape = Shape(Shape.of_paths(paths).parents, {
        "tree": tree, "chain": chain, "accepted": accepted.round(4).tolist(), "passes": passes.tolist(),
        "articles": len(sources), "target": weights_hash(model.path), "weights": model.target.weights.stored,
        "drafter": model.drafter.name, "temperature": temperature, "independent": replaced,
        "max_new_tokens": max_new_tokens})
    shape.save(out)
    return shape
