"""`foredraft pseudo`, `train` and `matrix` as typed."""

from __future__ import annotations

import json

import pytest

SIZES = ["--size", "hidden_size=8", "--size", "num_heads=2", "--size", "d_kv=6", "--size", "d_ff=16"]


@pytest.fixture(autouse=True)
def in_a_folder(monkeypatch, tmp_path):
    monkeypatch.delenv("FOREDRAFT_DATA", raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def data(tmp_path):
    """A folder with the splits train, validation and test."""
    folder = tmp_path / "data"
    folder.mkdir()
    for split, first in (("train", 0), ("validation", 50), ("test", 60)):
        texts = [" ".join(f"w{3 + (7 * i + j) % 90}" for j in range(8)) for i in range(first, first + 6)]
        lines = [json.dumps({"article": text, "highlights": text[:12]}) for text in texts]
        (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def test_from_articles_to_a_drafter(command, data, tiny_model_path, tmp_path):
    code, out, err = command("pseudo", "--target", tiny_model_path, "--data", data / "train.jsonl", "--out", "own",
                             "--max-new-tokens", 6, "--json")
    assert code == 0, err
    assert json.loads(out)["articles"] == 6
    common = ["--target", tiny_model_path, "--data", data, "--batch_size", 2, "--steps", 2, "--eval_articles", 2,
              "--eval_every", 2, "--save_every", 2, "--cache", "cache", "--json", *SIZES]
    code, out, err = command("train", "--drafter", "lstm", "--exp_name", "base", "--kd_loss", 0, *common)
    assert code == 0, err
    assert json.loads(out.splitlines()[-1])["out"] == "runs/base" and (tmp_path / "runs/base/model.safetensors").is_file()
    code, out, err = command("train", "--drafter", "lstm", "--out", "kd", "--pseudo_dataset_path", "own", "--kd_temp", 2,
                             "--distil_method", "Supervised_KD", *common)
    assert code == 0 and 0 < json.loads(out.splitlines()[-1])["alpha"] < 1, err
    code, out, err = command("train", "--drafter", "ngram", "--exp_name", "table", "--target", tiny_model_path,
                             "--pseudo-dataset-path", "own", "--ngram_n", 2)
    assert code == 0 and (tmp_path / "runs/table/table.ngram").is_file(), err


@pytest.mark.parametrize(("arguments", "message"), [
    (["--drafter", "lstm", "--data", "data/train.jsonl"], "give --validation"),
    (["--drafter", "lstm", "--data", "data", "--distill_method", "Magic"], "--distill-method is Magic"),
    (["--drafter", "lstm", "--data", "data", "--size", "hidden=x"], "--size hidden=x"),
    (["--drafter", "lstm", "--data", "data", "--steps", "1", "--batch_size", "2"], "give --pseudo-dataset-path"),
    (["--drafter", "lstm", "--data", "data", "--size", "hidden_size=0"], "of at least 1"),
    (["--drafter", "lstm", "--data", "nowhere"], "--data nowhere: no such file or folder"),
    (["--drafter", "lstm", "--data", "data", "--pseudo-dataset-path", "nowhere"], "nowhere: no such file or folder"),
    (["--drafter", "lstm", "--data", "data", "--device", "cuda"], "no CUDA device is present"),
    (["--drafter", "ngram", "--data", "data", "--max-size", "0.000001"], "leaves no n-gram"),
    (["--drafter", "ngram"], "no data"),
])
def test_bad_lines_are_one_line(command, data, tiny_model_path, arguments, message):
    code, out, err = command("train", "--target", tiny_model_path, "--eval_articles", 2, *arguments)
    last = err.strip().splitlines()[-1]
    assert code == 2 and last.startswith("foredraft: ") and message in last, err


@pytest.mark.full
def test_the_matrix_evaluates_what_it_trained(command, data, tiny_model_path, tmp_path):
    line = ["matrix", "--target", tiny_model_path, "--data", data, "--out", "m", "--drafters", "lstm", "--methods",
            "baseline", "--steps", 1, "--batch-size", 2, "--eval-every", 1, "--eval-articles", 2, "--test-articles", 2,
            "--draft-tokens", 1, "--draft-vocab", 20, "--record", "rows.jsonl",
            *(f"lstm:{item}" if "=" in item else item for item in SIZES)]
    code, out, err = command(*line)
    assert code == 0, err
    (row,) = [json.loads(text) for text in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert row["kind"] == "matrix" and row["training"]["method"] == "baseline"
    assert [figures["temperature"] for figures in row["figures"]] == [0, 1]
    curves = json.loads((tmp_path / "rows-curves.json").read_text())
    (point,) = curves["runs"]["lstm-baseline-s0"]
    assert point["step"] == 1 and 0 <= point["alpha_T0"] <= 1 and curves["target_hash"] == row["training"]["target_hash"]
    assert command(*line)[0] == 0 and len((tmp_path / "rows.jsonl").read_text().splitlines()) == 1
