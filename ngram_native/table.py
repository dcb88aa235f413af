"""The n-gram table: a trie in flat arrays, and its file.

Contract. Nodes are numbered level by level: the ids 0..V-1 first (level 1), then every kept n-gram of 2, 3, ..., N ids
in sorted order. M nodes in all, of which the first C (levels 1..N-1) can be contexts:

    ids           [M - V]  the node's last id (node n has ids[n - V])
    alphas        [M]      float32, the node's own mass given its context; of level 1 the whole unigram probability
    first_child   [C + 1]  the children of context c are the nodes first_child[c] : first_child[c + 1], sorted by id
    backoffs      [C]      float32, the mass that context c leaves to the context without its first id
    best          [C]      the id with the largest probability after c, whether a child of c or not
    best_probability [C]   float32, that probability

p(w | c) = alpha(c w) + backoff(c) p(w | c without its first id), with alpha = 0 for an n-gram that is not kept and
backoff = 1 for a context that is not; it sums to 1 over 0..V-1 by construction. Every suffix and prefix of a node is a
node. Integer arrays have the smallest type that fits.

File `.ngram` (little-endian): 8 bytes magic, uint32 version, uint32 size h of the header, 32 bytes sha256 of the
header, h bytes of JSON header, then the arrays, each at a multiple of 64 bytes from the first one, which is at a
multiple of 64 itself. The header names every array with type, shape, offset and CRC-32: a reader skips arrays that it
does not know. Opening maps the file and checks the header; `verify` reads the pages.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from foredraft.errors import UserError

MAGIC = b"FDNGRAM\n"
VERSION = 1
ALIGNMENT = 64
_PREFIX = struct.Struct("<8sII32s")
_ARRAYS = ("ids", "alphas", "first_child", "backoffs", "best", "best_probability")


def vocabulary_fingerprint(vocabulary: Mapping[str, int]) -> str:
    """sha256 (hex) of a tokenizer's vocabulary, `tokenizer.get_vocab()`: equal iff every token has the same id."""
    pairs = sorted((index, token) for token, index in vocabulary.items())
    return hashlib.sha256(json.dumps(pairs).encode()).hexdigest()


def smallest_type(largest: int) -> np.dtype:
    """The smallest of uint16, int32, int64 that holds 0..largest."""
    return np.dtype(np.uint16 if largest < 2**16 else np.int32 if largest < 2**31 else np.int64)


@dataclass(frozen=True)
class Table:
    """See the module docstring. sizes [N]: nodes per level; discounts: per level, what was taken from counts 1, 2, 3+;
    tokenizer: the vocabulary's fingerprint, or None when it is not known."""

    vocab_size: int
    sizes: tuple[int, ...]
    smoothing: str
    discounts: tuple[tuple[float, ...], ...]
    tokenizer: str | None
    ids: np.ndarray
    alphas: np.ndarray
    first_child: np.ndarray
    backoffs: np.ndarray
    best: np.ndarray
    best_probability: np.ndarray

    @property
    def order(self) -> int:
        return len(self.sizes)

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays."""
        return sum(getattr(self, name).nbytes for name in _ARRAYS)

    def save(self, path: str | Path) -> None:
        """Write the file: a temporary one, flushed to the disk, then renamed."""
        path = Path(path)
        described, offset = {}, 0
        for name in _ARRAYS:
            array = getattr(self, name)
            described[name] = {
                "dtype": array.dtype.str, "shape": list(array.shape), "offset": offset, "crc32": zlib.crc32(array),
            }  # fmt: skip
            offset = _aligned(offset + array.nbytes)
        header = json.dumps({
            "order": self.order, "vocab_size": self.vocab_size, "sizes": self.sizes, "smoothing": self.smoothing,
            "discounts": self.discounts, "tokenizer": self.tokenizer, "arrays": described, "data_bytes": offset,
        }).encode()  # fmt: skip
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.{os.getpid()}")
        with open(partial, "wb") as file:
            file.write(_PREFIX.pack(MAGIC, VERSION, len(header), hashlib.sha256(header).digest()))
            file.write(header)
            file.write(bytes(_aligned(file.tell()) - file.tell()))
            for name in _ARRAYS:
                file.write(getattr(self, name))
                file.write(bytes(_aligned(file.tell()) - file.tell()))
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)

    @classmethod
    def open(cls, path: str | Path) -> Table:
        """Map a file; pages are read on first use. UserError if it is missing, foreign, newer, damaged or cut short."""
        header, data = _map(Path(path))
        arrays = {}
        for name in _ARRAYS:
            entry = header["arrays"][name]
            size = np.dtype(entry["dtype"]).itemsize * int(np.prod(entry["shape"]))
            arrays[name] = data[entry["offset"] : entry["offset"] + size].view(entry["dtype"]).reshape(entry["shape"])
        discounts = tuple(map(tuple, header["discounts"]))
        return cls(
            header["vocab_size"], tuple(header["sizes"]), header["smoothing"], discounts, header["tokenizer"], **arrays
        )


def verify(path: str | Path) -> None:
    """Read every page of a table file; UserError if an array is not what was written."""
    header, data = _map(Path(path))
    for name, entry in header["arrays"].items():
        size = np.dtype(entry["dtype"]).itemsize * int(np.prod(entry["shape"]))
        if zlib.crc32(data[entry["offset"] : entry["offset"] + size]) != entry["crc32"]:
            raise UserError(f"{path}: array '{name}' is damaged; fetch the table again or fit it anew")


def _map(path: Path) -> tuple[dict, np.ndarray]:
    """The checked header, and the data section as [data_bytes] uint8, mapped copy-on-write."""
    mend = "fit one with `foredraft train --drafter ngram`"
    if not path.is_file():
        raise UserError(f"{path}: no such n-gram table; {mend}")
    with open(path, "rb") as file:
        prefix = file.read(_PREFIX.size)
        if prefix[: len(MAGIC)] != MAGIC:
            raise UserError(f"{path}: not an n-gram table (wrong first bytes); {mend}")
        if len(prefix) < _PREFIX.size:
            raise UserError(f"{path}: cut short inside its header; fetch the table again or fit it anew")
        _, version, size, digest = _PREFIX.unpack(prefix)
        if version > VERSION:
            raise UserError(
                f"{path}: table format {version}, this foredraft reads up to {VERSION}; upgrade it or fit a new one"
            )
        text = file.read(size)
        file.seek(0, os.SEEK_END)
        length = file.tell()
    if len(text) < size:
        raise UserError(f"{path}: cut short inside its header; fetch the table again or fit it anew")
    if hashlib.sha256(text).digest() != digest:
        raise UserError(f"{path}: its header is damaged; fetch the table again or fit it anew")
    header, start = json.loads(text), _aligned(_PREFIX.size + size)
    if length < start + header["data_bytes"]:
        raise UserError(
            f"{path}: cut short, {length} bytes of {start + header['data_bytes']}; fetch the table again or fit it anew"
        )
    # Copy-on-write keeps the arrays writable for the compiler, which would otherwise make a second, read-only version.
    mapped = np.asarray(np.memmap(path, np.uint8, "c"))
    return header, mapped[start : start + header["data_bytes"]]


def _aligned(offset: int) -> int:
    return -(-offset // ALIGNMENT) * ALIGNMENT
