"""Texts whose characters a vocabulary lacks are read with a warning that says how many."""

import pytest

import foredraft


@pytest.mark.parametrize(("text", "warning"), [
    ("w5 w9", None), ("w5 " * 150 + "w999", None), ("w5 w9 zebra", "input 1: 25% of its tokens are <unk>"),
    ("w5 w9 \u4e2d \u6587 a", "input 1: 50% of its tokens are <unk>"), ([5, 2, 2, 2, 1], None)])
def test_unknown_tokens_are_warned_of_with_their_share(tiny_model_path, text, warning):
    out = foredraft.load(tiny_model_path, drafter=None).generate([text], max_new_tokens=2)
    assert len(out.warnings) == (warning is not None)
    assert warning is None or out.warnings[0].startswith(warning)


def test_each_input_has_its_own_warning(tiny_model_path):
    model = foredraft.load(tiny_model_path, drafter=None)
    for result in model.stream(["w5", "zebra", "w7"], in_order=True, max_new_tokens=2):
        assert bool(result.warnings) == (result.index == 1)


def test_the_embedded_vocabulary(tiny_model_path):
    text = "a < b {c} ~ \\ \u4e2d\u6587"
    assert "of its tokens are <unk>" in foredraft.load(drafter=None).generate([text], max_new_tokens=2).warnings[0]
