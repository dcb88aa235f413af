"""Names of drafters: each can be made, help texts and refusals derive from the one table."""

from __future__ import annotations

import pytest

import foredraft
from foredraft.engine.drafters.registry import ENTRIES, PROPOSERS, _imported, make_drafter, specs, trained_kinds
from foredraft.engine.protocols import Drafter
from foredraft.errors import UserError
from foredraft.kernels.core.backend_triton import HAS_TRITON


def test_every_entry_names_a_drafter():
    for name, entry in ENTRIES.items():
        assert issubclass(_imported(entry.cpu), Drafter), name
        if entry.cuda and HAS_TRITON:
            assert issubclass(_imported(entry.cuda), Drafter), name
    assert all(hasattr(_imported(ENTRIES[kind].model), "model_type") for kind in trained_kinds())
    assert PROPOSERS[:3] == ["target", "lookup", "ngram"] and len(set(PROPOSERS)) == len(PROPOSERS)


@pytest.mark.parametrize("name", [name for name, entry in ENTRIES.items() if entry.is_spec and not entry.cuda])
def test_what_does_not_run_on_cuda_is_refused_with_what_does(name):
    with pytest.raises(UserError, match="on the CPU only so far; .* lookup") as caught:
        make_drafter(f"{name}:x", None, None, None, "cuda") if ENTRIES[name].argument else make_drafter(
            name, None, None, None, "cuda")
    assert "\n" not in str(caught.value) and specs(cuda=True) in str(caught.value)


@pytest.mark.parametrize(
    "spec", ["nothing", "tree", "cnn", "lookup:PATH", "cascade:lookup", "staged:lookup,lookup", "none:x"])
def test_unknown_specs_are_refused(tiny_model_path, spec):
    with pytest.raises(UserError) as caught:
        foredraft.load(tiny_model_path, drafter=spec)
    assert "\n" not in str(caught.value)
