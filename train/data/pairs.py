"""Article/summary pairs as token ids: reading, truncating, caching, batching.

A pair file is jsonl or jsonl.gz, one object a line with the texts ``article`` and ``highlights``. Ids fit in 16 bits,
so a tokenised set is two flat uint16 arrays with start offsets; saved as ``.npz`` it is small enough to carry to a
machine that does not hold the text, and it is accepted wherever a pair file is.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset, Sampler

from foredraft.errors import UserError

PAD, END = 0, 1
IGNORE = -100
# The first tokens of a copied span cannot be guessed: the match needs two tokens to look for.
SPAN_PREFIX = 2
SPAN_MINIMUM = 16


@dataclass(frozen=True)
class Pairs:
    """``n`` tokenised pairs; ``source(i)`` and ``target(i)`` are uint16 views that end in ``</s>``."""

    sources: np.ndarray  # [sum S_i] uint16
    source_starts: np.ndarray  # [n + 1] int64
    targets: np.ndarray  # [sum T_i] uint16
    target_starts: np.ndarray  # [n + 1] int64
    fingerprint: str

    def __len__(self) -> int:
        return len(self.source_starts) - 1

    def source(self, i: int) -> np.ndarray:
        return self.sources[self.source_starts[i] : self.source_starts[i + 1]]

    def target(self, i: int) -> np.ndarray:
        return self.targets[self.target_starts[i] : self.target_starts[i + 1]]

    def head(self, n: int) -> Pairs:
        """The first ``n`` pairs."""
        n = min(n, len(self))
        return Pairs(
            self.sources[: self.source_starts[n]],
            self.source_starts[: n + 1],
            self.targets[: self.target_starts[n]],
            self.target_starts[: n + 1],
            f"{self.fingerprint}[:{n}]",
        )


def read_pairs(path: str | Path) -> Iterator[tuple[str, str]]:
    """Yield ``(article, highlights)`` from a jsonl or jsonl.gz file; a broken line raises UserError naming it."""
    return read_texts(path, ("article", "highlights"))


def read_texts(path: str | Path, fields: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """Yield the texts under ``fields`` of every line of a jsonl or jsonl.gz file; UserError names a broken line."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file; give a .jsonl or .jsonl.gz with {_listed(fields)} on every line")
    number = 0
    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                if not line.strip():
                    continue
                try:
                    row = json.loads(line)
                except json.JSONDecodeError as error:
                    raise UserError(f"{path}, line {number}: not JSON ({error.msg}); mend or delete the line") from None
                texts = tuple(row.get(field) if isinstance(row, dict) else None for field in fields)
                for field, text in zip(fields, texts, strict=True):
                    if not isinstance(text, str) or not text.strip():
                        raise UserError(f"{path}, line {number}: no text under '{field}'; every line must be an object "
                                        f"with a non-empty text under {_listed(fields)}")
                yield texts
    except (EOFError, OSError, UnicodeDecodeError, gzip.zlib.error) as error:
        raise UserError(f"{path}, after line {number}: unreadable ({error}); fetch the file again") from None


def _listed(fields: tuple[str, ...]) -> str:
    return " and ".join(f"'{field}'" for field in fields)


def load_pairs(path: str | Path, tokenizer, max_source: int, max_target: int, cache: str | Path | None = None) -> Pairs:
    """Tokenise a pair file (or read a saved ``.npz``), cut to ``max_source`` / ``max_target`` ids, ``</s>`` included.

    ``tokenizer`` is a ``tokenizers.Tokenizer``. With a ``cache`` folder the ids are kept there under a fingerprint of
    the file's bytes, the tokenizer and both limits, and read back when all of them are unchanged.
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
        raise UserError(f"{path}: holds no pairs; give a file with at least one article/highlights line")
    if kept is not None:
        save_pairs(pairs, kept)
    return pairs


def save_pairs(pairs: Pairs, path: str | Path) -> None:
    """Write ``pairs`` as a compressed ``.npz``: a temporary file, flushed to the disk, then renamed."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    with open(partial, "wb") as file:
        np.savez_compressed(
            file,
            sources=pairs.sources,
            source_starts=pairs.source_starts,
            targets=pairs.targets,
            target_starts=pairs.target_starts,
            fingerprint=np.array(pairs.fingerprint),
        )
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def read_saved_pairs(path: Path) -> Pairs:
    try:
        with np.load(path) as saved:
            arrays = [saved[name] for name in ("sources", "source_starts", "targets", "target_starts")]
            return Pairs(*arrays, str(saved["fingerprint"]))
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise UserError(f"{path}: not a saved set of tokenised pairs ({error}); make it again from the text") from None


def fingerprint(path: Path, tokenizer, max_source: int, max_target: int) -> str:
    """sha256 over a pair file, its tokenizer and both limits."""
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
                column.append(_cut(np.array(encoding.ids, dtype=np.uint16), limit))
        block.clear()

    for pair in read_pairs(path):
        block.append(pair)
        if len(block) == 2048:
            encode()
    if block:
        encode()
    return _pack(columns[0], columns[1], fingerprint)


def _cut(ids: np.ndarray, limit: int) -> np.ndarray:
    """``ids`` with exactly one ``</s>``, at the end, and at most ``limit`` long."""
    body = ids[:-1] if len(ids) and ids[-1] == END else ids
    return np.append(body[: limit - 1], np.uint16(END))


