"""Article/summary pairs: reading the text, tokenising, truncating, caching.

A pair file is .jsonl or .jsonl.gz with the texts `article` and `highlights` in every line. Tokens fit in 16 bits, so a
tokenised data set is two flat uint16 arrays with start offsets. Saved as `.npz` it is accepted wherever a pair file is, also
on a machine without the text.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import math
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from foredraft.atomic_write import open_atomic
from foredraft.errors import UserError
from foredraft.text_lines import TOO_LONG, bounded_lines

PAD, END = 0, 1
IGNORE = -100


@dataclass(frozen=True)
class Pairs:
    """n tokenised pairs. `source(i)` and `target(i)` are uint16 views that end in `</s>`."""

    sources: np.ndarray  # [sum S_i] uint16
    source_starts: np.ndarray  # [n + 1] int64
    targets: np.ndarray  # [sum T_i] uint16
    target_starts: np.ndarray  # [n + 1] int64
    fingerprint: str

    def __len__(self) -> int:
        return len(self.source_starts) - 1

    def source(self, i: int) -> np.ndarray:
        """[S_i] uint16."""
        return self.sources[self.source_starts[i] : self.source_starts[i + 1]]

    def target(self, i: int) -> np.ndarray:
        """[T_i] uint16."""
        return self.targets[self.target_starts[i] : self.target_starts[i + 1]]

    def head(self, n: int) -> Pairs:
        """The first n pairs."""
        n = min(n, len(self))
        return Pairs(
            self.sources[: self.source_starts[n]],
            self.source_starts[: n + 1],
            self.targets[: self.target_starts[n]],
            self.target_starts[: n + 1],
            f"{self.fingerprint}[:{n}]",
        )


def read_pairs(path: str | Path) -> Iterator[tuple[str, str]]:
    """Yield (article, highlights) of every line of a .jsonl or .jsonl.gz file; UserError names an invalid line."""
    return read_texts(path, ("article", "highlights"))


def read_texts(path: str | Path, fields: tuple[str, ...], skip: Callable[[str], None] | None = None
               ) -> Iterator[tuple[str, ...]]:
    """Yield the texts under `fields` of every line of a .jsonl or .jsonl.gz file.

    An invalid line is passed to `skip` as a message; without `skip` it raises UserError. A file that cannot be read raises.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file; give a .jsonl or .jsonl.gz with {_listed(fields)} on every line")
    number = 0
    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rb") as lines:
            for number, line in enumerate(bounded_lines(lines), 1):
                if line is not None and not line.strip():
                    continue
                try:
                    if line is None:
                        raise UserError(f"{TOO_LONG}; correct or delete the line")
                    texts = _texts_of(line, fields)
                except UserError as error:
                    message = f"{path}, line {number}: {error}"
                    if skip is None:
                        raise UserError(message) from None
                    skip(message)
                    continue
                yield texts
    except (EOFError, OSError, zlib.error) as error:
        raise UserError(f"{path}, after line {number}: unreadable ({error}); download the file again") from None


def _texts_of(line: bytes, fields: tuple[str, ...]) -> tuple[str, ...]:
    """The texts of a line. UserError says what is wrong with it."""
    try:
        record = json.loads(line)
    except RecursionError:
        raise UserError("nested too deeply; correct or delete the line") from None
    except ValueError as error:
        raise UserError(f"not JSON ({error}); correct or delete the line") from None
    texts = tuple(record.get(field) if isinstance(record, dict) else None for field in fields)
    for field, text in zip(fields, texts, strict=True):
        if not isinstance(text, str) or not text.strip():
            raise UserError(f"no text under '{field}'; every line must be an object with a non-empty text under "
                            f"{_listed(fields)}")
        try:
            text.encode()
        except UnicodeEncodeError:
            raise UserError(f"half of a surrogate pair under '{field}'; correct or delete the line") from None
    return texts


def _listed(fields: tuple[str, ...]) -> str:
    return " and ".join(f"'{field}'" for field in fields)


def load_pairs(path: str | Path, tokenizer, max_source: int, max_target: int, cache: str | Path | None = None) -> Pairs:
    """Tokenise a pair file, or read a saved `.npz`.

    Parameters
    ----------
    path
        A .jsonl or .jsonl.gz file, or an `.npz` of save_pairs.
    tokenizer
        A tokenizers.Tokenizer.
    max_source, max_target
        Longest source and target in tokens, with `</s>`; longer ones are truncated.
    cache
        Folder in which the tokens are stored and found again, under a fingerprint of the file, the tokenizer and the limits.

    Returns
    -------
    Pairs

    Raises
    ------
    UserError
        The file is missing, empty or invalid.
    """
    path = Path(path)
    if path.suffix == ".npz":
        return _truncate(read_saved_pairs(path), max_source, max_target)
    if not path.is_file():
        raise UserError(f"{path}: no such file; give a .jsonl, .jsonl.gz or .npz of article/highlights pairs")
    name = fingerprint(path, tokenizer, max_source, max_target)
    kept = Path(cache) / f"{path.name.split('.')[0]}-{name[:16]}.npz" if cache else None
    if kept is not None and kept.is_file():
        return read_saved_pairs(kept)
    pairs = _tokenise(path, tokenizer, max_source, max_target, name)
    if not len(pairs):
        raise UserError(f"{path}: contains no pairs; give a file with at least one article/highlights line")
    if kept is not None:
        save_pairs(pairs, kept)
    return pairs


