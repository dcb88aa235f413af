"""`pipeline`: every shape of input gives what Model.generate gives; prefixes and defaults come from the checkpoint."""

import itertools
import json
import shutil
import warnings

import pytest
import torch

import foredraft
from foredraft.errors import UserError

TEXTS = ["w5 w6 w7", "w9 w30", "w41 w5"]
TASKS = {
    "summarization": {"prefix": "w50 ", "max_length": 9, "min_length": 4, "no_repeat_ngram_size": 2},
    "translation_en_to_de": {"prefix": "w60 w61 ", "max_length": 6},
    "translation_en_to_fr": {"prefix": "w62 ", "num_beams": 4, "early_stopping": True, "max_length": 6},
    "translation_en_to_ro": {"prefix": "w63 ", "guidance_scale": 4, "max_length": 6},
}


@pytest.fixture(scope="module")
def folder(tiny_model_path, tmp_path_factory):
    """A checkpoint with entries for tasks."""
    folder = shutil.copytree(tiny_model_path, tmp_path_factory.mktemp("tasks") / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"task_specific_params": TASKS}))
    return folder


@pytest.fixture(scope="module")
def model(folder):
    return foredraft.load(folder)


@pytest.fixture
def summarizer(model):
    return foredraft.pipeline("summarization", model)


@pytest.fixture(scope="module")
def right(model):
    """Texts of TEXTS, by the model itself."""
    settings = {name: value for name, value in TASKS["summarization"].items() if name != "prefix"}
    return model.generate(["w50 " + text for text in TEXTS], **settings).texts


def test_every_shape_of_input(summarizer, right):
    assert summarizer(TEXTS[0]) == [{"summary_text": right[0]}]
    assert summarizer(TEXTS) == [{"summary_text": text} for text in right]
    assert summarizer(tuple(TEXTS[:1])) == [{"summary_text": right[0]}]
    assert summarizer([]) == []
    assert list(summarizer(iter(TEXTS))) == [[{"summary_text": text}] for text in right]
    assert list(summarizer(iter([]))) == []


def test_a_dataset_is_read_by_its_indices(summarizer, right):
    class Dataset:
        def __len__(self):
            return len(TEXTS)

        def __getitem__(self, index):
            return TEXTS[index]

    assert list(summarizer(Dataset())) == [[{"summary_text": text}] for text in right]


def test_a_generator_is_read_lazily(summarizer, right):
    read = []

    def endless():
        for text in itertools.cycle(TEXTS):
            read.append(text)
            yield text

    found = summarizer(endless(), batch_size=2)
    assert not read
    assert [next(found)[0]["summary_text"] for _ in range(4)] == [*right, right[0]]
    assert len(read) < 12
    found.close()
    assert summarizer(TEXTS[0])


@pytest.mark.parametrize("batch_size", [1, 3])
def test_the_batch_size_changes_nothing(summarizer, right, batch_size):
    assert summarizer(TEXTS, batch_size=batch_size) == [{"summary_text": text} for text in right]


def test_explicit_arguments_win(model, right):
    """Of the call, then of the pipeline, then of the checkpoint's entry; a shorter output lowers the entry's min_length."""
    short = model.generate("w50 " + TEXTS[0], max_new_tokens=2, no_repeat_ngram_size=2).texts
    summarizer = foredraft.pipeline("summarization", model, max_length=3)
    assert summarizer(TEXTS[0]) == [{"summary_text": short[0]}]
    assert summarizer(TEXTS[0], max_length=9) == [{"summary_text": right[0]}]
    assert summarizer(TEXTS[0], max_new_tokens=8) == [{"summary_text": right[0]}]
    summarizer = foredraft.pipeline("summarization", model, max_new_tokens=2, truncation=None)
    assert summarizer(TEXTS[0], max_length=9) == [{"summary_text": right[0]}]