def _pack(sources: list[np.ndarray], targets: list[np.ndarray], fingerprint: str) -> Pairs:
    packed = []
    for column in (sources, targets):
        starts = np.zeros(len(column) + 1, dtype=np.int64)
        np.cumsum([len(ids) for ids in column], out=starts[1:])
        packed += [np.concatenate(column) if column else np.zeros(0, dtype=np.uint16), starts]
    return Pairs(*packed, fingerprint)


def _truncate(pairs: Pairs, max_source: int, max_target: int) -> Pairs:
    fits = np.diff(pairs.source_starts).max(initial=0) <= max_source
    if fits and np.diff(pairs.target_starts).max(initial=0) <= max_target:
        return pairs
    sources = [_cut(pairs.source(i), max_source) for i in range(len(pairs))]
    targets = [_cut(pairs.target(i), max_target) for i in range(len(pairs))]
    return _pack(sources, targets, f"{pairs.fingerprint} cut {max_source} {max_target}")


class PairDataset(Dataset):
    """Training examples, every one a pure function of ``(seed, epoch, i)``, so that a resumed run sees the same ones.

    One in ``span_every`` (0: none) is replaced by span copying: a random stretch of pair ``i``'s source becomes the
    target, its first tokens unscored and without ``</s>``. That happens when indexed by ``(epoch, i)``; indexed by
    plain ``i`` a set yields its pairs as they are.
    """

    def __init__(self, pairs: Pairs, span_every: int = 0, seed: int = 0):
        self.pairs, self.span_every, self.seed = pairs, span_every, seed
        self.span_length = int(np.diff(pairs.target_starts).max(initial=SPAN_MINIMUM))

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int | tuple[int, int]) -> dict[str, np.ndarray]:
        epoch, i = index if isinstance(index, tuple) else (None, index)
        source, target = self.pairs.source(i), self.pairs.target(i)
        if epoch is not None and self.span_every:
            draw = np.random.default_rng((self.seed, epoch, i))
            if draw.integers(self.span_every) == 0 and len(source) > SPAN_MINIMUM:
                return {"source": source, "target": random_span(source, self.span_length, draw), "free": SPAN_PREFIX}
        return {"source": source, "target": target, "free": 0}


def random_span(source: np.ndarray, longest: int, draw: np.random.Generator) -> np.ndarray:
    """A random stretch of ``source`` without its ``</s>``: SPAN_MINIMUM to ``longest`` ids, less if there are fewer."""
    body = len(source) - 1
    size = int(draw.integers(min(SPAN_MINIMUM, body), min(longest, body) + 1))
    start = int(draw.integers(0, body - size + 1))
    return source[start : start + size]


def collate(examples: list[dict]) -> dict[str, torch.Tensor]:
    """Pad to the batch's longest: ``input_ids, attention_mask`` [B, S], ``decoder_input_ids, labels`` [B, T], int64.

    The decoder reads ``<pad> y_0 .. y_{T-2}`` and is scored on ``y``; -100 marks padding and the unscored beginnings of
    spans, which the decoder still reads (so the shift happens here: T5's own shift would read -100 as ``<pad>``).
    """
    rows = len(examples)
    longest_source = max(len(example["source"]) for example in examples)
    longest_target = max(len(example["target"]) for example in examples)
    input_ids = torch.full((rows, longest_source), PAD)
    attention_mask = torch.zeros(rows, longest_source, dtype=torch.long)
    decoder_input_ids = torch.full((rows, longest_target), PAD)
    labels = torch.full((rows, longest_target), IGNORE)
    for row, example in enumerate(examples):
        source = torch.from_numpy(example["source"].astype(np.int64))
        target = torch.from_numpy(example["target"].astype(np.int64))
        input_ids[row, : len(source)] = source
        attention_mask[row, : len(source)] = 1
        decoder_input_ids[row, 1 : len(target)] = target[:-1]
        labels[row, example["free"] : len(target)] = target[example["free"] :]
    return {
        "input_ids": input_ids,
        "attention_mask": attention_mask,
        "decoder_input_ids": decoder_input_ids,
        "labels": labels,
    }


class LengthGroups(Sampler):
    """Yields ``(epoch, i)`` so that a batch holds targets of similar length; a pure function of (seed, epoch).

    The set is shuffled, cut into groups of 50 batches and sorted by length inside each; then the batches are shuffled.
    """

    def __init__(self, lengths: np.ndarray, batch_size: int, seed: int = 0):
        self.lengths, self.batch_size, self.seed, self.epoch = np.asarray(lengths), batch_size, seed, 0

    def __len__(self) -> int:
        return len(self.lengths)

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[tuple[int, int]]:
        draw = np.random.default_rng((self.seed, self.epoch))
        order = draw.permutation(len(self.lengths))
        group = 50 * self.batch_size
        pieces = [order[start : start + group] for start in range(0, len(order), group)]
        order = np.concatenate([piece[np.argsort(self.lengths[piece], kind="stable")] for piece in pieces])
        full = len(order) // self.batch_size * self.batch_size
        batches = draw.permutation(order[:full].reshape(-1, self.batch_size), axis=0)
        for i in np.concatenate([batches.reshape(-1), order[full:]]):
            yield self.epoch, int(i)


def find_split(data: str | Path, split: str) -> Path:
    """``split``.npz, .jsonl.gz or .jsonl in the folder ``data``."""
    for ending in ("npz", "jsonl.gz", "jsonl"):
        path = Path(data) / f"{split}.{ending}"
        if path.is_file():
            return path
    raise UserError(f"{data}: no {split}.jsonl, {split}.jsonl.gz or {split}.npz in it; name the file itself")
