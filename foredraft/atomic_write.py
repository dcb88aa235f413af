"""Files that are on the disk whole or not at all; a leaf that every room may write with."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path


def write_atomic(path: str | Path, data: str | bytes) -> None:
    """`data` (text in UTF-8) under a temporary name, flushed to the disk and renamed over `path`, whose folder is made if
    need be. After an OSError, which is passed on, the old file stands and nothing else is left."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(partial, "wb") as file:
            file.write(data.encode() if isinstance(data, str) else data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError:
        with suppress(OSError):
            partial.unlink()
        raise
    sync_folder(path.parent)


def sync_folder(path: Path) -> None:
    """Wait until the names in a folder are on the disk."""
    folder = os.open(path, os.O_RDONLY)
    os.fsync(folder)
    os.close(folder)
