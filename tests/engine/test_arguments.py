"""Where settings come from: arguments, generation_config, the checkpoint's files."""

import json
import typing
import warnings
from dataclasses import fields

import numpy as np
import pytest
import torch

import foredraft
from foredraft.engine.arguments import SamplingSettings, checkpoint_settings, merge
from foredraft.engine.params import SamplingParams
from foredraft.errors import UserError

SOURCE = [5, 9, 33, 5, 9, 40, 5, 9, 1]


@pytest.fixture
def checkpoint(tiny_model_path, tmp_path):
    """A function that copies the model with other entries in its json files."""
    import shutil

    def copy(**files):
        folder = tmp_path / f"model{len(list(tmp_path.iterdir()))}"
        shutil.copytree(tiny_model_path, folder)
        for name, entries in files.items():
            path = folder / f"{name}.json"
            before = json.loads(path.read_text()) if path.exists() else {}
            path.write_text(json.dumps(before | entries))
        return folder

    return copy


@pytest.fixture(scope="module")
def small(tiny_model_path):
    return foredraft.load(tiny_model_path)


def test_the_typed_arguments_are_the_fields():
    assert set(typing.get_type_hints(SamplingSettings)) == {field.name for field in fields(SamplingParams)}


def test_an_argument_wins_over_the_object_and_the_object_over_the_file(checkpoint):
    from transformers import GenerationConfig

    entries = {"max_new_tokens": 9, "no_repeat_ngram_size": 1, "eos_token_id": None}
    model = foredraft.load(checkpoint(generation_config=entries))
    length = lambda **arguments: len(model.generate([SOURCE], **arguments).token_ids[0])  # noqa: E731
    assert length() == 9
    assert length(generation_config=GenerationConfig(max_new_tokens=7)) == 7
    assert length(generation_config={"max_length": 7}) == 6
    assert length(generation_config={"max_new_tokens": 7}, max_new_tokens=5) == 5
    assert length(max_length=5) == 4
    tokens = model.generate([SOURCE]).token_ids[0]
    assert len(set(tokens)) == 9, "no token twice"
    assert len(set(model.generate([SOURCE], no_repeat_ngram_size=0).token_ids[0])) < 9


def test_sampling_in_the_file_is_honoured(checkpoint):
    plain = foredraft.load(checkpoint())
    sampling = foredraft.load(checkpoint(generation_config={"do_sample": True, "top_k": 7, "temperature": 0.8}))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert sampling.generate([SOURCE], seed=3).token_ids == plain.generate(
            [SOURCE], seed=3, do_sample=True, top_k=7, temperature=0.8).token_ids
        assert sampling.generate([SOURCE], do_sample=False).token_ids == plain.generate([SOURCE]).token_ids


def test_what_is_not_supported_is_a_warning_once(checkpoint):
    folder = checkpoint(generation_config={"dola_layers": "low", "min_length": 30, "my_entry": 1, "use_cache": False})
    model = foredraft.load(folder)
    assert model.generate([SOURCE], max_new_tokens=4).warnings == [
        "generation_config.json: dola_layers is 'low', which is not supported; decoding goes on without it",
        "generation_config.json: my_entry is not known; decoding goes on without it"]
    assert model.generate([SOURCE], max_new_tokens=4).warnings == []


def test_several_end_tokens_or_none_in_the_files(checkpoint):
    free = foredraft.load(checkpoint(config={"eos_token_id": None}, generation_config={"eos_token_id": None}))
    tokens = free.generate([SOURCE], max_new_tokens=100).token_ids[0]
    assert len(tokens) == 100
    end = tokens[7]
    for name in ("config", "generation_config"):
        folder = checkpoint(**{name: {"eos_token_id": [1, end]}})
        if name == "config" and (folder / "generation_config.json").exists():
            (folder / "generation_config.json").unlink()
        found = foredraft.load(folder).generate([SOURCE], max_new_tokens=100).token_ids[0]
        assert found == tokens[: tokens.index(end) + 1]
    # with a file that was made of config.json the end tokens of both count; another one replaces those of config.json
    for is_made, ends in ((True, (1, end)), (False, (1,))):
        folder = checkpoint(config={"eos_token_id": [1, end]},
                            generation_config={"eos_token_id": 1, "_from_model_config": is_made})
        assert tuple(np.atleast_1d(checkpoint_settings(folder)[0]["eos_token_id"])) == ends


