"""At which lengths of an output, the start token included, a rule holds, and which tokens it allows there."""

from __future__ import annotations

import numpy as np
import pytest

from foredraft.engine.params import SamplingParams
from foredraft.engine.sampling.logits_pipeline import make_processors
from foredraft.engine.sampling.processor import Context

V, END, NEW = 8, 1, 9
LENGTHS = range(1, NEW + 1)


def changed(length: int, **settings) -> list[int]:
    """The tokens whose scores the rules of these settings change."""
    context = Context(np.array([3, 6, 4, END]), (END,), NEW + 1, V, "reference")
    scores, tokens = np.full(V, -1, np.float32), np.resize([0, 3, 6], length).astype(np.int64)
    for processor in make_processors(SamplingParams(max_new_tokens=NEW, **settings), context):
        processor(tokens, scores)
    return np.flatnonzero(scores != -1).tolist()


@pytest.mark.parametrize("settings, token, lengths", [
    ({"min_new_tokens": 3}, END, [1, 2, 3]), ({"min_length": 3}, END, [1, 2]),
    ({"suppress_tokens": [5]}, 5, LENGTHS), ({"begin_suppress_tokens": [5]}, 5, [1]),
    ({"exponential_decay_length_penalty": (4, 1.5)}, END, [6, 7, 8, 9])])
def test_where_a_token_is_forbidden_or_favoured(settings, token, lengths):
    assert [length for length in LENGTHS if changed(length, **settings)] == list(lengths)
    assert all(changed(length, **settings) == [token] for length in lengths)


@pytest.mark.parametrize("settings, length", [({"forced_bos_token_id": 5}, 1), ({"forced_eos_token_id": [5]}, NEW)])
def test_where_a_token_is_forced(settings, length):
    assert [length for length in LENGTHS if changed(length, **settings)] == [length]
    assert len(changed(length, **settings)) == V


def test_a_forced_first_token_moves_what_is_suppressed_at_the_beginning():
    settings = {"begin_suppress_tokens": [5], "forced_bos_token_id": 2}
    assert changed(2, **settings) == [5] and not changed(3, **settings)


def test_n_grams_of_the_source_do_not_occur():
    # the output ends with 3 or 6, after which the source has 6 and 4
    assert [changed(length, encoder_no_repeat_ngram_size=2) for length in (2, 3)] == [[6], [4]]
