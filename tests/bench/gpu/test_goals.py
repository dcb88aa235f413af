"""Goals are compared with the records of a run; one that was not measured is neither met nor missed."""

from foredraft.bench.gpu.goals import GOALS, goals_met

ROWS = {
    "checks": [{"check": "a", "passed": True}], "distribution": [{"check": "b", "passed": True}],
    "steps": [{"geometry": "flan-t5-xl", "batch": 1, "reads": 6, "share": 0.9, "us": {"median": 1.0}},
              {"geometry": "flan-t5-xl", "batch": 1, "reads": 1, "share": 0.5, "us": {"median": 1000.0}}],
    "peers": [{"geometry": "flan-t5-xl", "batch": 1, "engine": "transformers eager", "us": {"median": 9e9}},
              {"geometry": "flan-t5-xl", "batch": 1, "engine": "transformers static + compile", "us": {"median": 2500.0}}],
    "verification": [{"check": "v", "passed": True}, {"batch": 8, "ours_us": 11.0, "over_floor": 9.0},
                {"batch": 1, "ours_us": 4.0, "over_floor": 9.0}, {"batch": 128, "ours_us": 90.0, "over_floor": 2.0}],
    "loop": [{"geometry": "flan-t5-xl", "batch": batch, "draft_tokens": K, "overhead": overhead}
               for batch, K, overhead in ((1, 0, 0.01), (1, 5, 0.03), (8, 5, 0.9))],
    "model": [{"batch": 1, "tokens_per_second": 1e9, "measured_tokens_per_second": 3500.0},
              {"batch": 32, "tokens_per_second": 1e9, "measured_tokens_per_second": 9000.0}],
}


def test_what_was_found_is_goals_met():
    found = goals_met(ROWS)
    assert [row["found"] for row in found] == [0, 0.5, 2.5, 11.0, 2.0, 0.03, 3500.0, 9000.0]
    assert [row["met"] for row in found] == [True, False, True, False, True, True, True, False]


def test_a_failed_check_anywhere_counts():
    rows = ROWS | {"drafters": [{"check": "c", "passed": False}]}
    assert goals_met(rows)[0]["found"] == 1 and goals_met(rows)[0]["met"] is False


def test_the_overhead_is_the_larger_of_plain_and_drafted_steps():
    plain, drafted, _ = ROWS["loop"]
    for loop, found in (([plain], None), ([drafted], None), ([plain | {"overhead": 0.5}, drafted], 0.5)):
        assert goals_met({"loop": loop})[5]["found"] == found


def test_what_was_not_measured_is_not_goals_met():
    counted = {"model": [{"batch": 1, "tokens_per_second": 1e9, "measured_tokens_per_second": None}]}
    for rows in ({}, counted, {"peers": [{"geometry": "flan-t5-xl", "batch": 1, "engine": "transformers static + compile",
                                          "absent": "why"}]}):
        assert [(row["found"], row["met"]) for row in goals_met(rows)] == [(None, None)] * len(GOALS)