def test_entries_of_config_json_count_without_a_generation_config(checkpoint):
    folder = checkpoint(config={"max_length": 6, "no_repeat_ngram_size": 1, "eos_token_id": None})
    (folder / "generation_config.json").unlink(missing_ok=True)
    settings, warned = checkpoint_settings(folder)
    assert settings == {"max_length": 6, "no_repeat_ngram_size": 1, "eos_token_id": (), "decoder_start_token_id": 0}
    assert not warned
    assert len(foredraft.load(folder).generate([SOURCE]).token_ids[0]) == 5


@pytest.mark.parametrize(("text", "message"), [
    ("[1]", "holds no JSON object"), ("{", "not readable as JSON"),
    ('{"top_p": 3}', "top_p is 3; give a number above 0 and at most 1"),
    ('{"max_new_tokens": "many"}', "max_new_tokens is 'many'; give a whole number")])
def test_a_bad_file_is_named(checkpoint, text, message):
    folder = checkpoint()
    (folder / "generation_config.json").write_text(text)
    with pytest.raises(UserError, match=f"generation_config.json: {message}"):
        foredraft.load(folder)


@pytest.mark.parametrize(("arguments", "message"), [
    ({"min_new_tokens": 9, "max_new_tokens": 8}, "min_new_tokens is 9, more than max_new_tokens, 8"),
    ({"min_length": 9, "max_length": 8}, "min_new_tokens is 8, more than max_new_tokens, 7"),
    ({"max_length": 1}, "max_length is 1; give a whole number between 2"),
    ({"repetition_penalty": 0}, "repetition_penalty is 0; give a number above 0"),
    ({"repetition_penalty": "1.2"}, "repetition_penalty is '1.2'; give a number above 0"),
    ({"no_repeat_ngram_size": 2.5}, "no_repeat_ngram_size is 2.5; give a whole number"),
    ({"bad_words_ids": [5]}, r"bad_words_ids holds 5; give lists of at least one token id"),
    ({"bad_words_ids": [[]]}, r"bad_words_ids holds \[\]; give lists"),
    ({"bad_words_ids": "no"}, "bad_words_ids is 'no'; give a list"),
    ({"suppress_tokens": [-1]}, "suppress_tokens holds -1; give token ids"),
    ({"sequence_bias": {(5,): "x"}}, "sequence_bias holds"),
    ({"exponential_decay_length_penalty": 3}, "exponential_decay_length_penalty is 3; give"),
    ({"min_p": 2}, "min_p is 2; give a number of at least 0 and at most 1"),
    ({"typical_p": 0}, "typical_p is 0; give a number above 0"),
    ({"max_time": 0}, "max_time is 0; give a number above 0"),
    ({"logits_processor": [5]}, "logits_processor holds something that cannot be called"),
    ({"stopping_criteria": 5}, "stopping_criteria is 5; give functions"),
    ({"prefix_allowed_tokens_fn": 5}, "prefix_allowed_tokens_fn cannot be called"),
    ({"eos_token_id": [True]}, "eos_token_id holds True; give token ids"),
    ({"logprobs": -1}, "logprobs is -1; give a whole number"),
    ({"penalty_alpha": 0.6}, "penalty_alpha=0.6 is not supported; leave it out"),
    ({"repetiton_penalty": 1.2}, "there is no argument 'repetiton_penalty'; did you mean 'repetition_penalty'"),
    ({"zzz": 1}, "there is no argument 'zzz'; leave it out"),
    ({"big_little": (0.5, 2), "repetition_penalty": 1.2, "draft_tokens": 4},
     "repetition_penalty: not supported with big_little")])
