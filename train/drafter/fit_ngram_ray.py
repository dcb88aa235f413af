"""Counting n-grams with Ray: one task for each file, then an exact merge of the counts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from foredraft.atomic_write import work_folder
from foredraft.errors import UserError
from foredraft.ngram_native.counts import Counts
from foredraft.ngram_native.counts_file import merge_files
from foredraft.train.drafter.fit_ngram import count_texts


def count_shards(paths: Sequence[Path], out: Path, tokenizer: Path, order: int, field: str, vocab_size: int | None,
                 memory: int, update: Path | None = None) -> Counts:
    """Count files on a Ray cluster.

    Parameters
    ----------
    paths
        Files, which all workers can read.
    out
        The `.counts` file to write, in a folder that all workers share.
    tokenizer, order, field, vocab_size, memory
        See fit_ngram.count_texts; `memory` is that of a task.
    update
        Earlier counts to add.

    Returns
    -------
    Counts

    Raises
    ------
    UserError
        Ray is missing, or a file cannot be read.
    """
    try:
        import ray
    except ImportError:
        raise UserError("--ray needs Ray; pip install 'foredraft[ray]'") from None
    with work_folder(f"{out}.shards") as folder:

        def shard(record: dict) -> dict:
            part = folder / f"{record['shard']}.counts"
            counter = count_texts([record["path"]], record["tokenizer"], order, field, vocab_size, memory, progress=False)
            counter.finish(part)
            return {"counts": str(part)}

        shards = [{"shard": i, "path": str(Path(path).resolve()), "tokenizer": str(Path(tokenizer).resolve())}
                  for i, path in enumerate(paths)]
        done = ray.data.from_items(shards, override_num_blocks=len(shards)).map(shard).take_all()
        parts = sorted(record["counts"] for record in done)
        return merge_files([*([update] if update else []), *parts], out)
