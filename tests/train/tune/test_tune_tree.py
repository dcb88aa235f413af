"""The search for a tree's shape: the worth of nodes, acceptance rates, and the file."""

from __future__ import annotations

import json

import numpy as np
import pytest

import foredraft
from foredraft.engine.drafters.tree_shape import Shape
from foredraft.errors import UserError
from foredraft.train.tune.tune_tree import TreeTrials, best_first, tune_tree

SOURCES = [np.array(source) for source in ([5, 9, 33, 1], [7, 8, 7, 9, 7, 8, 9, 1], [50, 51, 52, 53, 54, 1])]


@pytest.fixture(scope="module")
def model(tiny_model_path):
    return foredraft.load(tiny_model_path, drafter="lookup")


def test_the_best_nodes_are_those_of_highest_worth():
    accepted = np.array([[0.6, 0.3], [0.5, 0.1], [0.5, 0.2]])
    paths, worths = best_first(accepted, 3, 2, 30)
    by_worth = {}
    for first in range(2):
        by_worth[first,] = accepted[0, first]
        for second in range(2):
            by_worth[first, second] = by_worth[first,] * accepted[1, second]
            for third in range(2):
                by_worth[first, second, third] = by_worth[first, second] * accepted[2, third]
    assert worths == pytest.approx(sorted(by_worth.values(), reverse=True))
    assert all(by_worth[path] == pytest.approx(worth) for path, worth in zip(paths, worths, strict=True))
    assert len(Shape.of_paths(paths).parents) == 14
    assert best_first(accepted, 2, 1, 30)[0] == [(0,), (0, 0)]
    assert best_first(accepted, 3, 2, 3)[0] == paths[:3]
    # nodes of worth 0 are left out
    assert best_first(np.array([[0.5, 0.0]]), 1, 2, 9)[0] == [(0,)]


def test_acceptance_rates_predict_the_tokens_per_step(model):
    trials = TreeTrials(model, SOURCES, 60, 0.0, False)
    accepted = trials.accepted(3, 2)
    assert accepted.shape == (3, 2) and (accepted.sum(1) <= 1 + 1e-9).all() and accepted[0, 0] > 0
    # the rates determine the tokens per step of a chain, apart from the ends of the texts
    alone = trials.accepted(3, 1)
    rate = trials.decode([(0,), (0, 0), (0, 0, 0)], lambda *_: None)
    assert rate == pytest.approx(1 + np.cumprod(alone[:, 0]).sum(), rel=0.15)


def test_the_shape_can_be_loaded_and_used(model, tmp_path):
    out = tmp_path / "shape.json"
    shape = tune_tree(model, SOURCES, out, max_new_tokens=12, nodes=5, children=2, levels=3)
    assert Shape.load(out).parents == shape.parents and 1 <= len(shape.parents) <= 5
    figures = json.loads(out.read_text())["figures"]
    assert len(figures["passes"]) == 6 and figures["tree"]["tokens_per_step"] > 1
    assert figures["tree"]["speed_up"] >= figures["chain"]["speed_up"] > 0
    inputs = [source.tolist() for source in SOURCES]
    plain = model.with_drafter(None).generate(inputs, max_new_tokens=12).token_ids
    assert model.with_drafter(f"tree:{out}:lookup").generate(inputs, max_new_tokens=12).token_ids == plain
    with pytest.raises(UserError, match="at most 64 nodes"):
        tune_tree(model, SOURCES, out, children=9, levels=9)
    with pytest.raises(UserError, match="drafts no trees"):
        tune_tree(model.with_drafter(None), SOURCES, out)


def test_the_command(command, tiny_model_path, tmp_path):
    data = tmp_path / "validation.jsonl"
    data.write_text("\n".join(json.dumps({"article": f"w{i} w7 w8 w7 w8", "highlights": "w7"}) for i in range(10, 14)))
    code, out, err = command("tune-tree", "--target", tiny_model_path, "--drafter", "lookup", "--data", data, "--out",
                             tmp_path / "shape.json", "--limit", 2, "--max-new-tokens", 8, "--nodes", 4, "--levels", 2,
                             "--temperature", 1, "--json")
    assert code == 0, err
    last = json.loads(out.splitlines()[-1])
    assert last["articles"] == 2 and last["temperature"] == 1 and f"tree:{tmp_path / 'shape.json'}:lookup" in out