def test_translation_takes_the_languages_of_its_name_or_of_arguments(model):
    expected = [{"translation_text": model.generate("w60 w61 " + TEXTS[0], max_length=6).texts[0]}]
    assert foredraft.pipeline("translation_en_to_de", model)(TEXTS[0]) == expected
    assert foredraft.pipeline("translation", model, src_lang="en", tgt_lang="de")(TEXTS[0]) == expected
    assert foredraft.pipeline("translation", model)(TEXTS[0], src_lang="en", tgt_lang="de") == expected
    plain = [{"translation_text": model.generate(TEXTS[0], max_length=6).texts[0]}]
    assert foredraft.pipeline("translation", model)(TEXTS[0], max_length=6) == plain
    with pytest.warns(UserWarning, match="has no 'translation_en_to_xx': src_lang and tgt_lang have no effect"):
        foredraft.pipeline("translation", model)(TEXTS[0], src_lang="en", tgt_lang="xx", max_length=6)
    with pytest.raises(UserError, match="give both"):
        foredraft.pipeline("translation", model)(TEXTS[0], src_lang="en")


def test_text2text_has_no_prefix(model):
    expected = [{"generated_text": text} for text in model.generate(TEXTS, max_length=6).texts]
    assert foredraft.pipeline("text2text-generation", model)(TEXTS, max_length=6) == expected


def test_an_entry_that_cannot_be_honoured_is_warned_of_once(model):
    with pytest.warns(UserWarning, match="'translation_en_to_ro': guidance_scale is 4, which is not supported"):
        translator = foredraft.pipeline("translation_en_to_ro", model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        expected = model.generate("w63 " + TEXTS[0], max_length=6).texts[0]
        assert translator(TEXTS[0]) == [{"translation_text": expected}]


def test_a_wrong_entry_names_the_file(folder, tmp_path):
    broken = shutil.copytree(folder, tmp_path / "model")
    config = json.loads((broken / "config.json").read_text())
    (broken / "config.json").write_text(json.dumps(config | {"task_specific_params": {"summarization": {"top_k": -1}}}))
    with pytest.raises(UserError, match="config.json: task_specific_params of 'summarization': top_k is -1"):
        foredraft.pipeline("summarization", broken)
    (broken / "config.json").write_text(json.dumps(config | {"task_specific_params": {"summarization": 5}}))
    with pytest.raises(UserError, match="holds no object for 'summarization'"):
        foredraft.pipeline("summarization", broken)


def test_a_prefix_of_the_whole_checkpoint(folder, tmp_path):
    other = shutil.copytree(folder, tmp_path / "model")
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"prefix": "w70 "}))
    model = foredraft.load(other)
    found = foredraft.pipeline("text2text-generation", model)("w5", max_length=6)
    assert found == [{"generated_text": model.generate("w70 w5", max_length=6).texts[0]}]


def test_samples(model):
    generator = foredraft.pipeline("text2text-generation", model, do_sample=True, max_length=12, seed=3)
    one, several = generator(TEXTS[0], num_return_sequences=4), generator(TEXTS[:2], num_return_sequences=3)
    assert len(one) == 4 and len({record["generated_text"] for record in one}) > 1
    assert [len(records) for records in several] == [3, 3]
    texts = model.generate(TEXTS[:2], do_sample=True, max_length=12, seed=3, num_return_sequences=3).texts
    assert several == [[{"generated_text": text} for text in texts[start : start + 3]] for start in (0, 3)]
    assert [record["generated_text"] for record in one] == model.generate(
        TEXTS[0], do_sample=True, max_length=12, seed=3, num_return_sequences=4).texts
    assert [len(records) for records in generator(iter(TEXTS), num_return_sequences=2)] == [2, 2, 2]
    assert generator(TEXTS) == [{"generated_text": text} for text in model.generate(
        TEXTS, do_sample=True, max_length=12, seed=3).texts]
    with pytest.raises(UserError, match="num_return_sequences is 2, but greedy decoding has one output"):
        generator(TEXTS, num_return_sequences=2, do_sample=False)


def test_beams(model):
    settings = {"num_beams": 4, "early_stopping": True, "max_length": 6}
    translator = foredraft.pipeline("translation_en_to_fr", model)
    sources = ["w62 " + text for text in TEXTS]
    expected = [{"translation_text": text} for text in model.generate(sources, **settings).texts]
    assert translator(TEXTS) == expected
    assert [records for (records,) in translator(iter(TEXTS))] == expected
    texts = model.generate(sources, num_return_sequences=3, **settings).texts
    expected = [[{"translation_text": text} for text in texts[start : start + 3]] for start in (0, 3, 6)]
    assert translator(TEXTS, num_return_sequences=3) == expected
    assert list(translator(iter(TEXTS), num_return_sequences=3)) == expected
    assert translator(TEXTS, num_return_sequences=3, truncation=False) == expected


