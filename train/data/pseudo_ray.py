"""The pseudo-dataset beyond one machine: Ray Data (Moritz et al. 2018) hands shards to workers, one engine in each.

The driver reads the articles and writes the shards, so that only the target's folder must be found on every machine.
"""

from __future__ import annotations

import os
from pathlib import Path

from foredraft.errors import UserError
from foredraft.train.data import pseudo
from foredraft.train.data.shards import write_shard


class ShardWorker:
    """Lives in a Ray actor: one engine, from its first shard on."""

    def __init__(self, order: pseudo.PseudoConfig, engine: pseudo.EngineConfig):
        self.order, self.engine, self.model = order, engine, engine.load()

    def __call__(self, row: dict) -> dict:
        """{shard, ids, texts} to {shard, records, pid}."""
        articles = list(zip(row["ids"], row["texts"], strict=True))
        return {"shard": row["shard"], "pid": os.getpid(),
                "records": pseudo.summarise(self.model, articles, self.order, self.engine)}


def run_ray(data: str | Path, out: Path, order: pseudo.PseudoConfig, engine: pseudo.EngineConfig, missing: set[int], workers: int,
            address: str, on_done: pseudo.OnDone, on_shard=lambda row: None) -> None:
    """Write the missing shards with `workers` actors at `address` ("local" starts Ray here); a dead actor's shard goes to
    another. Each takes one GPU when the engine's device is cuda, else one CPU."""
    try:
        import ray
    except ImportError:
        raise UserError("--ray-address needs Ray: pip install 'foredraft[ray]'") from None
    started = not ray.is_initialized()
    if started:
        here = str(Path(pseudo.__file__).resolve().parents[2])
        paths = os.pathsep.join(filter(None, [here, os.environ.get("PYTHONPATH")]))
        ray.init(address=address, runtime_env={"env_vars": {"PYTHONPATH": paths}}, log_to_driver=False,
                 **({"num_cpus": workers, "include_dashboard": False} if address == "local" else {}))
    try:
        rows = [{"shard": number, "ids": [name for name, _ in articles], "texts": [text for _, text in articles]}
                for number, articles in pseudo.read_shards(data, order) if number in missing]
        places = {"num_gpus": 1} if engine.device.startswith("cuda") else {"num_cpus": 1}
        done = ray.data.from_items(rows, override_num_blocks=len(rows)).map(
            ShardWorker, fn_constructor_args=(order, engine), compute=ray.data.ActorPoolStrategy(size=workers), **places)
        for row in done.iter_rows():
            records = list(row["records"])
            write_shard(records, pseudo.shard_path(out, row["shard"], order))
            on_done(len(records), sum(len(record["target_ids"]) for record in records))
            on_shard(row)
    finally:
        if started:
            ray.shutdown()