def test_bad_arguments_are_one_line(tiny_model_path, arguments, message):
    model = foredraft.load(tiny_model_path)
    with pytest.raises(UserError, match=message) as caught:
        model.generate([SOURCE], **arguments)
    assert "\n" not in str(caught.value)


WRONG = [5, -1, 1.5, "x", b"x", {"a": 1}, [None], ["x"], [[5]], [[]], object(), torch.tensor([[5, 6]]), np.array(5),
         float("nan"), float("inf"), (1, 2, 3), 10**30, "", [""]]


@pytest.mark.filterwarnings("ignore:.*without effect")
@pytest.mark.parametrize("name", [*SamplingSettings.__annotations__, "generation_config", "streamer", "batch_size",
                                  "max_source", "kv_memory", "verification", "big_little", "guidance_scale"])
def test_a_value_of_any_wrong_type_is_one_line(small, name):
    for value in WRONG:
        for others in ({}, {"do_sample": True}):
            try:
                small.generate([SOURCE], **{"max_new_tokens": 2} | others | {name: value})
            except UserError as error:
                assert "\n" not in str(error)


def test_one_bad_setting_does_not_end_a_stream(small):
    requests = [foredraft.Request(SOURCE), foredraft.Request(SOURCE, stop_strings=[5]),
                foredraft.Request(SOURCE, do_sample=True, temperature="warm"), foredraft.Request(SOURCE)]
    reasons = [result.finish_reason for result in small.stream(requests, in_order=True, max_new_tokens=2)]
    assert reasons == ["length", "error", "error", "length"]


def test_numbers_and_arrays_of_numpy_and_torch_are_read(small):
    plain = {"do_sample": True, "seed": 7, "temperature": 0.5, "top_p": 0.75, "top_k": 9, "max_new_tokens": 6,
             "eos_token_id": (1, 4), "suppress_tokens": (3,), "bad_words_ids": ((5, 6),)}
    given = {"do_sample": np.bool_(True), "seed": np.int64(7), "temperature": np.float32(0.5), "top_p": np.float32(0.75),
             "top_k": np.int32(9), "max_new_tokens": np.int64(6), "eos_token_id": torch.tensor([1, 4]),
             "suppress_tokens": np.array(3), "bad_words_ids": torch.tensor([[5, 6]])}
    assert SamplingParams(**given) == SamplingParams(**plain)
    assert small.generate([SOURCE], **given).token_ids == small.generate([SOURCE], **plain).token_ids


def test_empty_constraints_are_refused(small):
    for arguments in ({"choices": []}, {"regex": ""}):
        with pytest.raises(UserError, match="give"):
            small.generate([SOURCE], **arguments)


def test_arguments_of_transformers_that_only_say_how_are_accepted(tiny_model_path):
    model = foredraft.load(tiny_model_path)
    assert model.generate([SOURCE], use_cache=True, num_beams=1, max_new_tokens=3).token_ids == model.generate(
        [SOURCE], max_new_tokens=3).token_ids


def test_limits_of_one_level_replace_those_of_a_weaker_one():
    assert merge({"max_length": 9}, {"max_new_tokens": 50}).max_new_tokens == 8
    assert merge({"max_new_tokens": 9}, {"max_length": 50}).max_new_tokens == 9
    assert merge({"max_new_tokens": 9}, {"min_length": 50}).min_new_tokens == 9
    assert merge({"min_new_tokens": 9}, {"min_length": 50}).min_new_tokens == 9
    assert merge({}, {"max_length": 50, "min_length": 20}).min_new_tokens == 19
    assert merge({}, {}).max_new_tokens == 128
