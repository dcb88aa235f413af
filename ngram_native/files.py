"""Files of named arrays that are memory-mapped: a checked header, then the arrays, whose pages are read on first use.

Little-endian: 8 bytes magic, uint32 version, uint32 size h of the header, 32 bytes sha256 of the header, h bytes of JSON
header, then the arrays, each at an offset that is a multiple of 64 bytes. The header lists every array with dtype, shape,
offset and CRC-32, so a reader can ignore arrays that it does not know. Opening a file checks the header; `verify` checks the
arrays.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from foredraft.atomic_write import atomic_path
from foredraft.errors import UserError

ALIGNMENT = 64
# Types that arrays may have, as NumPy writes them.
TYPES = ("<u2", "<i4", "<i8", "<u8", "<f4")
_PREFIX = struct.Struct("<8sII32s")
_CHUNK = 1 << 24
DAMAGED = "download or create the file again"


@dataclass(frozen=True)
class Kind:
    """A file format: magic bytes, newest version, name for messages, and how to make such a file."""

    magic: bytes
    version: int
    name: str
    hint: str


@contextmanager
def create(path: str | Path, kind: Kind, fields: dict,
           shapes: dict[str, tuple[np.dtype, tuple[int, ...]]]) -> Iterator[dict[str, np.ndarray]]:
    """Write a file atomically; its arrays may be larger than the memory.

    Parameters
    ----------
    path, kind
        The file and its format.
    fields
        Entries of the header, JSON values.
    shapes
        Name to (dtype, shape) of every array.

    Yields
    ------
    dict
        Name to array, mapped and writable, zero at first. The file is completed after the block.
    """
    described, offset = {}, 0
    for name, (dtype, shape) in shapes.items():
        # the largest possible checksum reserves space in the header
        described[name] = {"dtype": np.dtype(dtype).str, "shape": list(shape), "offset": offset, "crc32": 2**32 - 1}
        offset = _aligned(offset + _bytes(described[name]))
    offset = max(offset, ALIGNMENT)
    header = fields | {"arrays": described, "data_bytes": offset}
    size = len(json.dumps(header).encode())
    start = _aligned(_PREFIX.size + size)
    with atomic_path(path) as partial:
        with open(partial, "wb") as file:
            if hasattr(os, "posix_fallocate"):
                # a full disk is an error here, and not a signal when a page is written
                os.posix_fallocate(file.fileno(), 0, start + offset)
            else:
                file.truncate(start + offset)
        mapped = np.memmap(partial, np.uint8, "r+")
        arrays = {name: _view(mapped[start:], entry) for name, entry in described.items()}
        yield arrays
        for name, entry in described.items():
            entry["crc32"] = _checksum(arrays[name].reshape(-1).view(np.uint8))
        text = json.dumps(header).encode().ljust(size)
        mapped[: _PREFIX.size] = np.frombuffer(
            _PREFIX.pack(kind.magic, kind.version, size, hashlib.sha256(text).digest()), np.uint8)
        mapped[_PREFIX.size : _PREFIX.size + size] = np.frombuffer(text, np.uint8)
        mapped.flush()


def write(path: str | Path, kind: Kind, fields: dict, arrays: dict[str, np.ndarray]) -> None:
    """Write arrays that are in memory, atomically."""
    with create(path, kind, fields, {name: (array.dtype, array.shape) for name, array in arrays.items()}) as stored:
        for name, array in arrays.items():
            stored[name][...] = array


def read(path: str | Path, kind: Kind) -> tuple[int, dict, dict[str, np.ndarray]]:
    """Open a file.

    Parameters
    ----------
    path, kind
        The file and the expected format.

    Returns
    -------
    version : int
    header : dict
    arrays : dict
        Name to array, mapped copy-on-write.

    Raises
    ------
    UserError
        The file is missing, of another format or a newer version, truncated, or its header is damaged.
    """
    version, header, data = _map(Path(path), kind)
    return version, header, {name: _view(data, entry) for name, entry in header["arrays"].items()}


def verify(path: str | Path, kind: Kind) -> int:
    """Check the CRC-32 of every array; returns the number of bytes read. UserError names a damaged array."""
    _, header, data = _map(Path(path), kind)
    for name, entry in header["arrays"].items():
        if _checksum(data[entry["offset"] : entry["offset"] + _bytes(entry)]) != entry["crc32"]:
            raise UserError(f"{path}: array '{name}' is damaged; {DAMAGED}")
    return header["data_bytes"]


def has_magic(path: str | Path, kind: Kind) -> bool:
    """Whether a file begins with the magic bytes of this format."""
    with open(path, "rb") as file:
        return file.read(len(kind.magic)) == kind.magic


def _map(path: Path, kind: Kind) -> tuple[int, dict, np.ndarray]:
    """Version, checked header, and the data section as [data_bytes] uint8, mapped copy-on-write."""
    if not path.is_file():
        raise UserError(f"{path}: no such {kind.name}; {kind.hint}")
    with open(path, "rb") as file:
        prefix = file.read(_PREFIX.size)
        if prefix[: len(kind.magic)] != kind.magic:
            raise UserError(f"{path}: not an {kind.name} (wrong first bytes); {kind.hint}")
        if len(prefix) < _PREFIX.size:
            raise UserError(f"{path}: truncated inside its header; {DAMAGED}")
        _, version, size, digest = _PREFIX.unpack(prefix)
        if version > kind.version:
            raise UserError(f"{path}: {kind.name} of version {version}, but this foredraft reads up to {kind.version}; "
                            "upgrade foredraft or create the file again")
        length = file.seek(0, os.SEEK_END)
        file.seek(_PREFIX.size)
        text = file.read(min(size, length))
    if len(text) < size:
        raise UserError(f"{path}: truncated inside its header; {DAMAGED}")
    if hashlib.sha256(text).digest() != digest:
        raise UserError(f"{path}: its header is damaged; {DAMAGED}")
    try:
        header = json.loads(text)
        _check_header(header)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, OverflowError) as error:
        raise UserError(f"{path}: its header is not one of an {kind.name} ({type(error).__name__}: {error}); {DAMAGED}"
                        ) from None
    start = _aligned(_PREFIX.size + size)
    if length < start + header["data_bytes"]:
        raise UserError(f"{path}: truncated, {length} of {start + header['data_bytes']} bytes; {DAMAGED}")
    # numba would compile a second version of every kernel for read-only arrays
    mapped = np.asarray(np.memmap(path, np.uint8, "c"))
    return version, header, mapped[start : start + header["data_bytes"]]


def _check_header(header: dict) -> None:
    """ValueError, or another error of its entries: an array does not lie inside the data."""
    if type(header["data_bytes"]) is not int:
        raise ValueError("data_bytes is no number")
    for name, entry in header["arrays"].items():
        sizes = [entry["offset"], entry["crc32"], *entry["shape"]]
        if any(type(size) is not int or size < 0 for size in sizes):
            raise ValueError(f"array {name!r} has no sizes")
        if entry["dtype"] not in TYPES:
            raise ValueError(f"array {name!r} holds no numbers")
        if entry["offset"] % ALIGNMENT or entry["offset"] + _bytes(entry) > header["data_bytes"]:
            raise ValueError(f"array {name!r} does not lie inside the file")


def _bytes(entry: dict) -> int:
    return np.dtype(entry["dtype"]).itemsize * math.prod(entry["shape"])


def _view(data: np.ndarray, entry: dict) -> np.ndarray:
    return np.asarray(data[entry["offset"] : entry["offset"] + _bytes(entry)]).view(entry["dtype"]).reshape(entry["shape"])


def _checksum(data: np.ndarray) -> int:
    value = 0
    for begin in range(0, len(data), _CHUNK):
        value = zlib.crc32(data[begin : begin + _CHUNK], value)
    return value


def _aligned(offset: int) -> int:
    return -(-offset // ALIGNMENT) * ALIGNMENT
