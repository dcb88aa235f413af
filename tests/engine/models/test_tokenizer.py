"""The tokenizer of a checkpoint directory gives transformers' tokens and texts, whatever files it is made from."""

import json
import random
import shutil

import pytest

from foredraft.engine.models.tokenizer import load_tokenizer
from foredraft.errors import UserError

TEXTS = ["The quick brown fox. It doesn't jump , does it ?", "  two  spaces\tand\na line ",
         "\u00e9t\u00e9 \u4e2d\u6587 \U0001f600 \ufb01n",
         "a<extra_id_0>b <extra_id_99> c", "x</s>y", "I 'm here ' now ' !", "\u0130stanbul na\u0308ive \u2026"]


def texts(count=40):
    """TEXTS and random strings of several scripts."""
    random.seed(0)
    letters = "abcdefg  .,!?'<>/_\u00e9\u00df\u4e2d\u6587\U0001f600\u0430\u0431\u0301\u2581"
    return TEXTS + ["".join(random.choices(letters, k=random.randint(1, 30))) for _ in range(count)]


def compare(folder, theirs, decode=True):
    ours = load_tokenizer(folder)
    for text in texts():
        assert ours.encode(text).ids == theirs(text).input_ids, text
        assert ours.encode(text, add_special_tokens=False).ids == theirs(text, add_special_tokens=False).input_ids, text
    random.seed(1)
    for _ in range(100):
        tokens = [random.randrange(len(theirs)) for _ in range(random.randint(1, 12))]
        for skip in (True, False):
            assert ours.decode(tokens, skip_special_tokens=skip) == theirs.decode(tokens, skip_special_tokens=skip), tokens
    return ours


def t5_tokenizer(folder):
    pytest.importorskip("google.protobuf")
    from transformers import T5Tokenizer

    return T5Tokenizer.from_pretrained(folder)


@pytest.mark.parametrize("settings", [
    None, {"extra_ids": 0}, {"extra_ids": 10, "clean_up_tokenization_spaces": True},
    {"eos_token": {"__type": "AddedToken", "content": "</s>", "lstrip": False, "rstrip": False, "single_word": False,
                   "normalized": True}, "tokenizer_class": "T5Tokenizer"}])
def test_spiece_model_alone_equals_transformers(spiece, tmp_path, settings):
    folder = shutil.copytree(spiece, tmp_path / "model")
    if settings is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    ours = compare(folder, t5_tokenizer(folder))
    extra = 100 if settings is None else settings.get("extra_ids", 100)
    assert ours.token_to_id("<extra_id_0>") == (ours.get_vocab_size() - 1 if extra else None)


def test_spiece_model_with_added_tokens(spiece, tmp_path):
    folder = shutil.copytree(spiece, tmp_path / "model")
    size = load_tokenizer(folder).get_vocab_size()
    (folder / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": {
        str(size): {"content": "<sum>", "special": True}, str(size + 1): {"content": "lol", "special": False}}}))
    ours = compare(folder, t5_tokenizer(folder))
    assert ours.encode("<sum> lol").ids[:2] == [size, size + 1]
    (folder / "tokenizer_config.json").unlink()
    (folder / "added_tokens.json").write_text(json.dumps({"<far>": size + 5}))
    with pytest.raises(UserError, match=f"'<far>' should have id {size + 5}, it would be {size}"):
        load_tokenizer(folder)


def test_spiece_model_saved_by_transformers_equals_its_tokenizer_json(spiece, tmp_path):
    t5_tokenizer(spiece).save_pretrained(tmp_path)
    one, other = load_tokenizer(spiece), load_tokenizer(tmp_path)
    assert one.get_vocab() == other.get_vocab()
    assert [one.encode(text).ids for text in texts()] == [other.encode(text).ids for text in texts()]


@pytest.mark.parametrize("settings", [
    {"extra_ids": None}, {"added_tokens_decoder": [1]}, {"added_tokens_decoder": {"x": {"content": "a"}}},
    {"added_tokens_decoder": {"400": {}}}, {"unk_token": {"text": "<unk>"}}, {"eos_token": 5}])
def test_settings_of_the_wrong_kind(spiece, tmp_path, settings):
    folder = shutil.copytree(spiece, tmp_path / "model")
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(UserError, match="has an entry of the wrong kind") as caught:
        load_tokenizer(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("data", [b"", b"text", b"\x0a\x05\x0a\x01", b"\x0b", bytes(100)])
def test_a_file_that_is_no_sentencepiece_model(tmp_path, data):
    (tmp_path / "spiece.model").write_bytes(data)
    with pytest.raises(UserError, match="spiece.model: not a readable SentencePiece model") as caught:
        load_tokenizer(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_bpe_sentencepiece_model_is_refused(tmp_path):
    # one piece "a", then a trainer_spec whose model_type is 2
    (tmp_path / "spiece.model").write_bytes(b"\x0a\x03\x0a\x01a" + b"\x12\x02\x18\x02")
    with pytest.raises(UserError, match="a SentencePiece model of type 2; T5 has a unigram model"):
        load_tokenizer(tmp_path)


def test_vocab_and_merges_equal_transformers(merges, tmp_path):
    from transformers import RobertaTokenizer

    ours = compare(merges, RobertaTokenizer.from_pretrained(merges))
    # <s> and </s> around the text
    tokens = ours.encode("def add").ids
    assert (tokens[0], tokens[-1], ours.decode(tokens, skip_special_tokens=True)) == (1, 2, "def add")
    (tmp_path / "vocab.json").write_text("{")
    (tmp_path / "merges.txt").write_text("")
    with pytest.raises(UserError, match="no tokenizer can be made of vocab.json and merges.txt") as caught:
        load_tokenizer(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("saved", [True, False])
def test_byt5_needs_no_tokenizer_file(tmp_path, saved):
    from transformers import ByT5Tokenizer

    theirs = ByT5Tokenizer()
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "t5", "tokenizer_class": "ByT5Tokenizer"}))
    if saved:
        theirs.save_pretrained(tmp_path)
    ours = compare(tmp_path, theirs)
    assert ours.encode("\u00e9").ids == [0xC3 + 3, 0xA9 + 3, 1] and ours.get_vocab_size() == 384


def test_half_characters_of_byt5_decode_to_nothing(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"tokenizer_class": "ByT5Tokenizer"}))
    ours = load_tokenizer(tmp_path)
    tokens = ours.encode("a\u4e2d\U0001f600b").ids
    grown = [ours.decode(tokens[:end], skip_special_tokens=True) for end in range(len(tokens) + 1)]
    assert all(later.startswith(earlier) for earlier, later in zip(grown, grown[1:], strict=False))
    assert grown[3] == "a" and grown[-1] == "a\u4e2d\U0001f600b"


def test_it_reads_whole_texts(tiny_model_path):
    tokenizer = load_tokenizer(tiny_model_path)
    assert tokenizer.encode("w5 w9 w33").ids == [5, 9, 33, 1]
    assert tokenizer.truncation is None and tokenizer.padding is None


def test_none_and_unreadable(tmp_path):
    assert load_tokenizer(tmp_path) is None
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(UserError, match=r"tokenizer.json: not a readable tokenizer"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("[]")
    with pytest.raises(UserError, match=r"tokenizer_config.json: holds no JSON object"):
        load_tokenizer(tmp_path)
