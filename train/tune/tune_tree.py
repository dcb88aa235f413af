"""The search for the best tree of drafts: the shape with the most expected tokens a second on this machine.

A node is worth the product of the acceptance rates on its path, so the best n nodes of the trees with a given depth are the
n of highest worth. This is Sequoia's dynamic programme (Chen et al. 2024, section 4.1) with acceptance rates by depth as
well as by rank. The times of drafts and passes are measured.
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
from foredraft.train.tune.trial_decoder import TrialDecoder

# Repetitions of each timing, of which the minimum is used.
REPEATS = 15


class TreeTrials(TrialDecoder):
    """Trials of trees; `replaced` samples the children of a node with replacement."""

    def __init__(self, model: Model, sources: list[np.ndarray], max_new_tokens: int, temperature: float, replaced: bool):
        super().__init__(model, sources, max_new_tokens, MAX_DRAFT_TOKENS, temperature)
        self.model, self.replaced = model, replaced

    def tree(self, paths: list[tuple[int, ...]], B: int) -> TreeDrafter:
        """A drafter of the tree with these paths, for the first B articles."""
        drafter: Drafter = TreeDrafter(self.model.drafter, Shape.of_paths(paths), self.replaced)
        drafter.admit(range(B), self.sources[:B], self.encoded[:B])
        return drafter

    @torch.inference_mode()
    def accepted(self, levels: int, children: int) -> np.ndarray:
        """[levels, children]: the acceptance rate of each child of the nodes on the branch of first children, relative to
        the steps in which the parent was accepted."""
        paths = [(0,) * level + (rank,) for rank in range(children) for level in range(levels)]
        taken, reached = np.zeros((levels, children)), np.zeros(levels)

        def count(draft: Draft, path: np.ndarray, counts: np.ndarray) -> None:
            for parents, positions, accepted in zip(draft.parents.numpy(), path, counts - 1, strict=True):
                for depth in range(min(accepted + 1, levels)):
                    reached[depth] += 1
                    if depth == accepted:
                        break
                    node = positions[depth + 1] - 1
                    rank = int((parents[:node] == positions[depth]).sum())
                    taken[depth, rank] += 1
                    if rank:
                        break  # the node's children are not on the branch

        self.decode(paths, count)
        return taken / np.maximum(reached, 1)[:, None]

    @torch.inference_mode()
    def decode(self, paths: list[tuple[int, ...]], count: Callable[[Draft, np.ndarray, np.ndarray], None]) -> float:
        """Decode all articles with a tree and return the tokens per step.

        `count(draft, path, counts)` is called at every step with the sequences that are running.
        """
        drafter, state = self.tree(paths, len(self.sources)), self._state(len(self.sources), len(paths))
        while not bool(state.finished.all()):
            running = (~state.finished).nonzero()[:, 0]
            draft = drafter.draft(state)
            hidden = self.target.decode(*state.inputs(draft))
            verification = verify(state, draft, hidden, self.target)
            self.target.keep(verification.path)
            rest = Draft(draft.tokens[running], draft.lengths[running], draft.dense[running], draft.proposer[running],
                         parents=draft.parents[running])
            count(rest, verification.path[running].numpy(), verification.counts[running].numpy())
            state.commit(draft, verification, hidden)
        self._check(state)
        return float((state.lengths - 1).sum() / state.num_steps.sum())

    @torch.inference_mode()
    def seconds(self, orders: list[list[tuple[int, ...]]], nodes: int) -> tuple[np.ndarray, np.ndarray]:
        """Measured times for one sequence, in the middle of the first article's output.

        Returns
        -------
        drafts : numpy.ndarray
            [orders, nodes + 1], seconds of drafting the first n nodes of each order.
        passes : numpy.ndarray
            [nodes + 1], seconds of pass and verification with 0 to `nodes` drafted tokens.
        """

        def state_of(most: int) -> DecodeState:
            state = self._middle_state(most)
            state.limits[0] = max(int(state.limits[0]), int(state.lengths[0]) + most + 1)
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
    """The nodes of highest worth of a tree.

    Parameters
    ----------
    accepted
        [levels, children], acceptance rates by depth and rank.
    levels, children, nodes
        Limits of the depth, of the children of a node, and of the nodes.

    Returns
    -------
    paths : list
        The ranks on the way to each node, in order of falling worth: the best n nodes are the first n.
    worths : list
        The worth of each node.
    """
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
    """Search for the best tree; it is a chain where branches are not worth their cost.

    Parameters
    ----------
    model
        Target and drafter.
    sources
        n token sequences that end in `</s>`.
    out
        File of the shape.
    max_new_tokens
        Longest output.
    nodes, children, levels
        Limits of the tree.
    temperature
        Of the requests that the shape is made for.
    replaced
        Sample the children of a node with replacement.

    Returns
    -------
    Shape

    Raises
    ------
    UserError
        The model's drafter cannot draft trees, none of its drafts were accepted, or the limits are too large.
    """
    if children * levels > MAX_DRAFT_TOKENS or nodes > MAX_DRAFT_TOKENS:
        raise UserError(f"{children} children on {levels} levels, {nodes} nodes: a tree has at most {MAX_DRAFT_TOKENS} "
                        "nodes; give smaller limits")
    runner = TreeTrials(model, sources, max_new_tokens, temperature, replaced)
    accepted = runner.accepted(levels, children)
    # the best nodes for each depth, and a chain
    found = [best_first(accepted, most, children, nodes) for most in range(1, levels + 1)]
    found.append(best_first(accepted, levels, 1, nodes))
    if not found[0][0]:
        raise UserError(f"no token of drafter {model.drafter.name!r} was accepted; there is no tree to tune")
    drafts, passes = runner.seconds([paths for paths, _ in found], nodes)
    tokens = np.ones((len(found), nodes + 1))
    for number, (paths, worths) in enumerate(found):
        tokens[number, 1 : len(paths) + 1] += np.cumsum(worths)
    speeds = tokens / (drafts + passes)

    def choice(which: slice) -> tuple[dict, list[tuple[int, ...]]]:
        number, most = np.unravel_index(np.argmax(speeds[which, 1:]), speeds[which, 1:].shape)
        number, most = int(number) + which.start, int(most) + 1
        paths = found[number][0][:most]
        return {"nodes": most, "levels": max(map(len, paths)), "predicted_tokens_per_step": float(tokens[number, most]),
                "tokens_per_step": runner.decode(paths, lambda *_: None),
                "speed_up": float(speeds[number, most] * passes[0]),
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
