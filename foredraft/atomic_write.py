"""Atomic writes: a file appears complete under its name, or not at all."""

from __future__ import annotations

import glob
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

import psutil


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """A temporary path beside `path`; the folder is created. After the block the file is flushed to the disk and renamed.

    A symbolic link is followed, and stays.

    After an exception the temporary file is deleted and an old file at `path` is unchanged.
    """
    path = Path(path).resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    # other machines may write to the same folder
    beginning = f".{path.name}.{platform.node()}."
    for litter in path.parent.glob(f"{glob.escape(beginning)}*"):
        # a killed process leaves its partial file behind
        process = litter.name.removeprefix(beginning)
        if process.isdigit() and not psutil.pid_exists(int(process)):
            litter.unlink(missing_ok=True)
    partial = path.with_name(f"{beginning}{os.getpid()}")
    try:
        yield partial
        with open(partial, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        with suppress(OSError):
            partial.unlink()
        raise
    sync_folder(path.parent)


@contextmanager
def open_atomic(path: str | Path, mode: str = "wb", encoding: str | None = None) -> Iterator[IO]:
    """A file open for writing that replaces `path` after the block (see atomic_path)."""
    with atomic_path(path) as partial, open(partial, mode, encoding=encoding) as file:
        yield file


def write_atomic(path: str | Path, data: str | bytes) -> None:
    """Replace the file at `path` by `data`; text is written in UTF-8."""
    with open_atomic(path) as file:
        file.write(data.encode() if isinstance(data, str) else data)


def sync_folder(path: Path) -> None:
    """Flush a folder's directory entries to the disk. Windows does so itself, and opens no folder."""
    if os.name == "nt":
        return
    folder = os.open(path, os.O_RDONLY)
    os.fsync(folder)
    os.close(folder)
