"""The data set of a drafter: articles, each with its human summary and the target's own summaries, joined by article.

Every run reads the articles in the same order, so a baseline and a distilled drafter see the same articles in the same
steps.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset

from foredraft.errors import UserError
from foredraft.train.data.pairs import END, IGNORE, PAD, read_texts
from foredraft.train.data.pseudo import article_id
from foredraft.train.data.shards import read_pseudo


@dataclass
class Articles:
    """n articles with their summaries.

    Attributes
    ----------
    ids
        [n], identifiers of the articles (pseudo.article_id).
    sources
        [n] of [S_i] uint16, tokens that end in `</s>`.
    gold
        [n] of [T_i] uint16 or None, the human summaries.
    own
        [n] lists of [T_i] uint16, the target's own summaries, with `</s>` only where the target emitted it.
    """

    ids: list[str]
    sources: list[np.ndarray]
    gold: list[np.ndarray | None]
    own: list[list[np.ndarray]]

    def __len__(self) -> int:
        return len(self.ids)

    def head(self, n: int | None) -> Articles:
        """The first n articles; all for None."""
        return self if n is None else Articles(self.ids[:n], self.sources[:n], self.gold[:n], self.own[:n])

    def lengths(self) -> np.ndarray:
        """[n]: lengths by which batches are grouped, of the target's first own summary or else of the human one."""
        return np.array([len((own or [gold])[0]) for own, gold in zip(self.own, self.gold, strict=True)])


def read_drafter_data(data: str | Path | None, pseudo: str | Path | list[str | Path] | None, tokenizer, max_source: int,
                      max_target: int, limit: int | None = None) -> Articles:
    """Read the articles of a pair file, of pseudo-datasets, or those that are in both.

    Parameters
    ----------
    data
        A .jsonl or .jsonl.gz pair file.
    pseudo
        One or more folders of pseudo-datasets, which determine the order of the articles.
    tokenizer
        A tokenizers.Tokenizer.
    max_source, max_target
        Longest source and human summary in tokens, with `</s>`.
    limit
        Read only the first articles.

    Returns
    -------
    Articles

    Raises
    ------
    UserError
        Nothing is given, the two have no article in common, or a pseudo-dataset has sources longer than `max_source`.
    """
    if data is None and not pseudo:
        raise UserError("no training data; give --data (a pair file), --pseudo-dataset-path, or both")
    if not pseudo:
        ids, texts, summaries = [], [], []
        for article, highlights in read_texts(data, ("article", "highlights")):
            if len(ids) == limit:
                break
            ids.append(article_id(article))
            texts.append(article)
            summaries.append(highlights)
        if not ids:
            raise UserError(f"{data}: contains no pairs; give a file with at least one article/highlights line")
        sources, gold = _encode(tokenizer, texts, max_source), _encode(tokenizer, summaries, max_target)
        return Articles(ids, sources, list(gold), [[] for _ in ids])
    articles = _own_summaries(pseudo if isinstance(pseudo, list) else [pseudo], max_source)
    if data is None:
        return articles.head(limit)
    wanted, found = set(articles.ids), {}
    for article, highlights in read_texts(data, ("article", "highlights")):
        if (name := article_id(article)) in wanted:
            found.setdefault(name, highlights)
    if not found:
        raise UserError(f"{data}: none of its articles is in {pseudo}; give the file that foredraft pseudo read")
    kept = [i for i, name in enumerate(articles.ids) if name in found][:limit]
    gold = _encode(tokenizer, [found[articles.ids[i]] for i in kept], max_target)
    return Articles([articles.ids[i] for i in kept], [articles.sources[i] for i in kept], list(gold),
                    [articles.own[i] for i in kept])


def _own_summaries(paths: list[str | Path], max_source: int) -> Articles:
    articles, number_of = Articles([], [], [], []), {}
    for path in paths:
        for record in read_pseudo(path):
            number = number_of.setdefault(record["id"], len(articles))
            if number == len(articles):
                source = np.array(record["source_ids"], np.uint16)
                if len(source) > max_source:
                    raise UserError(f"{path}: its sources have up to {len(source)} tokens, --max-source is {max_source}; "
                                    "raise --max-source, or make the data set again with a smaller one")
                articles.ids.append(record["id"])
                articles.sources.append(source)
                articles.gold.append(None)
                articles.own.append([])
            if record["target_ids"]:
                articles.own[number].append(np.array(record["target_ids"], np.uint16))
    return articles


def _encode(tokenizer, texts: list[str], limit: int) -> list[np.ndarray]:
    out = []
    for encoding in tokenizer.encode_batch(texts):
        tokens = encoding.ids[:-1] if encoding.ids and encoding.ids[-1] == END else encoding.ids
        out.append(np.array([*tokens[: limit - 1], END], np.uint16))
    return out


class DrafterDataset(Dataset):
    """Examples of a drafter's training, indexed by (epoch, i); each is a pure function of (seed, epoch, i).

    An example has the article's number, its source, the human summary, one of the target's own summaries, and a random
    number `coin` in [0, 1) for mixtures.
    """

    def __init__(self, articles: Articles, seed: int = 0):
        self.articles, self.seed = articles, seed

    def __len__(self) -> int:
        return len(self.articles)

    def __getitem__(self, index: tuple[int, int]) -> dict:
        epoch, i = index
        rng = np.random.default_rng((self.seed, epoch, i))
        own, coin = self.articles.own[i], rng.random()
        return {"article": i, "source": self.articles.sources[i], "gold": self.articles.gold[i],
                "own": own[rng.integers(len(own))] if own else None, "coin": coin}


def collate_drafter(examples: list[dict]) -> dict:
    """Pad the sources of a batch.

    Returns
    -------
    dict
        `article` [B], `source_ids` and `source_mask` [B, S] int64, `coin` [B]; `gold` and `own`: lists of B token sequences
        or None, which pad_sequences pads.
    """
    longest = max(len(example["source"]) for example in examples)
    source_ids = torch.full((len(examples), longest), PAD)
    for padded, example in zip(source_ids, examples, strict=True):
        padded[: len(example["source"])] = torch.from_numpy(example["source"].astype(np.int64))
    lengths = torch.tensor([len(example["source"]) for example in examples])
    return {
        "article": torch.tensor([example["article"] for example in examples]),
        "source_ids": source_ids, "source_mask": (torch.arange(longest) < lengths[:, None]).long(),
        "coin": torch.tensor([example["coin"] for example in examples]),
        "gold": [example["gold"] for example in examples], "own": [example["own"] for example in examples],
    }


def pad_sequences(sequences: list, start_token: int = PAD) -> tuple[torch.Tensor, torch.Tensor]:
    """(input_ids, labels) [N, T] int64 of token sequences: `start y_0 .. y_{T-2}` is read, y is scored; padding is -100."""
    longest = max(map(len, sequences))
    labels = torch.full((len(sequences), longest), IGNORE)
    for label, sequence in zip(labels, sequences, strict=True):
        label[: len(sequence)] = torch.as_tensor(np.asarray(sequence, dtype=np.int64))
    before = torch.cat((labels.new_full((len(sequences), 1), start_token), labels[:, :-1]), 1)
    return before.masked_fill(before == IGNORE, PAD), labels
