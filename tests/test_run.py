"""run.py and the shell script: the command lines of the original project."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parent.parent


def module():
    spec = importlib.util.spec_from_file_location("run", CHECKOUT / "run.py")
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


def test_the_last_word_run_is_removed():
    arguments = module().arguments
    line = "train --drafter lstm --exp_name lstm --kd_loss 0 run".split()
    assert arguments(line) == line[:-1]
    assert arguments("eval --ckpt_path run run".split()) == "eval --ckpt_path run".split()
    assert arguments(["bench", "run"]) == ["bench", "run"] and arguments([]) == []


def test_the_train_options_of_the_original_project():
    line = ("train --drafter gru --exp_name x --loss 1 --kd_loss 1 --kd_temp 8 --distil_method Seq_KD --ngram_n 3 "
            "--pseudo_dataset_path p --device cpu run")
    done = subprocess.run([sys.executable, "run.py", *line.split()], cwd=CHECKOUT, capture_output=True, text=True)
    assert done.returncode == 2 and "--drafter gru is not known" in done.stderr


def test_the_script_reads_and_writes_in_the_current_folder(tiny_model_path, tmp_path):
    (tmp_path / "articles.jsonl").write_text(json.dumps({"article": "w3 w4 w5"}) + "\n")
    line = f"--target {tiny_model_path} --data articles.jsonl --out own --max-new-tokens 4"
    done = subprocess.run([CHECKOUT / "generate_peudodataset_multigpus.sh", *line.split()], cwd=tmp_path,
                          capture_output=True, text=True, env=os.environ | {"WORKERS": "1", "PYTHON": sys.executable})
    assert done.returncode == 0, done.stderr
    assert len((tmp_path / "own" / "pseudo-00000.jsonl").read_text().splitlines()) == 1
