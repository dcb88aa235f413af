"""Pairs for the correction of text: the kinds of errors, and the file."""

from __future__ import annotations

import gzip
import json
import random

import pytest

from foredraft.errors import UserError
from foredraft.train.data.corrections import DROPPED, corrupt, other_case, typo, without_mark, write_corrections

SENTENCE = "The ferry, which is new, crosses the river twice a day."


def is_one_letter_apart(word: str, other: str) -> bool:
    """Whether one letter was dropped, doubled or replaced, or two neighbours were exchanged."""
    changed = [word[:at] + word[at + 1 :] for at in range(len(word))]
    changed += [word[:at] + word[at] + word[at:] for at in range(len(word))]
    changed += [word[:at] + word[at + 1] + word[at] + word[at + 2 :] for at in range(len(word) - 1)]
    changed += [word[:at] + letter + word[at + 1 :] for at in range(len(word)) for letter in "abcdefghijklmnopqrstuvwxyz"]
    return other in changed


def test_a_typo_changes_one_place_of_a_long_word():
    draw = random.Random(0)
    for word in ("crosses", "river", "Twice", "day.", "ferry,"):
        found = {typo(word, draw) for _ in range(60)}
        assert len(found) > 3 and all(is_one_letter_apart(word, one) for one in found)
        assert all(one[0] == word[0] for one in found)
    assert typo("day", draw) == "day" and typo("1984", draw) == "1984"


def test_case_and_marks():
    assert (other_case("The"), other_case("river"), other_case("")) == ("the", "River", "")
    assert (without_mark("new,"), without_mark('day."'), without_mark("river")) == ("new", "day.", "river")


def test_errors_by_rate():
    draw = random.Random(1)
    assert corrupt(SENTENCE, 0.0, draw) == SENTENCE
    words, kinds = SENTENCE.split(), set()
    for _ in range(200):
        found = corrupt(SENTENCE, 0.15, draw).split()
        kinds.add(len(found) - len(words))
        # dropped words can be put back from the others
        assert sum(word.lower() in DROPPED for word in words) + len(found) >= len(words)
    assert min(kinds) < 0 < max(kinds)
    assert corrupt(SENTENCE, 1.0, random.Random(2)) == corrupt(SENTENCE, 1.0, random.Random(2)) != SENTENCE


@pytest.fixture
def articles(tmp_path):
    file = tmp_path / "articles.jsonl"
    texts = [f"{SENTENCE} Too short. Boat number {i} has left the old harbour." for i in range(3)]
    file.write_text("".join(json.dumps({"article": text}) + "\n" for text in texts))
    return file


def read(path):
    with gzip.open(path, "rt") as lines:
        return [json.loads(line) for line in lines]


def test_the_file_has_each_sentence_once_and_its_corruptions(articles, tmp_path):
    out = tmp_path / "pairs.jsonl.gz"
    assert write_corrections(articles, out, None, 0.3, 0, "grammar: ", 2)["pairs"] == 8
    pairs = read(out)
    assert sorted({pair["highlights"] for pair in pairs}) == sorted(
        [SENTENCE, *(f"Boat number {i} has left the old harbour." for i in range(3))])
    assert all(pair["article"].startswith("grammar: ") for pair in pairs)
    unchanged = sum(pair["article"] == f"grammar: {pair['highlights']}" for pair in pairs)
    again = tmp_path / "again.jsonl.gz"
    assert write_corrections(articles, again, None, 0.3, 0, "grammar: ", 2)["unchanged"] == unchanged
    assert again.read_bytes() == out.read_bytes()
    # a limit draws from all sentences
    drawn = set()
    for seed in range(8):
        assert write_corrections(articles, again, 2, 0.3, seed)["pairs"] == len(read(again)) == 2
        drawn |= {pair["highlights"] for pair in read(again)}
    assert len(drawn) == 4
    assert write_corrections(articles, again, None, 0.0, 0)["unchanged"] == 4


def test_bad_input_is_one_line(articles, tmp_path):
    with pytest.raises(UserError, match="rate is 1.5; give a share from 0 to 1"):
        write_corrections(articles, tmp_path / "o.gz", None, 1.5, 0)
    with pytest.raises(UserError, match="no such file"):
        write_corrections(tmp_path / "none.jsonl", tmp_path / "o.gz", None, 0.5, 0)
    short = tmp_path / "short.jsonl"
    short.write_text('{"article": "Too short."}\n')
    with pytest.raises(UserError, match="no sentence of 5 words or more"):
        write_corrections(short, tmp_path / "o.gz", None, 0.5, 0)
    assert not (tmp_path / "o.gz").exists()
