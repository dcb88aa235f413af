"""The compiled calls of a real step, counted: a kernel that exists but is not used shows here."""

from collections import Counter
from inspect import getclosurevars

import pytest

import foredraft
from foredraft.engine.drafters.registry import model_class
from foredraft.kernels.core.backend import HAS_NUMBA
from foredraft.kernels.drafting import eagle_drafting as features
from foredraft.kernels.drafting import layer_skip_drafting as skipped
from foredraft.kernels.drafting import recurrent_drafting as recurrent
from foredraft.kernels.model import activation as activate
from foredraft.kernels.model import attention, decoder, linear, norm
from foredraft.kernels.model import lm_head as head
from foredraft.kernels.sampling import sample
from foredraft.kernels.sampling import top_k_top_p as distribution
from foredraft.kernels.step import commit
from foredraft.kernels.step import step_inputs as inputs
from foredraft.kernels.verify import accept

pytestmark = pytest.mark.skipif(not HAS_NUMBA, reason="numba is not installed")
FILES = (accept, activate, attention, commit, decoder, features, head, inputs, distribution, linear, norm, recurrent,
         sample, skipped)


def count_calls(monkeypatch) -> Counter:
    """Counts calls from Python into compiled functions; what compiled code calls stays compiled and is not seen."""
    from numba.core.dispatcher import Dispatcher

    counted = Counter()

    def counting(name, function):
        def call(*arguments):
            counted[name] += 1
            return function(*arguments)

        return call

    for file in FILES:
        for name, value in vars(file).items():
            if isinstance(value, Dispatcher):
                monkeypatch.setattr(file, name, counting(name, value))
    return counted


def test_a_greedy_step_is_a_handful_of_calls_however_deep_the_model(tiny_model_path, monkeypatch):
    model = foredraft.load(tiny_model_path, drafter="lookup")
    # all is compiled before anything is replaced: numba would look the replacements up
    model.generate([[5, 6, 7, 5, 6, 7, 1], [9, 8, 1]], max_new_tokens=12, draft_tokens=3)
    calls = count_calls(monkeypatch)
    out = model.generate([[5, 6, 7, 5, 6, 7, 1], [9, 8, 1]], max_new_tokens=12, draft_tokens=3)
    assert out.stats.steps > 2
    rounds = calls["_decoder_loop"]
    once = ("_step_inputs_loop", "_allowed_loop", "_decoder_loop", "_choose_loop", "_commit_loop")
    assert {name: calls[name] for name in once} == dict.fromkeys(once, rounds)
    assert "_logits_loop" not in calls, "greedy decoding writes no logits"
    assert calls["_activate_threads"] == 2 * model.target.config.num_layers, "one call a layer and source while encoding"
    # the encoder's
    del calls["_activate_threads"], calls["_norm_threads"]
    assert sum(calls.values()) == 6 * rounds


@pytest.mark.parametrize(("kind", "sizes"), [
    ("lstm", dict(hidden_size=16)), ("cnn", dict(hidden_size=16)), ("head", {}), ("self", None)])
def test_all_drafts_of_a_step_are_one_call(tiny_model_path, tmp_path, monkeypatch, kind, sizes):
    if sizes is not None:
        model_class(kind).from_target(tiny_model_path, **sizes).save(tmp_path)
    model = foredraft.load(tiny_model_path, drafter="self:1" if sizes is None else tmp_path)
    model.generate([[5, 6, 7, 1], [9, 8, 1]], max_new_tokens=12, draft_tokens=4)
    calls = count_calls(monkeypatch)
    out = model.generate([[5, 6, 7, 1], [9, 8, 1]], max_new_tokens=12, draft_tokens=4)
    assert out.stats.drafted > out.stats.steps
    assert calls["_draft_loop"] == calls["_decoder_loop"]


def test_inside_them_are_the_kernels_that_the_tests_hold():
    layers = decoder.layers_loop.py_func.__code__.co_names
    assert {"layers_loop", "embed_loop"} <= set(decoder._decoder_loop.py_func.__code__.co_names)
    drafting = {name for function in (recurrent._draft_loop, recurrent._read, recurrent._head_inputs)
                for name in function.py_func.__code__.co_names}
    assert {"num_uncached_loop", "lstm_loop", "cnn_loop", "copy_attention_loop", "vocabulary_head_loop",
            "children_loop"} <= drafting
    assert {"norm_loop", "linear_loop", "self_attention_loop", "cross_attention_loop", "activate_loop"} <= set(layers)
    assert "linear_argmax_loop" in head._choose_loop.py_func.__code__.co_names
    divided = getclosurevars(attention._cross_tasks.py_func).nonlocals["body"]
    assert "gemm_blocks" in divided.py_func.__code__.co_names
