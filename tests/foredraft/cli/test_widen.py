"""`foredraft widen`, from the command line to a model that writes the same texts, with the drafters of its original."""

import json

import pytest

import foredraft
from foredraft import embedded
from foredraft.engine.models import widened_checkpoint
from foredraft.engine.models.geometry import SIZES

TEXTS = ["w5 w9 w33 w5 w9 w40 w5 w9", "w7 w8 w7 w8 w60", "w99"]


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    monkeypatch.setitem(SIZES, "tiny", dict(d_model=40, d_kv=9, d_ff=50, num_layers=3, num_decoder_layers=4, num_heads=4))


@pytest.mark.parametrize("drafter", [None, "lookup"])
def test_the_same_texts(command, tiny_model_path, tmp_path, drafter):
    code, out, _ = command("widen", "--target", tiny_model_path, "--geometry", "tiny", "--out", tmp_path / "out", "--json")
    figures = json.loads(out)
    assert code == 0 and figures["geometry"] == "tiny" and figures["peak_memory_gb"] > 0
    texts = [foredraft.load(folder, drafter=drafter).generate(TEXTS, max_new_tokens=24).texts
             for folder in (tiny_model_path, tmp_path / "out")]
    assert texts[0] == texts[1] and len(set(texts[0])) > 1


def test_errors_are_one_line(command, tiny_model_path, tmp_path):
    def error(out, *arguments):
        code, printed, err = command("widen", "--target", tiny_model_path, "--out", out, *arguments)
        assert code == 2 and printed == "" and len(err.strip().splitlines()) == 1, err
        return err

    assert "is an input of this command" in error(tiny_model_path, "--geometry", "tiny")
    assert "'flan' is not known" in error(tmp_path / "out", "--geometry", "flan")
    (tmp_path / "file").write_text("text")
    assert "is a file" in error(tmp_path / "file", "--geometry", "tiny")


def test_an_interruption_says_how_to_go_on(command, tiny_model_path, tmp_path, monkeypatch):
    def stop(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(widened_checkpoint, "write_shard", stop)
    arguments = ("widen", "--target", tiny_model_path, "--geometry", "tiny", "--out", tmp_path / "out")
    code, _, err = command(*arguments)
    assert code == 130 and "the same command goes on" in err
    monkeypatch.undo()
    monkeypatch.setitem(SIZES, "tiny", dict(d_model=40, d_kv=9, d_ff=50, num_layers=3, num_decoder_layers=4, num_heads=4))
    assert command(*arguments)[0] == 0


@pytest.mark.full
def test_the_embedded_target_writes_the_same_summaries_with_its_drafters(command, tmp_path):
    assert command("widen", "--geometry", "flan-t5-small", "--out", tmp_path)[0] == 0
    articles = [file.read_text() for file in sorted(embedded.TEXTS.glob("*.txt"))[:4]]
    plain = foredraft.load(drafter=None).generate(articles, max_new_tokens=48).token_ids
    for drafter in (None, "lookup", "lstm", "auto"):
        model = foredraft.load(tmp_path, drafter=drafter)
        assert model.generate(articles, max_new_tokens=48).token_ids == plain
    # the embedded LSTM is one of the drafters of "auto"
    assert len(model.drafter.drafters) == 2
