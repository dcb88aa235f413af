"""The report as a reader gets it: opened in a real browser, in both themes, on a phone and on a desktop."""

from __future__ import annotations

import json

import bench_rows
import browser
import pytest

from foredraft.bench.report import charts, collection, page
from foredraft.errors import UserError

pytest.importorskip("matplotlib", reason="the charts need matplotlib")

PIECES = [("the", "target"), (" old", "lookup"), (" ferry <b>", "ngram"), (".", "lstm")]
SAMPLE = page.Sample("01-a.txt", "lookup+ngram", 5, 2, PIECES)


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    file = tmp_path_factory.mktemp("records") / "made-up.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in bench_rows.every_kind()))
    return file.parent


@pytest.fixture(scope="module")
def written(records, tmp_path_factory):
    """The page's file and its charts."""
    found = collection.collect(records)
    built = page.build(found, SAMPLE)
    file = tmp_path_factory.mktemp("page") / "index.html"
    file.write_text(page.render(built, found), encoding="utf-8")
    return file, built.charts


def test_every_chart_is_there_once_with_its_command(written):
    file, drawn = written
    text = file.read_text()
    names = [chart.name for chart in drawn]
    assert len(set(names)) == len(names)
    assert {"speed-acme-7-2-cores-T0-B1-K5", "alpha-T0", "position-T1", "step-T0", "gain-T1", "predicted-T0", "theory-0",
            "time-acme-7-2-cores-T0-B1-K5", "token-time", "encode-time", "throughput-0",
            "batch-acme-7-2-cores-K5", "methods-0", "scale-0-articles", "scale-0-source", "scale-0-output", "memory-0",
            "alarm-0"} <= set(names)
    assert "0 false alarms, 2 timed again; slowed: 1 missed" in text and "900 ± 12" in text
    assert text.count("<figure") == text.count("<svg") == len(names)
    for chart in drawn:
        part = text.split(f'<figure id="{chart.name}">')[1].split("</figure>")[0]
        assert all(command in part and machine in part for command, machine, _ in charts.sources([chart]))
        # every colour is a role that the theme sets
        assert not [colour for colour in charts.PALETTE.values() if colour in part]
    assert "<b>tree:x</b> is absent at T=0 B=1; T=0 B=8" in text
    assert "foredraft bench run --at" in text and " ferry &lt;b&gt;" in text and "http-equiv" not in text


def test_a_picture_of_each_chart(written, tmp_path):
    chart = written[1][0]
    charts.save_png(chart, tmp_path / "one.png", {"Records": "abc"})
    data = (tmp_path / "one.png").read_bytes()
    assert data[:4] == b"\x89PNG" and b"Records\0abc" in data
    assert [file.name for file in tmp_path.iterdir()] == ["one.png"]


@pytest.mark.full
@pytest.mark.skipif(browser.find() is None, reason=f"no browser: none of {', '.join(browser.NAMES)} is installed")
def test_in_a_real_browser(written, tmp_path):
    file, drawn = written
    grounds = set()
    with browser.Browser(browser.find(), tmp_path / "profile") as real:
        for width, dark in ((390, False), (390, True), (1280, False), (1280, True)):
            found = real.open(file, width, dark)
            assert found["errors"] == [] and found["loaded"] == [], found
            assert found["scroll"] <= width and found["wide"] == [], (width, found)
            assert found["broken"] == [] and len(found["svgs"]) == len(drawn)
            assert all(200 < chart <= width for chart in found["svgs"])
            grounds.add(found["ground"])
            real.evaluate("document.querySelectorAll('details').forEach(one => { one.open = true; })")
            assert real.evaluate("document.documentElement.scrollWidth") <= width
        # the check can fail: something too wide, a script that breaks, a picture that is not there, a page from afar
        broken = tmp_path / "broken.html"
        broken.write_text("<div style='width:500px'>x</div><img src='gone.png'><script>nothing.here</script>"
                          "<link rel=stylesheet href='http://127.0.0.1:9/x.css'>")
        found = real.open(broken, 390, False)
        assert found["scroll"] >= 500 and found["broken"] and found["errors"] and found["loaded"]
    assert len(grounds) == 2


def test_the_command(command, tmp_path, monkeypatch):
    from foredraft.cli import report as cli_report

    records = tmp_path / "run.jsonl"
    records.write_text("".join(json.dumps(row) + "\n" for row in bench_rows.run_rows()))
    monkeypatch.setattr(cli_report, "decode_sample", lambda number: SAMPLE)
    code, out, err = command("report", records, "--out", tmp_path / "made")
    assert code == 0, err
    assert "charts from" in out and "{" not in out
    made = json.loads(command("report", records, "--out", tmp_path / "made", "--json")[1])
    names = sorted(file.name for file in (tmp_path / "made").iterdir())
    assert "index.html" in names and len(names) == made["pictures"] + 1
    assert command("report", records)[0] == 2
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "holds no .jsonl record" in command("report", empty, "--out", tmp_path / "x")[2]


def test_a_page_without_records_of_a_kind(tmp_path):
    file = tmp_path / "few.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in bench_rows.run_rows()))
    built = page.build(collection.collect(file), None)
    assert [section.title for section in built.sections] == ["Who is faster", "Where the time goes"]
    file.write_text("[1]\n")
    with pytest.raises(UserError, match="line 1: not a JSON object"):
        collection.collect(file)


def test_the_sample_is_a_text_of_ours_as_the_embedded_model_writes_it():
    import foredraft
    from foredraft.bench.harness.cases import sample_texts
    from foredraft.cli import report as cli_report

    found = cli_report.decode_sample(2)
    name, text = sample_texts()[1]
    plain = foredraft.load(drafter=None).generate([text], max_new_tokens=cli_report.SAMPLE_TOKENS)
    assert found.name == name and "".join(piece for piece, _ in found.pieces) == plain.texts[0]
    drafted = sum(proposer != "target" for _, proposer in found.pieces)
    assert 0 < drafted < len(found.pieces) and found.steps < plain.stats.steps
    with pytest.raises(UserError, match="--sample is 99; there are 14"):
        cli_report.decode_sample(99)
