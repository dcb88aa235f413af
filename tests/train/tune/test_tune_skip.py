"""The search for a skip set: its predictions, its files, and continuing it."""

from __future__ import annotations

import json

import numpy as np
import pytest

import foredraft
from foredraft.engine.drafters.skip_mask import SkipSet, format_skip, parse_skip
from foredraft.engine.models.checkpoint import weights_hash
from foredraft.errors import UserError
from foredraft.train.tune.tune_skip import Costs, SkipTrials, first_tries, predicted, tune_skip

SOURCES = [np.array(source) for source in ([5, 9, 33, 1], [7, 8, 7, 8, 9, 1], [50, 51, 52, 53, 54, 1])]


@pytest.fixture(scope="module")
def model(tiny_model_path):
    return foredraft.load(tiny_model_path, drafter=None)


def test_the_prediction_is_tokens_over_seconds_at_the_best_k():
    costs = Costs(1.0, (0.5, 0.25, 0.25), (8.0, 9.0, 10.0, 11.0))
    kept = parse_skip("0,1s", 2)
    assert costs.draft(kept) == 1.5
    speed, K = predicted(np.array([0.5, 1.0, 0.0]), costs.draft(kept), costs.passes)
    assert K == 2 and speed == pytest.approx(2.0 / (2 * 1.5 + 10.0))
    assert predicted(np.array([0.0, 1.0, 1.0]), 1.0, costs.passes) == (pytest.approx(1 / 10), 1)


@pytest.mark.full
def test_acceptance_rates_equal_those_of_decoding(model):
    trials = SkipTrials(model, SOURCES, 10, 3, 0)
    assert trials.accepted(parse_skip("", 3)).tolist() == [1, 1, 1]
    found = trials.accepted(parse_skip("1,2s", 3))
    assert 0 < found[0] < 1
    plain = model.generate([source.tolist() for source in SOURCES], max_new_tokens=10)
    assert [output.tolist() for output in trials.outputs] == plain.token_ids
    drafted = model.with_drafter("self:1,2s")
    drafted.drafter.exit = drafted.drafter.exit._replace(goal=0.0)
    stats = drafted.generate([source.tolist() for source in SOURCES], max_new_tokens=10, draft_tokens=3).stats
    assert found.tolist() == pytest.approx([a / max(t, 1) for a, t in zip(stats.accepted_at, stats.tested_at, strict=True)])
    # generate has released the target's sequences
    trials = SkipTrials(model, SOURCES, 10, 3, 0)
    speed, threshold = trials.adaptive(parse_skip("", 3), 0.9, 0.6, 3, Costs(0.0, (0.0,) * 3, (1.0,) * 4))
    assert threshold < 0.6 and speed >= 1


def test_acceptance_of_sampled_drafts(model):
    trials = SkipTrials(model, SOURCES, 10, 3, 0, temperature=1.0)
    assert trials.accepted(parse_skip("", 3)).tolist() == [1, 1, 1]
    found = trials.accepted(parse_skip("1,2s", 3))
    assert 0 < found[0] < 1 and found.tolist() == trials.accepted(parse_skip("1,2s", 3)).tolist()
    assert trials.adaptive(parse_skip("", 3), 0.9, 0.6, 3, Costs(0.0, (0.0,) * 3, (1.0,) * 4))[1] == 0.6


def test_costs_of_every_part_are_measured(model):
    costs = SkipTrials(model, SOURCES, 10, 2, 40).costs()
    assert len(costs.passes) == 3 and len(costs.sublayers) == 3
    assert costs.base > 0 and min(costs.passes) > 0 and min(costs.sublayers) >= 0


def test_a_search_writes_a_usable_skip_set_and_continues_from_its_journal(model, tmp_path):
    pytest.importorskip("optuna")
    out = tmp_path / "skip.json"
    first = tune_skip(model, SOURCES, out, trials=3, max_new_tokens=8, draft_tokens=2, draft_vocab=40, progress=False)
    assert first.figures["trials"] == 3 and first.target_hash == weights_hash(model.path)
    costs = json.loads(out.read_text())["figures"]["costs"]
    resumed = tune_skip(model, SOURCES, out, trials=9, max_new_tokens=8, draft_tokens=2, draft_vocab=40, progress=False)
    assert resumed.figures["trials"] == 9 and json.loads(json.dumps(resumed.figures["costs"])) == costs
    assert resumed.figures["predicted"]["best"] >= resumed.figures["predicted"]["fixed"]
    known = SkipSet.load(out, model.path)
    assert known.skip == resumed.skip and len(known.draft_ids) == 40
    plain = model.generate([source.tolist() for source in SOURCES], max_new_tokens=8)
    drafted = model.with_drafter(f"self:{out}").generate([source.tolist() for source in SOURCES], max_new_tokens=8)
    assert drafted.token_ids == plain.token_ids
    with pytest.raises(UserError, match="another search"):
        tune_skip(model, SOURCES[:2], out, trials=9, max_new_tokens=8, draft_tokens=2, draft_vocab=40, progress=False)


def test_the_first_tries():
    assert [format_skip(kept) for kept in first_tries(4)] == ["", "2,3", "1,3", "1c,2c,3c", "1f,2f,3f"]


def test_the_command(command, tiny_model_path, tmp_path):
    pytest.importorskip("optuna")
    data = tmp_path / "validation.jsonl"
    data.write_text("\n".join(json.dumps({"article": f"w{i} w7 w8 w7 w8", "highlights": "w7"}) for i in range(10, 14)))
    code, out, err = command("tune-skip", "--target", tiny_model_path, "--data", data, "--out", tmp_path / "skip.json",
                             "--trials", 2, "--limit", 2, "--max-new-tokens", 6, "--draft-tokens", 2)
    assert code == 2 and "--draft-vocab 1024" in err
    code, out, err = command("tune-skip", "--target", tiny_model_path, "--data", data, "--out", tmp_path / "skip.json",
                             "--trials", 2, "--limit", 2, "--max-new-tokens", 6, "--draft-tokens", 2, "--draft-vocab", 20,
                             "--json")
    assert code == 0, err
    last = json.loads(out.splitlines()[-1])
    assert last["articles"] == 2 and last["trials"] == 2 and (tmp_path / "skip.json").is_file()
