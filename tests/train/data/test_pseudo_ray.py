from __future__ import annotations

import json
import os
import signal

import pytest

from foredraft.train.data import pseudo as module
from foredraft.train.data.pseudo import EngineConfig, PseudoConfig, missing_shards, open_folder, pseudo
from foredraft.train.data.shards import read_pseudo


@pytest.mark.slow
def test_two_ray_workers_of_which_one_is_killed_write_all_records(tiny_model_path, tmp_path):
    pytest.importorskip("ray.data", reason="Ray Data is not installed: pip install 'foredraft[ray]'")
    from foredraft.train.data.pseudo_ray import run_ray

    data = tmp_path / "articles.jsonl"
    texts = [" ".join(f"w{3 + (5 * i + j) % 90}" for j in range(6 + i % 7)) for i in range(24)]
    data.write_text("".join(json.dumps({"article": text}) + "\n" for text in texts))
    config = PseudoConfig(temperature=1.0, shard_size=2, max_new_tokens=6)
    engine = EngineConfig(str(tiny_model_path), batch_size=2)
    pseudo(data, tmp_path / "one", config, engine, progress=False)
    out, pids, killed = tmp_path / "ray", [], []
    manifest = open_folder(data, out, config, engine)

    def kill(shard):
        pids.append(shard["pid"])
        if not killed:
            killed.append(shard["pid"])
            os.kill(shard["pid"], signal.SIGKILL)

    run_ray(data, out, config, engine, missing_shards(out, config, manifest["shards"]), 2, "local", lambda *_: None, kill)
    assert list(read_pseudo(out)) == list(read_pseudo(tmp_path / "one"))
    assert len(pids) == 12 and set(pids) - set(killed)
    assert not missing_shards(out, config, manifest["shards"]) and module.MANIFEST in os.listdir(out)
