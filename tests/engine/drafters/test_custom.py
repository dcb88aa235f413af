"""A user's drafter: three methods are enough, and what kernels could not survive is refused in one line."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import foredraft
from foredraft.engine.draft_length.adaptive_drafter import AdaptiveDrafter
from foredraft.engine.drafters.registry import ENTRIES, PROPOSERS, register
from foredraft.errors import UserError

TEXT, NEW = "w5 w9 w11 w5 w9 w12", 12


class Three:
    """Proposes the same token everywhere, more often than it may."""

    def admit(self, sequences, sources, encoded): ...

    def release(self, sequences): ...

    def draft(self, state):
        draft = foredraft.Draft.empty(state.batch_size, state.max_draft)
        draft.tokens[:], draft.lengths[:] = 7, state.max_draft
        return draft


@pytest.fixture(scope="module")
def model(tiny_model_path):
    return foredraft.load(tiny_model_path, drafter=None)


@pytest.mark.parametrize("options", [{}, dict(draft_tokens="auto"), dict(do_sample=True, seed=3)])
def test_three_methods_keep_the_tokens_of_plain_decoding(model, options):
    plain = {name: value for name, value in options.items() if name != "draft_tokens"}
    wanted = model.generate([TEXT, "w7"], max_new_tokens=NEW, **plain).token_ids
    for drafter in (Three(), type("Based", (Three, foredraft.Drafter), {})()):
        found = model.with_drafter(drafter)
        assert found.drafter.name in ("Three", "Based")
        out = found.generate([TEXT, "w7"], max_new_tokens=NEW, **options)
        assert out.token_ids == wanted
        assert set(sum(out.proposers, [])) <= {0, PROPOSERS.index("custom")}


def test_a_custom_drafter_works_inside_a_cascade(model):
    register("seven")(Three)
    try:
        out = model.with_drafter("cascade:lookup,seven").generate(TEXT, max_new_tokens=NEW)
        assert out.token_ids == model.generate(TEXT, max_new_tokens=NEW).token_ids
        assert model.with_drafter("seven").drafter.proposer == PROPOSERS.index("seven")
        with pytest.raises(UserError, match="'seven' is taken"):
            register("seven")
    finally:
        del ENTRIES["seven"]
        PROPOSERS.remove("seven")


def test_a_class_in_a_file_is_a_spec(model, tmp_path):
    file = tmp_path / "mine.py"
    file.write_text("import foredraft\n\n\nclass Mine(foredraft.Drafter):\n    name = 'mine'\n\n"
                    "    def admit(self, sequences, sources, encoded): ...\n    def release(self, sequences): ...\n\n"
                    "    def draft(self, state, budget=None):\n"
                    "        return foredraft.Draft.empty(state.batch_size, state.max_draft)\n")
    assert model.with_drafter(f"{file}:Mine").generate(TEXT, max_new_tokens=3).stats.emitted > 0
    for spec, match in ((f"{file}:Yours", "has no class Yours"), (f"{tmp_path}/none.py:Mine", "no such file")):
        with pytest.raises(UserError, match=match):
            model.with_drafter(spec)


def change(**fields):
    def changed(draft):
        for name, value in fields.items():
            setattr(draft, name, value(getattr(draft, name)) if callable(value) else value)
        return draft
    return changed


@pytest.mark.parametrize(("changed", "match"), [
    (lambda draft: None, "returned a NoneType"),
    (change(tokens=lambda x: x + 10**6), "outside the vocabulary"),
    (change(tokens=lambda x: x - 10), "outside the vocabulary"),
    (change(tokens=lambda x: x.int()), "draft.tokens is .* torch.int32"),
    (change(tokens=lambda x: x[0]), "draft.tokens is"),
    (change(tokens=lambda x: x.numpy()), "draft.tokens is a ndarray"),
    (change(tokens=lambda x: torch.cat((x, x), 1), proposer=lambda x: torch.cat((x, x), 1)), "has 10 columns"),
    (change(lengths=lambda x: x + 1), "draft.lengths is"),
    (change(lengths=lambda x: x - 9), "draft.lengths is"),
    (change(lengths=lambda x: x[:0]), "draft.lengths is"),
    (change(dense=lambda x: ~x), "without draft.logits"),
    (change(logits=torch.zeros(1, 5, 3), lse=torch.zeros(1, 5, dtype=torch.float64)), "draft.logits is"),
    (change(parents=torch.zeros(1, 5, dtype=torch.int64)), "draft.parents is set"),
])
def test_wrong_drafts_are_refused_in_one_line(model, changed, match):
    class Wrong(Three):
        def draft(self, state):
            return changed(super().draft(state))

    with pytest.raises(UserError, match=match) as caught:
        model.with_drafter(Wrong()).generate(TEXT, max_new_tokens=NEW)
    assert "\n" not in str(caught.value) and "'Wrong'" in str(caught.value)


def test_padding_is_not_read_and_a_kept_draft_is_not_changed(model):
    class Padded(Three):
        kept = None

        def draft(self, state):
            if self.kept is None:
                self.kept = super().draft(state)
                self.kept.lengths[:], self.kept.tokens[:, 2:] = 2, -1
            return self.kept

    drafter = Padded()
    out = model.with_drafter(drafter).generate(TEXT, max_new_tokens=NEW)
    assert out.token_ids == model.generate(TEXT, max_new_tokens=NEW).token_ids
    assert drafter.kept.lengths.tolist() == [2] and drafter.kept.tokens[0, 2:].eq(-1).all()


def test_missing_methods_are_named(model):
    with pytest.raises(UserError, match="has no method release, draft"):
        model.with_drafter(type("Half", (), {"admit": print})())


def test_budgets_cut_a_custom_draft(model):
    adapted = model.with_drafter(Three()).drafter
    from doubles import make_state

    from foredraft.engine.state import DraftBudget

    state = make_state(2, 20, 5, 32)
    assert adapted.draft(state, DraftBudget(np.array([3, 0]))).lengths.tolist() == [3, 0]
    assert isinstance(AdaptiveDrafter(adapted).capabilities, foredraft.Capabilities)
