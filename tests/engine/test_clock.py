"""Time is measured by a clock that nobody sets: a wall clock that jumps while commands run changes nothing."""

from __future__ import annotations

import itertools
import json
import time

import pytest

import foredraft

DAY = 86_400


@pytest.fixture(params=[-DAY, DAY])
def jumping(request, monkeypatch):
    """At every look the wall clock is a day earlier, or later, than before."""
    began, looks = time.time(), itertools.count()

    def jump() -> float:
        return began + request.param * next(looks)

    monkeypatch.setattr(time, "time", jump)
    # the progress bar's own name for it
    monkeypatch.setattr("tqdm.std.time", jump)
    return looks


def test_a_time_limit_and_a_file_of_texts(jumping, command, tiny_model_path, tmp_path):
    texts = [f"w{i} w{i + 1} w{i + 2}" for i in range(3, 9)]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps({"article": text}) + "\n" for text in texts))
    code, _, err = command("summarize", "--input", tmp_path / "in.jsonl", "--output", tmp_path / "out.jsonl", "--in-order",
                           "--target", tiny_model_path, "--max-new-tokens", 9, "--prefix", "", "--set", "max_time=1000")
    assert code == 0 and "Traceback" not in err, err
    found = [json.loads(line)["summary"] for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert found == foredraft.load(tiny_model_path).generate(texts, max_new_tokens=9).texts
    # the fixture's clock is the one that was read
    assert next(jumping) > 0
