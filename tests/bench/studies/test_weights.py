"""The distance of rounded weights from fp32, on the tiny model."""

import json

import pytest
import torch

from foredraft.bench.harness.cases import Case
from foredraft.bench.studies import weights
from foredraft.engine.load import load


@pytest.fixture(scope="module")
def cases():
    draw = torch.Generator().manual_seed(3)
    sources = [tuple(torch.randint(3, 100, (n,), generator=draw).tolist()) + (1,) for n in (9, 70)]
    return [Case(str(n), source, 0, "w5 w6 w7") for n, source in enumerate(sources)]


def test_the_distance_of_two_distributions():
    p, q = torch.tensor([[0.0, 1.0], [2.0, 0.0]]), torch.tensor([[1.0, 2.0], [0.0, 2.0]])
    found = weights.distribution_distance(p, q)
    softmax = torch.softmax(p[1].double(), -1)
    # the first rows differ by a constant, which no distribution sees; the second ones are mirrored: both logits 2 apart
    assert found["kl"] == pytest.approx(float((softmax * torch.tensor([2.0, -2.0])).sum()))
    assert found == {"kl": found["kl"], "mean": 2.0, "max": 2.0, "same": 1, "prefixes": 2}


def test_forced_logits_choose_the_greedy_output(tiny_model_path, cases):
    model = load(tiny_model_path, drafter=None)
    for case in cases:
        ids = model.generate([list(case.source)], max_new_tokens=12, draft_tokens=0).token_ids[0]
        assert weights.forced_logits(model, case.source, ids).argmax(-1).tolist() == ids


@pytest.mark.full
def test_int8_is_measured_against_fp32(tiny_model_path, cases):
    steps = []
    model, found = weights.compare_weights(tiny_model_path, ["int8", "fp32"], lambda _: cases, 12, lambda: steps.append(1))
    assert list(found) == ["fp32", "int8"] and len(steps) == 4
    assert model.target.weights.stored == "fp32"
    assert found["fp32"]["rouge_to_fp32"]["rougeL"] == 100 and found["fp32"]["same_summaries"] == 2
    int8 = found["int8"]
    assert int8["bytes"] < found["fp32"]["bytes"] / 2.5
    assert 0 < int8["kl_nats"] < 0.05 and 0 < int8["logit_mean"] < int8["logit_max"] < 1
    assert 0.5 < int8["argmax"] <= 1 and int8["rouge"] is not None


@pytest.mark.full
def test_the_script(script, tiny_model_path, tmp_path):
    data = tmp_path / "one.jsonl"
    data.write_text(json.dumps({"article": "w5 w6 w7 w5", "highlights": "w5"}) + "\n")
    code, out, err = script(weights, "--target", tiny_model_path, "--data", data, "--weights", "int8", "--max-new-tokens", 4,
                            "--out", tmp_path, "--json")
    assert code == 0, err
    (row,) = json.loads(out.splitlines()[-1])["rows"]
    assert row["kind"] == "weights" and list(row["weights"]) == ["fp32", "int8"] and row["weights"]["int8"]["kl_nats"] >= 0