def save_pairs(pairs: Pairs, path: str | Path) -> None:
    """Write pairs as a compressed `.npz`, atomically."""
    with open_atomic(path) as file:
        np.savez_compressed(
            file, sources=pairs.sources, source_starts=pairs.source_starts, targets=pairs.targets,
            target_starts=pairs.target_starts, fingerprint=np.array(pairs.fingerprint))


def read_saved_pairs(path: Path) -> Pairs:
    """Read an `.npz` of save_pairs; UserError if it is not one."""
    try:
        _check_expansion(path)
        with np.load(path, allow_pickle=False) as saved:
            sources, source_starts, targets, target_starts = (
                saved[name] for name in ("sources", "source_starts", "targets", "target_starts"))
            found = Pairs(sources, source_starts, targets, target_starts, str(saved["fingerprint"]))
        for tokens, starts in ((sources, source_starts), (targets, target_starts)):
            _check_starts(tokens, starts)
        if len(source_starts) != len(target_starts):
            raise ValueError("the numbers of sources and targets differ")
        return found
    except Exception as error:  # a damaged archive raises many types
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        raise UserError(f"{path}: not a file of tokenised pairs ({reason}); create it again from the text") from None


def _check_expansion(path: Path) -> None:
    """ValueError: an array would be more than 100 times as large as the file holds it, and not small."""
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            with archive.open(member) as stream:
                version = np.lib.format.read_magic(stream)
                read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
                shape, _, dtype = read(stream)
            size = max(member.file_size, math.prod(shape) * dtype.itemsize)
            if size > max(1 << 26, 100 * member.compress_size):
                raise ValueError(f"{member.filename} expands to {size} bytes")


def _check_starts(tokens: np.ndarray, starts: np.ndarray) -> None:
    """ValueError: the arrays are not tokens and the positions where their sequences start."""
    if tokens.ndim != 1 or tokens.dtype != np.uint16 or starts.ndim != 1 or starts.dtype.kind not in "iu" or not len(starts):
        raise ValueError("arrays of other types")
    if starts[0] != 0 or starts[-1] != len(tokens) or (np.diff(starts.astype(np.int64)) < 0).any():
        raise ValueError("its sequences do not follow each other")


def fingerprint(path: Path, tokenizer, max_source: int, max_target: int) -> str:
    """sha256 of a pair file, its tokenizer and both limits."""
    digest = hashlib.sha256(f"pairs 1 {max_source} {max_target} ".encode())
    digest.update(hashlib.sha256(tokenizer.to_str().encode()).digest())
    with open(path, "rb") as file:
        digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _tokenise(path: Path, tokenizer, max_source: int, max_target: int, fingerprint: str) -> Pairs:
    columns = ([], [])
    limits = (max_source, max_target)
    block: list[tuple[str, str]] = []

    def encode() -> None:
        for column, limit, texts in zip(columns, limits, zip(*block, strict=True), strict=True):
            for encoding in tokenizer.encode_batch(list(texts)):
                column.append(_truncated(np.array(encoding.ids, dtype=np.uint16), limit))
        block.clear()

    for pair in read_pairs(path):
        block.append(pair)
        if len(block) == 2048:
            encode()
    if block:
        encode()
    return _pack(columns[0], columns[1], fingerprint)


def _truncated(tokens: np.ndarray, limit: int) -> np.ndarray:
    """At most `limit` tokens, with exactly one `</s>` at the end."""
    body = tokens[:-1] if len(tokens) and tokens[-1] == END else tokens
    return np.append(body[: limit - 1], np.uint16(END))


def _pack(sources: list[np.ndarray], targets: list[np.ndarray], fingerprint: str) -> Pairs:
    packed = []
    for column in (sources, targets):
        starts = np.zeros(len(column) + 1, dtype=np.int64)
        np.cumsum([len(tokens) for tokens in column], out=starts[1:])
        packed += [np.concatenate(column) if column else np.zeros(0, dtype=np.uint16), starts]
    return Pairs(*packed, fingerprint)


def _truncate(pairs: Pairs, max_source: int, max_target: int) -> Pairs:
    fits = np.diff(pairs.source_starts).max(initial=0) <= max_source
    if fits and np.diff(pairs.target_starts).max(initial=0) <= max_target:
        return pairs
    sources = [_truncated(pairs.source(i), max_source) for i in range(len(pairs))]
    targets = [_truncated(pairs.target(i), max_target) for i in range(len(pairs))]
    return _pack(sources, targets, f"{pairs.fingerprint} cut {max_source} {max_target}")


def find_split(data: str | Path, split: str) -> Path:
    """The file of a split, `split`.npz, .jsonl.gz or .jsonl, in the folder `data`."""
    if not Path(data).is_dir():
        raise UserError(f"{data}: no such folder; give one with {split}.jsonl, {split}.jsonl.gz or {split}.npz")
    for ending in ("npz", "jsonl.gz", "jsonl"):
        path = Path(data) / f"{split}.{ending}"
        if path.is_file():
            return path
    raise UserError(f"{data}: contains no {split}.jsonl, {split}.jsonl.gz or {split}.npz; give the file itself")
