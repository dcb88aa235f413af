from __future__ import annotations

import json

import pytest

from foredraft.bench.harness import spec_bench, suites
from foredraft.bench.harness.measure import Sample
from foredraft.errors import UserError

# lookup wrote two and the target one; the target alone one; the text ended inside a draft
DRAFTED = Sample([[5, 6, 7, 8, 9, 1]], 0.5, proposers=[[1, 1, 0, 0, 1, 1, 1]])
PLAIN = Sample([[5, 6, 7, 8, 9, 1]], 1.0)


def test_steps_are_read_from_proposers():
    assert spec_bench.accept_lengths(DRAFTED) == [3, 1, 2]
    assert spec_bench.accept_lengths(PLAIN) == [1] * 6
    assert spec_bench.accept_lengths(Sample([[5, 6]], 1.0, proposers=[[1, 0]])) == [2]


def test_files_have_the_fields_that_its_scripts_read(tmp_path, word_tokenizer):
    spec_bench.write(tmp_path, "lookup+ngram:a/b", [[DRAFTED, PLAIN]] * 2, word_tokenizer, ["one", "two"])
    assert sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.jsonl")) == [
        "run_1/lookup+ngram-a_b.jsonl", "run_2/lookup+ngram-a_b.jsonl"]
    first, second = map(json.loads, (tmp_path / "run_1" / "lookup+ngram-a_b.jsonl").read_text().splitlines())
    assert (first["question_id"], second["question_id"], first["category"]) == (1, 2, "summarization")
    assert first["answer_id"] != second["answer_id"] and first["model_id"] == "lookup+ngram:a/b"
    (choice,) = first["choices"]
    assert choice == {"index": 0, "turns": ["w2 w3 w4 w5 w6"], "decoding_steps": [3], "new_tokens": [6], "wall_time": [0.5],
                      "accept_lengths": [3, 1, 2]}
    assert sum(choice["accept_lengths"]) == choice["new_tokens"][0]


def test_its_summary_is_a_mean_of_speeds():
    slow = Sample([[5, 1]], 1.0)
    found = spec_bench.summary([[DRAFTED, DRAFTED], [DRAFTED, DRAFTED]], [[PLAIN, slow], [PLAIN, slow]])
    assert found["tokens_per_second"] == 12 and found["speed_up"] == 12 / 4
    assert found["mean_accepted_tokens"] == 2 and found["speed_up_deviation"] == 0


def test_a_suite_gives_way_to_what_was_typed():
    assert suites.chosen(None, {"limit": None}) == suites.DEFAULTS
    cpu = suites.chosen("cpu", {"limit": 7, "repeats": None})
    assert (cpu["limit"], cpu["repeats"], cpu["batch_sizes"], cpu["footprints"]) == (7, 3, "1,8", True)
    with pytest.raises(UserError, match="no suite named 'fast'; choose from quick, cpu, gpu, paper"):
        suites.chosen("fast", {})
