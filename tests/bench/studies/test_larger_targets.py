"""Methods on a widened target: what drafts cost, and the script."""

from __future__ import annotations

import json

import pytest

from foredraft.bench.studies import larger_targets
from foredraft.bench.studies.larger_targets import costs


def row(method="lstm", draft=0.2, verify=1.2, steps=10, drafted=50, alpha=0.5):
    return {"method": method, "seconds": {"draft": draft, "verify": verify},
            "acceptance": {"steps": steps, "drafted": drafted, "alpha_tv": alpha}}


def test_the_costs_of_drafts():
    plain = row("plain", 0.0, 2.0, 20, 0)
    # a target pass of plain decoding takes 0.1 s
    found = costs(plain, row(), 5)
    assert found["c"] == pytest.approx(0.2 / 50 / 0.1) and found["v"] == pytest.approx(1.2)
    assert found["predicted"] == pytest.approx((1 - 0.5**6) / (1 - 0.5) / (1.2 + 5 * 0.04))
    assert costs(plain, row(alpha=1.0), 5)["predicted"] == pytest.approx(6 / 1.4)
    # auto's draft lengths vary; other engines report no phases, and plain decoding has no drafts
    assert costs(plain, row("auto"), 5)["predicted"] is None
    assert costs(plain, row("hf-assisted", None, None), 5) is None and costs(plain, plain, 5) is None
    assert costs(plain, row() | {"acceptance": None}, 5) is None


def test_bad_input_is_one_line(script, tmp_path):
    for line, said in ((("--geometry", "flan-t5-base,huge"), "--geometry: 'huge' is not known; one of"),
                       (("--methods", "lookup,lokup"), "--methods: no method named 'lokup'; choose from")):
        code, _, err = script(larger_targets, *line, "--out", tmp_path)
        assert code == 2 and said in err and len(err.splitlines()) == 1


@pytest.mark.full
def test_the_script(script, tmp_path):
    code, out, err = script(larger_targets, "--geometry", "flan-t5-small", "--widened", tmp_path / "wide", "--limit", 2,
                            "--max-new-tokens", 6, "--repeats", 1, "--methods", "lookup,auto,drafter", "--temperature", 0,
                            "--out", tmp_path / "records", "--json")
    assert code == 0, err
    rows = json.loads(out.splitlines()[-1])["rows"]
    assert [one["method"] for one in rows] == ["plain", "lookup", "auto", "drafter"]
    assert {one["geometry"] for one in rows} == {"flan-t5-small"} and rows[0]["target"]["weights"] == "int8"
    assert rows[0]["task"] == "summaries"
    assert rows[0]["target"]["hash"] != rows[0]["behaves_like"] and rows[0]["differ"] == rows[1]["differ"] == 0
    assert rows[1]["costs"]["v"] > 0 and rows[1]["costs"]["predicted"] > 0 and "no trained drafter" in rows[3]["absent"]
    # the checkpoint is kept
    assert (tmp_path / "wide" / "flan-t5-small" / "config.json").is_file()
