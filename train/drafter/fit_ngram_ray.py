"""Counting with Ray: each file is counted by a task of its own, then the counts are merged, which is exact."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

from foredraft.errors import UserError
from foredraft.ngram_native.counts import Counts
from foredraft.ngram_native.counts_file import merge_files
from foredraft.train.drafter.fit_ngram import count_texts


def count_shards(paths: Sequence[Path], out: Path, tokenizer: Path, order: int, field: str, vocab_size: int | None,
                 memory: int, update: Path | None = None) -> Counts:
    """Count every file by Ray Data into a `.counts` file beside `out` (a folder all workers share), then merge them."""
    try:
        import ray
    except ImportError:
        raise UserError("--ray needs Ray; pip install 'foredraft[ray]'") from None
    with tempfile.TemporaryDirectory(dir=out.resolve().parent, prefix=".shards-") as folder:

        def shard(row: dict) -> dict:
            place = Path(folder) / f"{row['shard']}.counts"
            counter = count_texts([row["path"]], row["tokenizer"], order, field, vocab_size, memory, progress=False)
            counter.finish(place)
            return {"counts": str(place)}

        rows = [{"shard": i, "path": str(Path(path).resolve()), "tokenizer": str(Path(tokenizer).resolve())}
                for i, path in enumerate(paths)]
        done = ray.data.from_items(rows, override_num_blocks=len(rows)).map(shard).take_all()
        parts = sorted(row["counts"] for row in done)
        return merge_files([*([update] if update else []), *parts], out)
