from __future__ import annotations

import gzip
import json

import pytest

from foredraft.bench.harness import cases
from foredraft.errors import UserError


def words(count: int) -> str:
    return " ".join(f"w{i % 60}" for i in range(count))


def test_a_jsonl_becomes_ids_with_one_end(tmp_path, word_tokenizer):
    file = tmp_path / "articles.jsonl.gz"
    with gzip.open(file, "wt") as lines:
        for count in (3, 10):
            lines.write(json.dumps({"article": words(count), "highlights": "w1"}) + "\n")
    found = cases.load_cases(file, word_tokenizer, max_source=8)
    assert [case.source for case in found] == [(3, 4, 5, 1), (*range(3, 10), 1)]
    assert [case.cut for case in found] == [0, 3]
    assert cases.describe(file, found) == {
        "name": "articles.jsonl.gz", "articles": 2, "source_tokens": {"min": 4, "median": 6.0, "max": 8},
        "articles_cut": 1, "tokens_cut": 3,
    }
    assert len(cases.load_cases(file, word_tokenizer, limit=1)) == 1


def test_sample_texts_are_ours(word_tokenizer):
    texts = cases.sample_texts()
    assert len(texts) >= 12
    for name, text in texts:
        assert 150 <= len(text.split()) <= 300, name
        assert text == text.lower(), name
    assert len(cases.load_cases(None, word_tokenizer)) == len(texts)


@pytest.mark.parametrize(("content", "arguments", "message"), [
    ('{"article": "w1", "highlights": "w1"}\nnonsense\n', {}, "line 2"),
    ("", {}, "no article"),
    ('{"article": "w1", "highlights": "w1"}\n', {"limit": 0}, "--limit is 0"),
    ('{"article": "w1", "highlights": "w1"}\n', {"max_source": 1}, "--max-source is 1"),
])
def test_bad_data(tmp_path, word_tokenizer, content, arguments, message):
    file = tmp_path / "articles.jsonl"
    file.write_text(content)
    with pytest.raises(UserError, match=message):
        cases.load_cases(file, word_tokenizer, **arguments)


def test_a_target_without_a_tokenizer():
    with pytest.raises(UserError, match=r"tokenizer\.json"):
        cases.load_cases(None, None)


@pytest.mark.realdata
def test_real_articles(real_data):
    from tokenizers import Tokenizer

    file = real_data / "cnndm" / "test.jsonl.gz"
    tokenizer = Tokenizer.from_file(str(real_data / "t5_tokenizer" / "tokenizer.json"))
    found = cases.load_cases(file, tokenizer, limit=20, max_source=256)
    assert len(found) == 20
    assert all(2 < len(case.source) <= 256 and case.source[-1] == 1 and 1 not in case.source[:-1] for case in found)
    assert any(case.cut for case in found) and all(case.reference for case in found)
