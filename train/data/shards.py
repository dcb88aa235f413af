"""The files of a pseudo-dataset: records in jsonl or parquet shards, each whole or not there."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator
from pathlib import Path

from foredraft.errors import UserError

FORMATS = ("jsonl", "parquet")


def write_shard(records: list[dict], path: Path) -> None:
    """A temporary file, flushed to the disk, renamed."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(partial, "wb") as file:
            if path.suffix == ".parquet":
                _parquet().write_table(_table(records), file, compression="zstd")
            else:
                file.write("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records).encode())
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(f"{path}: no space left; free some and run the same command again, which goes on from "
                            "the last whole shard") from None
        raise
    finally:
        partial.unlink(missing_ok=True)


def _parquet():
    try:
        import pyarrow.parquet
    except ImportError:
        raise UserError("--format parquet needs pyarrow: pip install 'foredraft[train]', or use --format jsonl") from None
    return pyarrow.parquet


def _table(records: list[dict]):
    import pyarrow

    ids = pyarrow.list_(pyarrow.int32())
    kinds = {"id": pyarrow.string(), "sample": pyarrow.int32(), "article": pyarrow.string(),
             "highlights": pyarrow.string(), "source_ids": ids, "target_ids": ids}
    return pyarrow.Table.from_pylist(records, schema=pyarrow.schema(list(kinds.items())))


def read_pseudo(path: str | Path) -> Iterator[dict]:
    """The records of a finished or unfinished folder, or of one shard, in order; UserError names what is broken."""
    path = Path(path)
    shards = sorted(path.glob("pseudo-*.*")) if path.is_dir() else [path]
    if not shards or not shards[0].is_file():
        raise UserError(f"{path}: no pseudo-dataset here; make one with foredraft pseudo --out {path}")
    for shard in shards:
        if shard.suffix == ".parquet":
            try:
                rows = _parquet().read_table(shard).to_pylist()
            except (OSError, ValueError) as error:
                raise UserError(f"{shard}: not readable as parquet ({str(error).splitlines()[0]}); delete it and run "
                                "foredraft pseudo again") from None
            yield from (_record(row, shard, number) for number, row in enumerate(rows, 1))
        else:
            with open(shard, encoding="utf-8") as lines:
                for number, line in enumerate(lines, 1):
                    try:
                        row = json.loads(line)
                    except json.JSONDecodeError as error:
                        raise UserError(f"{shard}, line {number}: not JSON ({error.msg}); delete the shard and run "
                                        "foredraft pseudo again") from None
                    yield _record(row, shard, number)


def _record(row: object, shard: Path, number: int) -> dict:
    wanted = ("id", "sample", "source_ids", "target_ids")
    missing = [name for name in wanted if name not in row] if isinstance(row, dict) else list(wanted)
    if missing:
        raise UserError(f"{shard}, line {number}: no {missing[0]!r}; a pseudo-dataset is made by foredraft pseudo")
    return row
