from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from foredraft.errors import UserError
from foredraft.train.data import pseudo as module
from foredraft.train.data.pseudo import EngineConfig, PseudoConfig, article_id, pseudo
from foredraft.train.data.shards import read_pseudo

N = 14


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """14 articles, one of them twice."""
    file = tmp_path_factory.mktemp("data") / "articles.jsonl"
    texts = [" ".join(f"w{3 + (5 * i + j) % 90}" for j in range(6 + i)) for i in range(N)]
    file.write_text("".join(json.dumps({"article": text}) + "\n" for text in [*texts, texts[2]]))
    return file


def make(data, out, model, workers=1, **options):
    settings = {"shard_size": 4, "max_new_tokens": 6, **options}
    return pseudo(data, out, PseudoConfig(**settings), EngineConfig(str(model), batch_size=3), workers, progress=False)


def shards(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.glob("pseudo-*"))}


@pytest.fixture(scope="module")
def sampled(data, tiny_model_path, tmp_path_factory):
    out = tmp_path_factory.mktemp("pseudo")
    manifest = make(data, out, tiny_model_path, temperature=1.0, samples_per_article=2, seed=3)
    assert (manifest["articles"], manifest["shards"]) == (N, 4)
    return out


def test_records_contain_sources_and_the_targets_own_summaries(sampled, data, tiny_model_path):
    from foredraft.engine.load import load

    records = list(read_pseudo(sampled))
    texts = [json.loads(line)["article"] for line in data.read_text().splitlines()][:N]
    assert [(r["id"], r["sample"]) for r in records] == [(article_id(text), i) for text in texts for i in (0, 1)]
    assert len({(r["id"], tuple(r["target_ids"])) for r in records}) > N  # two samples differ
    model = load(tiny_model_path, None)
    for record in records:
        assert record["source_ids"] == model.tokenizer.encode(record["article"]).ids
        assert record["highlights"] == model.tokenizer.decode(record["target_ids"], skip_special_tokens=True)
        assert 1 <= len(record["target_ids"]) <= 6 and 1 not in record["target_ids"][:-1]


def test_greedy_records_equal_the_targets_greedy_output(data, tiny_model_path, tmp_path):
    from foredraft.engine.load import load

    make(data, tmp_path, tiny_model_path)
    records = list(read_pseudo(tmp_path))
    plain = load(tiny_model_path, None).generate([r["article"] for r in records], max_new_tokens=6, draft_tokens=0)
    assert [r["target_ids"] for r in records] == plain.token_ids


def test_an_interrupted_run_continues_and_repeats_no_shard(sampled, data, tiny_model_path, tmp_path, monkeypatch):
    write, done = module.write_shard, []

    def stopping(records, path):
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(path)
        write(records, path)

    options = {"temperature": 1.0, "samples_per_article": 2, "seed": 3}
    monkeypatch.setattr(module, "write_shard", stopping)
    with pytest.raises(KeyboardInterrupt):
        make(data, tmp_path, tiny_model_path, **options)
    assert len(shards(tmp_path)) == 2
    monkeypatch.setattr(module, "write_shard", write)
    before = {path: path.stat().st_mtime_ns for path in done}
    make(data, tmp_path, tiny_model_path, **options)
    assert shards(tmp_path) == shards(sampled)
    assert {path: path.stat().st_mtime_ns for path in done} == before


# a process that is killed while it writes its second shard
_DYING = """
import os, signal, sys
from foredraft.train.data import pseudo as module
data, out, model = sys.argv[1:]
write, done = module.write_shard, []
def dying(records, path):
    if done:
        open(str(path.with_name(f".{path.name}.half")), "w").write("{")
        os.kill(os.getpid(), signal.SIGKILL)
    done.append(path)
    write(records, path)
module.write_shard = dying
config = module.PseudoConfig(1.0, 2, 3, 6, None, 4)
module.pseudo(data, out, config, module.EngineConfig(model, batch_size=3), progress=False)
"""


_PARENT = """
import multiprocessing, threading, time
from foredraft.train.data.pseudo_workers import _end_with_parent

def child():
    threading.Thread(target=_end_with_parent, daemon=True).start()
    print("ready", flush=True)
    time.sleep(300)

if __name__ == "__main__":
    process = multiprocessing.get_context("spawn").Process(target=child)
    process.start()
    print(process.pid, flush=True)
    time.sleep(300)
"""


