"""The files of a pseudo-dataset: shards of records in JSON lines or Parquet."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from foredraft.atomic_write import open_atomic
from foredraft.errors import UserError
from foredraft.text_lines import bounded_lines

FORMATS = ("jsonl", "parquet")


def write_shard(records: list[dict], path: Path) -> None:
    """Write a shard, atomically; the suffix of `path` is the format."""
    with open_atomic(path) as file:
        if path.suffix == ".parquet":
            _parquet().write_table(_table(records), file, compression="zstd")
        else:
            file.write("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records).encode())


def check_format(name: str) -> None:
    """UserError: the format needs a library that is not installed."""
    if name == "parquet":
        _parquet()


def _parquet():
    try:
        import pyarrow.parquet
    except ImportError:
        raise UserError("--format parquet needs pyarrow: pip install 'foredraft[train]', or use --format jsonl") from None
    return pyarrow.parquet


def _table(records: list[dict]):
    import pyarrow

    tokens = pyarrow.list_(pyarrow.int32())
    kinds = {"id": pyarrow.string(), "sample": pyarrow.int32(), "article": pyarrow.string(),
             "highlights": pyarrow.string(), "source_ids": tokens, "target_ids": tokens}
    return pyarrow.Table.from_pylist(records, schema=pyarrow.schema(list(kinds.items())))


def read_pseudo(path: str | Path) -> Iterator[dict]:
    """Yield the records of a folder, complete or not, or of one shard, in order; UserError names an invalid record."""
    path = Path(path)
    shards = sorted(path.glob("pseudo-*.*")) if path.is_dir() else [path]
    if not shards or not shards[0].is_file():
        raise UserError(f"{path}: contains no pseudo-dataset; make one with foredraft pseudo --out {path}")
    for shard in shards:
        if shard.suffix == ".parquet":
            try:
                records = _parquet().read_table(shard).to_pylist()
            except (OSError, ValueError) as error:
                raise UserError(f"{shard}: not readable as parquet ({str(error).splitlines()[0]}); delete it and run "
                                "foredraft pseudo again") from None
            yield from (_record(record, shard, number) for number, record in enumerate(records, 1))
        else:
            with open(shard, "rb") as lines:
                for number, line in enumerate(bounded_lines(lines), 1):
                    try:
                        record = json.loads(line or b"")
                    except (ValueError, RecursionError) as error:
                        raise UserError(f"{shard}, line {number}: not JSON ({error}); delete the shard and run "
                                        "foredraft pseudo again") from None
                    yield _record(record, shard, number)


def _record(record: object, shard: Path, number: int) -> dict:
    wanted = ("id", "sample", "source_ids", "target_ids")
    missing = [name for name in wanted if name not in record] if isinstance(record, dict) else list(wanted)
    if missing:
        raise UserError(f"{shard}, line {number}: has no {missing[0]!r}; foredraft pseudo makes a pseudo-dataset")
    for name in ("source_ids", "target_ids"):
        tokens = record[name]
        if not isinstance(tokens, list) or not all(type(token) is int and 0 <= token < 2**31 for token in tokens):
            raise UserError(f"{shard}, line {number}: {name!r} holds no tokens; delete the shard and run foredraft pseudo "
                            "again")
    return record
