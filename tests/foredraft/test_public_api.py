"""The public names: what the package exports, what type checkers see, and a program that uses them.

`make check` runs mypy over this file, so that `typed_program` fails there if a public signature changes.
"""

from __future__ import annotations

import ast
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

import foredraft


class Repeat(foredraft.Drafter):
    """Proposes the last token again."""

    name = "repeat"
    capabilities = foredraft.Capabilities(point_masses=True)

    def admit(self, sequences: Sequence[int], sources: Sequence[torch.Tensor], encoded: Sequence[torch.Tensor]) -> None:
        pass

    def release(self, sequences: Sequence[int]) -> None:
        pass

    def draft(self, state, budget=None) -> foredraft.Draft:
        draft = foredraft.Draft.empty(state.batch_size, state.max_draft)
        draft.lengths.copy_(state.allowed(budget))
        draft.tokens.copy_(state.tokens.gather(1, state.lengths[:, None] - 1).expand_as(draft.tokens))
        return draft


def typed_program(path: Path) -> list[str | None]:
    """Every public name in use."""
    model: foredraft.Model = foredraft.load(path, drafter=Repeat(), device="cpu", dtype="float32", weights=None)
    out: foredraft.Output = model.generate(
        ["w5 w6"], max_new_tokens=4, draft_tokens=2, temperature=0.5, do_sample=True, seed=1)
    stats: foredraft.DecodeStats = out.stats
    rate: float = stats.acceptance_rate
    assert 0 <= rate <= 1
    results: list[foredraft.Result] = list(model.stream([foredraft.Request("w5 w6", id="a", seed=1)], max_new_tokens=4))
    texts: list[str | None] = [result.text for result in results] + out.texts
    scores: foredraft.Scores = model.score(["w5 w6"], [["w7", "w8"]])
    assert len(scores.sums) == 2
    assert foredraft.pipeline("summarization", model)(["w5 w6"], max_new_tokens=4)[0]["summary_text"] is not None
    params = foredraft.SamplingParams(max_new_tokens=4, temperature=0.5)
    assert params.max_new_tokens == 4 and foredraft.__version__
    return texts


def test_the_program_runs(tiny_model_path):
    assert len(typed_program(tiny_model_path)) == 2


def test_names_for_type_checkers_are_the_exported_ones():
    tree = ast.parse(Path(foredraft.__file__).read_text())
    (block,) = [node for node in tree.body if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING"]
    typed = {alias.name: node.module for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert typed == foredraft._HOME and set(foredraft.__all__) == {*typed, "__version__"}


def test_every_name_is_found():
    for name in foredraft.__all__:
        assert getattr(foredraft, name) is not None and name in dir(foredraft)
    with pytest.raises(AttributeError, match="no attribute 'DecodeConfig'"):
        _ = foredraft.DecodeConfig
    assert issubclass(foredraft.UserError, ValueError)
