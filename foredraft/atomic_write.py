"""Atomic writes: a file appears complete under its name, or not at all."""

from __future__ import annotations

import errno
import glob
import os
import platform
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

import psutil

from foredraft.errors import UserError

# errors of a full disk, an exhausted quota and a file at its size limit
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """A temporary path beside `path`; the folder is created. After the block the file is flushed to the disk and renamed.

    A symbolic link is followed, and stays.

    After an exception the temporary file is deleted and an old file at `path` is unchanged. UserError: the disk is full.
    """
    path = Path(path).resolve()
    partial = _own_name(path)
    try:
        yield partial
        with open(partial, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException as error:
        with suppress(OSError):
            partial.unlink()
        if (reason := why_full(error)) is None:
            raise
        raise UserError(f"{path}: {reason}; free some space and run the same command again") from None
    sync_folder(path.parent)


def why_full(error: BaseException) -> str | None:
    """What the system says where an error means a full disk; otherwise None."""
    if isinstance(error, OSError):
        number = error.errno
    elif "inline_container" in str(error) and "unexpected pos" in str(error):
        # torch.save writes in C++ and says only that less was written than it gave
        return "a file cannot be written, as on a full disk"
    else:
        # safetensors has an exception of its own
        found = re.search(r"\(os error (\d+)\)", str(error))
        number = int(found[1]) if found else None
    return os.strerror(number).lower() if number in FULL else None


@contextmanager
def work_folder(path: str | Path) -> Iterator[Path]:
    """A new folder beside `path` for what is needed until `path` is written; it is deleted after the block.

    What a killed process left is deleted by the next one that works for the same path.
    """
    path = Path(path).resolve()
    folder = _own_name(path.with_name(f"{path.name}.work"))
    folder.mkdir(exist_ok=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _own_name(path: Path) -> Path:
    """The name beside `path` that this process may use; the folder is created, and files of killed processes are deleted."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # other machines may write to the same folder
    beginning = f".{path.name}.{platform.node()}."
    for litter in path.parent.glob(f"{glob.escape(beginning)}*"):
        process = litter.name.removeprefix(beginning)
        if process.isdigit() and not psutil.pid_exists(int(process)):
            if litter.is_dir():
                shutil.rmtree(litter, ignore_errors=True)
            else:
                litter.unlink(missing_ok=True)
    return path.with_name(f"{beginning}{os.getpid()}")


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
