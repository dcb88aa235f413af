from __future__ import annotations

import json

import numpy as np
import pytest

from foredraft.errors import UserError
from foredraft.train.data.drafter_data import DrafterDataset, collate_drafter, pad_sequences, read_drafter_data
from foredraft.train.data.pairs import IGNORE
from foredraft.train.data.pseudo import article_id


@pytest.fixture
def files(tmp_path):
    """Pairs a, b, c, and a pseudo-dataset of c (two samples), a and x, in that order."""
    pairs = tmp_path / "pairs.jsonl"
    texts = {"a": "w1 w2 w3", "b": "w4 w5", "c": "w6 w7 w8 w9"}
    pairs.write_text("".join(json.dumps({"article": text, "highlights": f"{text} w20"}) + "\n" for text in texts.values()))
    texts["x"] = "w10"
    own = tmp_path / "pseudo-00000.jsonl"
    records = [("c", 0, [9, 10, 1]), ("c", 1, [9]), ("a", 0, [4, 1]), ("x", 0, [13, 1])]
    own.write_text("".join(json.dumps({
        "id": article_id(texts[name]), "sample": sample, "target_ids": tokens,
        "source_ids": [int(word[1:]) + 3 for word in texts[name].split()] + [1]}) + "\n"
        for name, sample, tokens in records))
    return pairs, own


def test_summaries_are_joined_by_article_and_not_by_line(files, word_tokenizer):
    articles = read_drafter_data(*files, word_tokenizer, 16, 16)
    assert [source.tolist() for source in articles.sources] == [[9, 10, 11, 12, 1], [4, 5, 6, 1]]
    assert [gold.tolist() for gold in articles.gold] == [[9, 10, 11, 12, 23, 1], [4, 5, 6, 23, 1]]
    # a truncated output has no end token
    assert [[own.tolist() for own in each] for each in articles.own] == [[[9, 10, 1], [9]], [[4, 1]]]
    assert len(read_drafter_data(None, files[1], word_tokenizer, 16, 16)) == 3
    gold_only = read_drafter_data(files[0], None, word_tokenizer, 3, 4, limit=2)
    assert [source.tolist() for source in gold_only.sources] == [[4, 5, 1], [7, 8, 1]]
    assert [gold.tolist() for gold in gold_only.gold] == [[4, 5, 6, 1], [7, 8, 23, 1]]


def test_labels_are_shifted_and_padding_is_not_scored():
    input_ids, labels = pad_sequences([np.array([7, 8, 9, 1], np.uint16), np.array([5], np.uint16)])
    assert input_ids.tolist() == [[0, 7, 8, 9], [0, 5, 0, 0]]
    assert labels.tolist() == [[7, 8, 9, 1], [5, IGNORE, IGNORE, IGNORE]]


def test_an_example_is_a_function_of_seed_epoch_and_number(files, word_tokenizer):
    data = DrafterDataset(read_drafter_data(*files, word_tokenizer, 16, 16), seed=1)
    chosen = [data[epoch, 0]["own"].tolist() for epoch in range(20)]
    assert chosen == [data[epoch, 0]["own"].tolist() for epoch in range(20)] and len(set(map(tuple, chosen))) == 2
    batch = collate_drafter([data[0, 0], data[0, 1]])
    assert batch["source_mask"].tolist() == [[1] * 5, [1] * 4 + [0]] and batch["source_ids"][1, 4] == 0
    assert batch["coin"].shape == (2,) and batch["article"].tolist() == [0, 1]


def test_invalid_data_is_named(files, word_tokenizer, tmp_path):
    with pytest.raises(UserError, match="no training data"):
        read_drafter_data(None, None, word_tokenizer, 16, 16)
    with pytest.raises(UserError, match="up to 5 tokens, --max-source is 4"):
        read_drafter_data(files[0], files[1], word_tokenizer, 4, 16)
    other = tmp_path / "other.jsonl"
    other.write_text('{"article": "w50", "highlights": "w51"}\n')
    with pytest.raises(UserError, match="none of its articles"):
        read_drafter_data(other, files[1], word_tokenizer, 16, 16)
    other.write_text('{"article": "w50", "highlights": "w51"}\n{"article": "w5')
    with pytest.raises(UserError, match="line 2: not JSON"):
        read_drafter_data(other, None, word_tokenizer, 16, 16)
