"""A drafter receives a source when it first drafts, and need not release what it never received."""

from __future__ import annotations

import pytest
import torch

import foredraft
from foredraft.engine.draft_length.lazy_admission import LazyAdmission
from foredraft.engine.drafters.lookup import LookupDrafter

SOURCES = [[5, 6, 7, 5, 6, 7, 5, 6, 1], [9, 8, 1], [20, 21, 22, 23, 1]]


class Recorder:
    def __init__(self):
        self.calls = []

    def admit(self, sequences, sources, encoded):
        self.calls.append(("admit", list(sequences), [source.tolist() for source in sources], list(encoded)))

    def release(self, sequences):
        self.calls.append(("release", list(sequences)))


def test_pending_sources_are_admitted_once_and_together():
    drafter = Recorder()
    admission = LazyAdmission(drafter)
    admission.admit([1], [torch.tensor([5])], ["b"])
    admission.admit([0], [torch.tensor([6])], ["a"])
    admission.release([1])
    admission.admit([1], [torch.tensor([7])], ["c"])
    assert drafter.calls == []
    assert admission.admit_pending() is drafter and admission.admit_pending() is drafter
    assert drafter.calls == [("admit", [0, 1], [[6], [7]], ["a", "c"])]
    admission.release([0, 1])
    admission.release([1])
    assert drafter.calls[1:] == [("release", [0, 1])]


@pytest.mark.parametrize("is_lazy", [True, False])
def test_a_source_without_a_draft_is_never_admitted(tiny_model_path, is_lazy, monkeypatch):
    """If admissions are not deferred, the drafter receives every source."""
    if not is_lazy:
        admit = LazyAdmission.admit
        monkeypatch.setattr(LazyAdmission, "admit", lambda self, *given: (admit(self, *given), self.admit_pending())[0])

    class Counted(LookupDrafter):
        num_admitted = 0

        def admit(self, sequences, sources, encoded):
            self.num_admitted += len(sequences)
            super().admit(sequences, sources, encoded)

        def draft(self, state, budget=None):
            # always wrong
            draft = super().draft(state, budget)
            draft.tokens += 1
            return draft

    drafter = Counted()
    model = foredraft.load(tiny_model_path, drafter=drafter)
    plain = model.generate(SOURCES * 8, max_new_tokens=12, draft_tokens=0)
    before = drafter.num_admitted
    out = model.generate(SOURCES * 8, max_new_tokens=12, draft_tokens="auto", batch_size=2)
    assert out.token_ids == plain.token_ids
    assert (drafter.num_admitted - before < 24) == is_lazy