def test_tensors_instead_of_texts(model, right, summarizer):
    (record,) = summarizer(TEXTS[0], return_tensors=True)
    tokens = record.pop("summary_token_ids")
    assert record == {} and tokens.dtype == torch.int64
    assert tokens[0] == 0 and model.tokenizer.decode(tokens.tolist(), skip_special_tokens=True) == right[0]
    (record,) = summarizer([TEXTS[0]], return_tensors=True, return_text=True)
    assert torch.equal(record["summary_token_ids"], tokens) and record["summary_text"] == right[0]


def test_a_long_source_is_cut_with_a_warning_or_refused(summarizer, model):
    expected = model.generate("w50 w5 w6", max_length=9, min_length=4, no_repeat_ngram_size=2).texts[0]
    with pytest.warns(UserWarning, match="input 2 has 6 tokens; the first 4 were read"):
        assert summarizer(["w5 w6", "w5 w6 w7 w8"], max_source=4) == [{"summary_text": expected}] * 2
    with pytest.warns(UserWarning, match="input 1 has 6 tokens; the first 4 were read"):
        assert list(summarizer(iter(["w5 w6 w7 w8"]), max_source=4, truncation=True)) == [[{"summary_text": expected}]]
    for inputs in (["w5", "w5 w6 w7 w8"], iter(["w5", "w5 w6 w7 w8"])):
        with pytest.raises(UserError, match="input 2 has 6 tokens, the limit is 4"):
            list(summarizer(inputs, max_source=4, truncation=False))


def test_loading_is_that_of_load(folder, right):
    summarizer = foredraft.pipeline("summarization", folder, drafter=None, device=-1, torch_dtype=torch.float32,
                                    tokenizer=folder, framework="pt")
    assert summarizer.model.drafter.name == "none"
    assert summarizer(TEXTS[0]) == [{"summary_text": right[0]}]
    assert foredraft.pipeline("text2text-generation").model.path.name == "target"


@pytest.mark.parametrize("task", ["summarisation", "translation_en", "translation_en_to_", None, 5, "text-generation"])
def test_an_unknown_task_names_the_three(task):
    with pytest.raises(UserError, match="'summarization', 'translation' .*'text2text-generation'") as found:
        foredraft.pipeline(task)
    assert "\n" not in str(found.value)


@pytest.mark.parametrize(("inputs", "message"), [
    (None, "the input is of type NoneType"), (5, "the input is of type int"), (b"w5", "the input is of type bytes"),
    ({"w5": 1}, "the input is of type dict"), (["w5", None], "input 2 is of type NoneType; give a text"),
    ([[5, 1]], "input 1 is of type list"), (["w5", " "], "input 2 is empty"), ("", "input 1 is empty"),
    (iter(["w5", 7]), "input 2 is of type int"),
])
def test_wrong_inputs_are_one_line(summarizer, inputs, message):
    with pytest.raises(UserError, match=message) as found:
        list(summarizer(inputs))
    assert "\n" not in str(found.value)
    assert summarizer("w5")


@pytest.mark.parametrize(("arguments", "message"), [
    (dict(clean_up_tokenization_spaces=True), "clean_up_tokenization_spaces=True is not supported"),
    (dict(return_text=False), "leaves nothing to return"),
    (dict(num_return_sequences=0), "num_return_sequences is 0"),
    (dict(num_return_sequences="2"), "num_return_sequences is '2'"),
    (dict(drafter="lookup"), "drafter: this model is loaded already"),
    (dict(tokenizer="t5-base"), "tokenizer: the checkpoint's own"),
    (dict(framework="tf"), "framework is 'tf'"),
])
def test_wrong_arguments_are_refused_before_the_first_call(model, arguments, message):
    with pytest.raises(UserError, match=message):
        foredraft.pipeline("summarization", model, **arguments)


def test_other_arguments_are_checked_by_the_model(summarizer):
    with pytest.raises(UserError, match="there is no argument 'max_lenght'; did you mean 'max_length'"):
        summarizer("w5", max_lenght=5)
    with pytest.raises(UserError, match="src_lang"):
        summarizer("w5", src_lang="en")
    with pytest.raises(UserError, match="batch_size is 0"):
        summarizer(iter(["w5"]), batch_size=0)
    assert summarizer("w5", clean_up_tokenization_spaces=False)
