"""The study of adaptive draft lengths, on sample texts."""

import json

import pytest
import torch
from doubles import ScriptedDrafter, make_state

from foredraft.bench.harness.measure import Sample
from foredraft.bench.studies import adaptive
from foredraft.bench.studies.adaptive import Wrong, oracle
from foredraft.engine.stats import DecodeStats


def test_wrong_drafts_are_as_long_and_differ_in_every_token():
    state = make_state(2, 20, 4, 8)
    right, wrong = (wrap(ScriptedDrafter([[5, 99, 7, 8, 9]] * 2)) for wrap in (lambda x: x, lambda x: Wrong(x, 100)))
    ours, theirs = right.draft(state), wrong.draft(state)
    assert torch.equal(ours.lengths, theirs.lengths) and not theirs.dense.any() and theirs.logits is None
    assert torch.equal(theirs.tokens, (ours.tokens + 1) % 100)


def test_the_oracle_drafts_what_is_accepted_at_the_costs_of_the_runs():
    """Steps of 10 ms, positions of 1 ms, calls of 2 ms and 0.5 ms a token, in a run of 4 drafts of which 4, 1, 0 and 0 are
    accepted."""
    def run(steps, drafted, accepted_at, draft, verify):
        stats = DecodeStats(steps=steps, passes=steps, covered=steps if drafted else 0, drafted=drafted,
                            emitted=steps + sum(accepted_at), accepted_at=accepted_at, tested_at=[1] * len(accepted_at))
        phases = {"encode": 0.0, "draft": draft, "verify": verify}
        return [[Sample([[5] * stats.emitted], draft + verify, phases, stats)]]

    plain = run(9, 0, [], 0.0, 0.090)
    fixed = {2: run(6, 12, [2, 1], 6 * 0.003, 6 * 0.012), 4: run(4, 16, [2, 1, 1, 1], 4 * 0.004, 4 * 0.014)}
    found = oracle(plain, fixed, 1)
    assert found["costs"] == pytest.approx({"step": 10, "position": 1, "call": 2, "token": 0.5})
    seconds = 4 * 0.010 + 2 * 0.002 + 5 * (0.001 + 0.0005)
    assert found["tokens_per_second"]["median"] == pytest.approx(9 / seconds)
    assert found["speed_up"]["median"] == pytest.approx(9 / seconds * 0.010)
    assert found["drafted_per_step"] == pytest.approx(5 / 4)
    # calls of 12 ms: the single token is emitted by a plain step
    dear = {K: run(steps, drafted, at, steps * (0.012 + K * 0.0005), steps * (0.010 + K * 0.001))
            for K, (steps, drafted, at) in {2: (6, 12, [2, 1]), 4: (4, 16, [2, 1, 1, 1])}.items()}
    found = oracle(plain, dear, 1)
    assert found["tokens_per_second"]["median"] == pytest.approx(9 / (4 * 0.010 + 0.012 + 4 * 0.0015 + 0.010))
    assert found["tokens_per_step"] == pytest.approx(9 / 5)


@pytest.mark.full
def test_the_script_writes_a_record_for_each_length(script, tmp_path):
    code, out, _ = script(adaptive, "--drafter", "lookup", "--limit", 2, "--repeats", 1, "--batch-size", 2,
                           "--draft-tokens", 2, "--max-new-tokens", 8, "--temperature", "0,1", "--out", tmp_path, "--json")
    assert code == 0
    rows = json.loads(out.splitlines()[-1])["rows"]
    assert [(row["drafter"], row["temperature"], row["draft_tokens"]) for row in rows] == [
        (name, T, K) for name, Ks in (("lookup", ("plain", "2", "12", "auto", "oracle")),
                                           ("lookup, wrong", ("plain", "auto")))
        for T in (0, 1) for K in Ks]
    assert {row["differ"] for row in rows if row["draft_tokens"] != "oracle"} == {0}
    compared = [row for row in rows if "of_oracle" in row]
    assert len(compared) == 2 and all(row["of_best"] > 0 and row["of_oracle"] > 0 for row in compared)
    assert len(next(tmp_path.glob("adaptive-*.jsonl")).read_text().splitlines()) == len(rows)
