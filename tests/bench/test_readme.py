"""The README's table and picture come from records, and only from the newest run of a setting."""

import json

import pytest

from foredraft.bench import readme
from foredraft.errors import UserError


def row(method, temperature, batch, time, speed, absent=None, data="test.jsonl.gz"):
    spread = dict(median=speed, p20=speed, p80=speed)
    return dict(
        method=method, temperature=temperature, batch_size=batch, time=time, absent=absent, command=f"run {time}",
        data=dict(name=data, articles=3, source_tokens=dict(min=5, max=9)), draft_tokens=5, max_new_tokens=9, repeats=1,
        target=dict(parameters=2e6, dtype="float32", weights="bf16", hash="abc", threads=2, model="m"),
        machine=dict(cpu="cpu"), differ=0,
        tokens_per_second=spread, tokens_per_second_encoding=spread, acceptance=None,
        speed_up=spread | dict(low=1, high=2), speed_up_encoding=spread | dict(low=1, high=2))


ROWS = [
    row("plain", 0.0, 1, "t1", 11.0), row("lookup", 0.0, 1, "t1", 33.0),
    row("plain", 0.0, 1, "t3", 20.0), row("lookup", 0.0, 1, "t3", 60.0),
    row("hf-assisted", 0.0, 1, "t3", 1.0, "no assistant"),
    row("plain", 1.0, 1, "t2", 10.0), row("plain", 0.0, 1, "t9", 99.0, data="sample texts"),
]


def test_the_newest_run_of_every_setting():
    runs = readme.latest_runs(ROWS)
    assert [[(r["method"], r["time"]) for r in run] for run in runs] == [
        [("plain", "t3"), ("lookup", "t3"), ("hf-assisted", "t3")], [("plain", "t2")]]
    text = readme.table(runs)
    assert "| 0 | 1 | lookup | 60 (60-60) |" in text and "`hf-assisted` is absent at T=0 B=1: no assistant." in text
    assert "11 (" not in text and "99 (" not in text and "run t3" in text


def test_the_table_goes_between_the_markers(tmp_path):
    page = tmp_path / "README.md"
    page.write_text(f"before\n{readme.BEGIN}\nold\n{readme.END}\nafter\n")
    readme.write_table(page, "new\n")
    assert page.read_text() == f"before\n{readme.BEGIN}\nnew\n{readme.END}\nafter\n"
    page.write_text("no markers")
    with pytest.raises(UserError, match="README.md: needs the lines"):
        readme.write_table(page, "new\n")


def test_the_picture_is_drawn(tmp_path):
    pytest.importorskip("matplotlib")
    readme.draw(readme.latest_runs(ROWS), tmp_path / "speeds.png")
    assert (tmp_path / "speeds.png").read_bytes()[:4] == b"\x89PNG"


def test_rows_survive_json():
    assert readme.latest_runs(json.loads(json.dumps(ROWS))) == readme.latest_runs(ROWS)
