"""Batches of article/summary pairs for the training of a target: examples, padding, grouping by length."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch.utils.data import Dataset, Sampler

from foredraft.train.data.pairs import IGNORE, PAD, Pairs

# The first tokens of a span are unscored: they cannot be predicted before there is something to match.
SPAN_PREFIX = 2
SPAN_MINIMUM = 16


class PairDataset(Dataset):
    """Training examples of a target. An example is a pure function of (seed, epoch, i), so a resumed run sees the same ones.

    Parameters
    ----------
    pairs
        The data set.
    span_every
        One example in so many (0: none) copies a random span of pair i's source in place of the summary, without `</s>` and
        with its first SPAN_PREFIX tokens unscored. This applies to an index (epoch, i), not to an index i.
    seed
        Seed of the spans.
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
            rng = np.random.default_rng((self.seed, epoch, i))
            if rng.integers(self.span_every) == 0 and len(source) > SPAN_MINIMUM:
                return {"source": source, "target": random_span(source, self.span_length, rng), "free": SPAN_PREFIX}
        return {"source": source, "target": target, "free": 0}


def random_span(source: np.ndarray, longest: int, rng: np.random.Generator) -> np.ndarray:
    """A random span of `source` without its `</s>`: SPAN_MINIMUM to `longest` tokens, fewer if the source is shorter."""
    body = len(source) - 1
    size = int(rng.integers(min(SPAN_MINIMUM, body), min(longest, body) + 1))
    start = int(rng.integers(0, body - size + 1))
    return source[start : start + size]


def collate(examples: list[dict]) -> dict[str, torch.Tensor]:
    """Pad a batch of PairDataset's examples.

    Returns
    -------
    dict
        `input_ids` and `attention_mask` [B, S], `decoder_input_ids` and `labels` [B, T], int64. The decoder reads
        `<pad> y_0 .. y_{T-2}` and is scored on y. Labels of padding and of unscored tokens are -100; unscored tokens are
        still read by the decoder, so the shift is done here and not by T5, which would read -100 as `<pad>`.
    """
    B = len(examples)
    longest_source = max(len(example["source"]) for example in examples)
    longest_target = max(len(example["target"]) for example in examples)
    input_ids = torch.full((B, longest_source), PAD)
    attention_mask = torch.zeros(B, longest_source, dtype=torch.long)
    decoder_input_ids = torch.full((B, longest_target), PAD)
    labels = torch.full((B, longest_target), IGNORE)
    for b, example in enumerate(examples):
        source = torch.from_numpy(example["source"].astype(np.int64))
        target = torch.from_numpy(example["target"].astype(np.int64))
        input_ids[b, : len(source)] = source
        attention_mask[b, : len(source)] = 1
        decoder_input_ids[b, 1 : len(target)] = target[:-1]
        labels[b, example["free"] : len(target)] = target[example["free"] :]
    return {
        "input_ids": input_ids,
        "attention_mask": attention_mask,
        "decoder_input_ids": decoder_input_ids,
        "labels": labels,
    }


class LengthGroups(Sampler):
    """Sampler of indices (epoch, i) whose batches have targets of similar length; a pure function of (seed, epoch).

    The data set is shuffled and divided into groups of 50 batches, each group is sorted by length, and the batches are
    shuffled.
    """

    def __init__(self, lengths: np.ndarray, batch_size: int, seed: int = 0):
        self.lengths, self.batch_size, self.seed, self.epoch = np.asarray(lengths), batch_size, seed, 0

    def __len__(self) -> int:
        return len(self.lengths)

    def set_epoch(self, epoch: int) -> None:
        """Called by the Trainer before each epoch."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[tuple[int, int]]:
        rng = np.random.default_rng((self.seed, self.epoch))
        order = rng.permutation(len(self.lengths))
        group = 50 * self.batch_size
        pieces = [order[start : start + group] for start in range(0, len(order), group)]
        order = np.concatenate([piece[np.argsort(self.lengths[piece], kind="stable")] for piece in pieces])
        full = len(order) // self.batch_size * self.batch_size
        batches = rng.permutation(order[:full].reshape(-1, self.batch_size), axis=0)
        for i in np.concatenate([batches.reshape(-1), order[full:]]):
            yield self.epoch, int(i)
