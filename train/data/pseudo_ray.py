"""The pseudo-dataset on several machines: Ray Data (Moritz et al. 2018) distributes shards to actors with one engine each.

The driver reads the articles and writes the shards, so only the target's folder must exist on every machine.
"""

from __future__ import annotations

import os
from pathlib import Path

from foredraft.errors import UserError
from foredraft.train.data import pseudo
from foredraft.train.data.shards import write_shard


class ShardWorker:
    """The state of a Ray actor: one engine for all its shards."""

    def __init__(self, config: pseudo.PseudoConfig, engine: pseudo.EngineConfig):
        self.config, self.engine, self.model = config, engine, engine.load()

    def __call__(self, shard: dict) -> dict:
        """{shard, ids, texts} to {shard, records, pid}."""
        articles = list(zip(shard["ids"], shard["texts"], strict=True))
        return {"shard": shard["shard"], "pid": os.getpid(),
                "records": pseudo.summarise(self.model, articles, self.config, self.engine)}


def run_ray(data: str | Path, out: Path, config: pseudo.PseudoConfig, engine: pseudo.EngineConfig, missing: set[int],
            workers: int, address: str, on_done: pseudo.OnDone, on_shard=lambda shard: None) -> None:
    """Write the missing shards with `workers` actors at `address` ("local" starts Ray on this machine).

    An actor uses one GPU if the engine's device is cuda, else one CPU. The shard of an actor that ended is given to another.
    """
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
        shards = [{"shard": number, "ids": [name for name, _ in articles], "texts": [text for _, text in articles]}
                for number, articles in pseudo.read_shards(data, config) if number in missing]
        resources = {"num_gpus": 1} if engine.device.startswith("cuda") else {"num_cpus": 1}
        done = ray.data.from_items(shards, override_num_blocks=len(shards)).map(
            ShardWorker, fn_constructor_args=(config, engine), compute=ray.data.ActorPoolStrategy(size=workers), **resources)
        for shard in done.iter_rows():
            records = list(shard["records"])
            write_shard(records, pseudo.shard_path(out, shard["shard"], config))
            on_done(len(records), sum(len(record["target_ids"]) for record in records))
            on_shard(shard)
    finally:
        if started:
            ray.shutdown()