def test_the_workers_of_a_killed_parent_end(tmp_path):
    (tmp_path / "parent.py").write_text(_PARENT)
    checkout = Path(__file__).resolve().parents[3]
    parent = subprocess.Popen([sys.executable, tmp_path / "parent.py"], stdout=subprocess.PIPE, text=True,
                              env=os.environ | {"PYTHONPATH": str(checkout)}, cwd=tmp_path)
    worker = psutil.Process(int(parent.stdout.readline()))
    assert parent.stdout.readline() == "ready\n"
    parent.kill()
    parent.wait()
    psutil.wait_procs([worker], timeout=20)
    assert not worker.is_running() or worker.status() == psutil.STATUS_ZOMBIE


def test_another_process_takes_over_the_shards_of_a_killed_one(sampled, data, tiny_model_path, tmp_path):
    checkout = Path(__file__).resolve().parents[3]
    killed = subprocess.run([sys.executable, "-c", _DYING, data, tmp_path, tiny_model_path],
                          env=os.environ | {"PYTHONPATH": str(checkout)}, cwd=tmp_path)
    assert killed.returncode == -signal.SIGKILL and len(shards(tmp_path)) == 1
    make(data, tmp_path, tiny_model_path, temperature=1.0, samples_per_article=2, seed=3)
    assert shards(tmp_path) == shards(sampled)


@pytest.mark.slow
def test_two_workers_write_the_same_records(sampled, data, tiny_model_path, tmp_path):
    make(data, tmp_path, tiny_model_path, workers=2, temperature=1.0, samples_per_article=2, seed=3)
    assert shards(tmp_path) == shards(sampled)


def test_parquet_contains_the_same_records(sampled, data, tiny_model_path, tmp_path):
    pytest.importorskip("pyarrow")
    make(data, tmp_path, tiny_model_path, format="parquet", temperature=1.0, samples_per_article=2, seed=3)
    assert list(read_pseudo(tmp_path)) == list(read_pseudo(sampled))


def test_a_full_disk_raises_an_error_and_loses_no_shard(data, tiny_model_path, tmp_path, monkeypatch):
    replace = os.replace

    def full(source, target):
        if str(target).endswith("pseudo-00001.jsonl"):
            raise OSError(errno.ENOSPC, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(UserError, match="no space left"):
        make(data, tmp_path, tiny_model_path)
    assert list(shards(tmp_path)) == ["pseudo-00000.jsonl"]
    assert not list(tmp_path.glob(".pseudo*[0-9]"))


def test_an_invalid_line_costs_one_article_and_is_named(tiny_model_path, tmp_path, capsys):
    broken = tmp_path / "half.jsonl"
    bad = ['{"article": "w5', '{"article": "half \\ud83d of a pair"}', "[" * 100_000, '{"text": "w6"}', "[1]"] * 5
    broken.write_text("\n".join(['{"article": "w3 w4"}', *bad, '{"article": "w7 w8"}']))
    make(broken, tmp_path / "out", tiny_model_path)
    assert [record["article"] for record in read_pseudo(tmp_path / "out")] == ["w3 w4", "w7 w8"]
    err = capsys.readouterr().err
    assert "half.jsonl, line 2: not JSON" in err and "line 3: half of a surrogate pair" in err
    assert "line 4: nested too deeply" in err and err.count("; skipped") == 20 and "5 more lines were skipped" in err
    broken.write_text("[1]\n")
    with pytest.raises(UserError, match="contains no articles"):
        make(broken, tmp_path / "none", tiny_model_path)


def test_other_settings_in_the_same_folder_are_refused(sampled, data, tiny_model_path):
    with pytest.raises(UserError, match="seed 3, not 4"):
        make(data, sampled, tiny_model_path, temperature=1.0, samples_per_article=2, seed=4)


def test_invalid_arguments_are_named(data, tmp_path, tiny_checkpoints):
    with pytest.raises(UserError, match="would repeat one summary"):
        PseudoConfig(samples_per_article=2)
    with pytest.raises(UserError, match="--format is csv"):
        PseudoConfig(format="csv")
    with pytest.raises(UserError, match="no tokenizer.json"):
        make(data, tmp_path / "a", tiny_checkpoints["v1.0"])
    with pytest.raises(UserError, match="no pseudo-dataset"):
        list(read_pseudo(tmp_path / "nothing"))
    half = tmp_path / "pseudo-00000.jsonl"
    half.write_text('{"id": "a", "sample": 0, "source_ids": [3], "target_ids": [4]}\n{"id": "b"')
    with pytest.raises(UserError, match="line 2: not JSON"):
        list(read_pseudo(tmp_path))
