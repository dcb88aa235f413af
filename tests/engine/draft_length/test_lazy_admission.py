"""A drafter is shown a source when it is first asked, and what it was not shown it need not release."""

from __future__ import annotations

import pytest
import torch

import foredraft
from foredraft.engine.draft_length.lazy_admission import Admissions
from foredraft.engine.drafters.lookup import LookupDrafter

SOURCES = [[5, 6, 7, 5, 6, 7, 5, 6, 1], [9, 8, 1], [20, 21, 22, 23, 1]]


class Shown:
    name, point_masses = "shown", True

    def __init__(self):
        self.calls = []

    def admit(self, rows, sources, encoded):
        self.calls.append(("admit", list(rows), [source.tolist() for source in sources], list(encoded)))

    def release(self, rows):
        self.calls.append(("release", list(rows)))


def test_what_waits_is_shown_once_and_all_together():
    drafter = Shown()
    admissions = Admissions(drafter)
    admissions.admit([1], [torch.tensor([5])], ["b"])
    admissions.admit([0], [torch.tensor([6])], ["a"])
    admissions.release([1])
    admissions.admit([1], [torch.tensor([7])], ["c"])
    assert drafter.calls == []
    assert admissions.show() is drafter and admissions.show() is drafter
    assert drafter.calls == [("admit", [0, 1], [[6], [7]], ["a", "c"])]
    admissions.release([0, 1])
    admissions.release([1])
    assert drafter.calls[1:] == [("release", [0, 1])]


@pytest.mark.parametrize("late", [True, False])
def test_a_source_that_no_draft_was_asked_for_is_never_shown(tiny_model_path, late, monkeypatch):
    """With admissions at once, as they were, the drafter is shown every source."""
    if not late:
        admit = Admissions.admit
        monkeypatch.setattr(Admissions, "admit", lambda self, *given: (admit(self, *given), self.show())[0])

    class Counted(LookupDrafter):
        shown = 0

        def admit(self, rows, sources, encoded):
            self.shown += len(rows)
            super().admit(rows, sources, encoded)

        def draft(self, state, budget=None):
            # always wrong
            draft = super().draft(state, budget)
            draft.tokens += 1
            return draft

    drafter = Counted()
    model = foredraft.load(tiny_model_path, drafter=drafter)
    plain = model.generate(SOURCES * 8, max_new_tokens=12, draft_tokens=0)
    before = drafter.shown
    out = model.generate(SOURCES * 8, max_new_tokens=12, draft_tokens="auto", batch_size=2)
    assert out.token_ids == plain.token_ids
    assert (drafter.shown - before < 24) == late
