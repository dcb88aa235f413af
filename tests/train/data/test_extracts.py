"""Extracts: the choice of the greedy oracle, and the mixed file."""

import gzip
import json

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from foredraft.errors import UserError
from foredraft.train.data.extracts import best_extract, mix_extracts, sentences

PIECES = ["the mayor opened a bridge.", "rain is likely.", "the bridge cost four million.", "the mayor opened a bridge."]


def test_sentences_keep_their_punctuation():
    assert sentences('it rained. "it did!" she said. who? me') == ["it rained.", '"it did!', "she said.", "who?", "me"]


def test_the_oracle_chooses_matching_sentences_once_and_in_order():
    lengths = [5, 3, 5, 5]
    assert best_extract(PIECES, lengths, "bridge cost four million; mayor opened a bridge", longest=100) == [0, 2]
    assert best_extract(PIECES, lengths, "bridge cost four million; mayor opened a bridge", longest=9) == [0]
    assert best_extract(PIECES, lengths, "nothing alike", longest=100) == []
    assert best_extract([], [], "anything", longest=100) == []


@pytest.fixture
def tokenizer():
    tokenizer = Tokenizer(models.WordLevel({"<unk>": 0, "</s>": 1}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return tokenizer


def test_a_share_of_the_pairs_is_replaced(tmp_path, tokenizer):
    data, out = tmp_path / "a.jsonl", tmp_path / "mixed" / "a.jsonl.gz"
    records = [dict(article=" ".join(PIECES), highlights=f"it cost four million {i}") for i in range(200)]
    data.write_text("".join(json.dumps(record) + "\n" for record in records))
    counts = {share: mix_extracts(data, out, tokenizer, share) for share in (0.0, 0.5, 1.0)}
    assert counts[0.0] == 0 and counts[1.0] == 200 and 60 < counts[0.5] < 140
    mixed = [json.loads(line) for line in gzip.open(out, "rt")]
    assert [record["article"] for record in mixed] == [record["article"] for record in records]
    assert {record["highlights"] for record in mixed} == {"the bridge cost four million."}
    assert list(out.parent.iterdir()) == [out]
    with pytest.raises(UserError, match="share is 2"):
        mix_extracts(data, out, tokenizer, 2)


def test_only_sentences_within_the_source_limit_are_chosen(tmp_path, tokenizer):
    data, out = tmp_path / "a.jsonl", tmp_path / "a.jsonl.gz"
    data.write_text(json.dumps(dict(article=" ".join(PIECES), highlights="bridge cost four million")) + "\n")
    assert mix_extracts(data, out, tokenizer, 1.0, max_source=9) == 1
    assert json.loads(gzip.open(out, "rt").read())["highlights"] == "the mayor opened a bridge."
