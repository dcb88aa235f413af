"""`foredraft bench adaptive` on the embedded family's sample texts."""

import json

import torch
from doubles import ScriptedDrafter, make_state

from foredraft.bench.adaptive import Wrong


def test_a_wrong_drafter_drafts_as_many_ids_and_none_is_the_same():
    state = make_state(2, 20, 4, 8)
    right, wrong = (wrap(ScriptedDrafter([[5, 99, 7, 8, 9]] * 2)) for wrap in (lambda x: x, lambda x: Wrong(x, 100)))
    ours, theirs = right.draft(state), wrong.draft(state)
    assert torch.equal(ours.lengths, theirs.lengths) and not theirs.dense.any() and theirs.logits is None
    assert torch.equal(theirs.tokens, (ours.tokens + 1) % 100)


def test_the_command_writes_a_row_for_each_length(command, tmp_path):
    code, out, _ = command("bench", "adaptive", "--drafter", "lookup", "--limit", 2, "--repeats", 1, "--batch-size", 2,
                           "--draft-tokens", 2, "--max-new-tokens", 8, "--temperature", "0,1", "--out", tmp_path)
    assert code == 0
    rows = json.loads(out.splitlines()[-1])["rows"]
    assert [(row["drafter"], row["temperature"], row["draft_tokens"]) for row in rows] == [
        (name, T, K) for name, Ks in (("lookup", ("plain", "2", "auto")), ("lookup, wrong", ("plain", "auto")))
        for T in (0, 1) for K in Ks]
    assert {row["differ"] for row in rows} == {0}
    assert len(next(tmp_path.glob("adaptive-*.jsonl")).read_text().splitlines()) == len(rows)
