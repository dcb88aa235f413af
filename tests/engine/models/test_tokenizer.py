"""The tokenizer of a checkpoint directory: neither truncated nor padded, absent, or refused."""

import pytest

from foredraft.engine.models.tokenizer import load_tokenizer
from foredraft.errors import UserError


def test_it_reads_whole_texts(tiny_model_path):
    tokenizer = load_tokenizer(tiny_model_path)
    assert tokenizer.encode("w5 w9 w33").ids == [5, 9, 33, 1]
    assert tokenizer.truncation is None and tokenizer.padding is None


def test_none_and_unreadable(tmp_path):
    assert load_tokenizer(tmp_path) is None
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(UserError, match=r"tokenizer.json: not a readable tokenizer"):
        load_tokenizer(tmp_path)
