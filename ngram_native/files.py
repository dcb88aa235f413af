"""Files of named arrays that open in no time: a checked header, then the arrays, mapped and read on first use.

Little-endian: 8 bytes magic, uint32 version, uint32 size h of the header, 32 bytes sha256 of the header, h bytes of JSON
header, then the arrays, each at a multiple of 64 bytes from the first one, which is at a multiple of 64 itself. The header
names every array with dtype, shape, offset and CRC-32, so that a reader skips arrays it does not know. Opening checks the
header; `verify` reads the pages.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from foredraft.errors import UserError

ALIGNMENT = 64
_PREFIX = struct.Struct("<8sII32s")
_CHUNK = 1 << 24
AGAIN = "fetch the file again or make it anew"


@dataclass(frozen=True)
class Kind:
    """What a file is: its first bytes, the newest version, what it is called, how one is made."""

    magic: bytes
    version: int
    name: str
    mend: str


@contextmanager
def create(path: str | Path, kind: Kind, fields: dict,
           shapes: dict[str, tuple[np.dtype, tuple[int, ...]]]) -> Iterator[dict[str, np.ndarray]]:
    """Writable arrays of a new file, by name, mapped: larger than memory is fine. The file appears whole, when all is done.

    It is written under a temporary name, flushed to the disk, then renamed.
    """
    path = Path(path)
    described, offset = {}, 0
    for name, (dtype, shape) in shapes.items():
        # the largest checksum there can be keeps its place in the header
        described[name] = {"dtype": np.dtype(dtype).str, "shape": list(shape), "offset": offset, "crc32": 2**32 - 1}
        offset = _aligned(offset + _bytes(described[name]))
    offset = max(offset, ALIGNMENT)
    header = fields | {"arrays": described, "data_bytes": offset}
    size = len(json.dumps(header).encode())
    start = _aligned(_PREFIX.size + size)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(partial, "wb") as file:
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
        with open(partial, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write(path: str | Path, kind: Kind, fields: dict, arrays: dict[str, np.ndarray]) -> None:
    """A file of arrays that are in memory."""
    with create(path, kind, fields, {name: (array.dtype, array.shape) for name, array in arrays.items()}) as stored:
        for name, array in arrays.items():
            stored[name][...] = array


def read(path: str | Path, kind: Kind) -> tuple[int, dict, dict[str, np.ndarray]]:
    """(version, header, arrays), the arrays mapped. UserError if missing, foreign, newer, damaged or cut short."""
    version, header, data = _map(Path(path), kind)
    return version, header, {name: _view(data, entry) for name, entry in header["arrays"].items()}


def verify(path: str | Path, kind: Kind) -> int:
    """Read every page; UserError names the array that is not what was written. Returns the bytes read."""
    _, header, data = _map(Path(path), kind)
    for name, entry in header["arrays"].items():
        if _checksum(data[entry["offset"] : entry["offset"] + _bytes(entry)]) != entry["crc32"]:
            raise UserError(f"{path}: array '{name}' is damaged; {AGAIN}")
    return header["data_bytes"]


def has_magic(path: str | Path, kind: Kind) -> bool:
    """Whether a file begins as this kind does."""
    with open(path, "rb") as file:
        return file.read(len(kind.magic)) == kind.magic


def _map(path: Path, kind: Kind) -> tuple[int, dict, np.ndarray]:
    """Version, checked header, and the data section as [data_bytes] uint8, mapped copy-on-write."""
    if not path.is_file():
        raise UserError(f"{path}: no such {kind.name}; {kind.mend}")
    with open(path, "rb") as file:
        prefix = file.read(_PREFIX.size)
        if prefix[: len(kind.magic)] != kind.magic:
            raise UserError(f"{path}: not an {kind.name} (wrong first bytes); {kind.mend}")
        if len(prefix) < _PREFIX.size:
            raise UserError(f"{path}: cut short inside its header; {AGAIN}")
        _, version, size, digest = _PREFIX.unpack(prefix)
        if version > kind.version:
            raise UserError(f"{path}: {kind.name} of format {version}, this foredraft reads up to {kind.version}; "
                            "upgrade it or make the file anew")
        text = file.read(size)
        length = file.seek(0, os.SEEK_END)
    if len(text) < size:
        raise UserError(f"{path}: cut short inside its header; {AGAIN}")
    if hashlib.sha256(text).digest() != digest:
        raise UserError(f"{path}: its header is damaged; {AGAIN}")
    header, start = json.loads(text), _aligned(_PREFIX.size + size)
    if length < start + header["data_bytes"]:
        raise UserError(f"{path}: cut short, {length} bytes of {start + header['data_bytes']}; {AGAIN}")
    # Copy-on-write keeps the arrays writable for the compiler, which would otherwise make a second, read-only version.
    mapped = np.asarray(np.memmap(path, np.uint8, "c"))
    return version, header, mapped[start : start + header["data_bytes"]]


def _bytes(entry: dict) -> int:
    return np.dtype(entry["dtype"]).itemsize * int(np.prod(entry["shape"], dtype=np.int64))


def _view(data: np.ndarray, entry: dict) -> np.ndarray:
    return np.asarray(data[entry["offset"] : entry["offset"] + _bytes(entry)]).view(entry["dtype"]).reshape(entry["shape"])


def _checksum(data: np.ndarray) -> int:
    value = 0
    for begin in range(0, len(data), _CHUNK):
        value = zlib.crc32(data[begin : begin + _CHUNK], value)
    return value


def _aligned(offset: int) -> int:
    return -(-offset // ALIGNMENT) * ALIGNMENT
