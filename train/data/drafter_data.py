"""What a drafter learns from: articles, each with its human summary and the target's own ones, paired by the article.

Every run sees the articles in one order, whatever it trains on, so that a baseline and its distilled twin read the same
articles in the same steps.
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
    """n articles: ids; sources [n] of [S_i] uint16 that end in `</s>`; gold [n] of [T_i] or None: the human summaries;
    own [n] lists of [T_i]: the target's, `</s>` only where it came."""

    ids: list[str]
    sources: list[np.ndarray]
    gold: list[np.ndarray | None]
    own: list[list[np.ndarray]]

    def __len__(self) -> int:
        return len(self.ids)

    def head(self, n: int | None) -> Articles:
        return self if n is None else Articles(self.ids[:n], self.sources[:n], self.gold[:n], self.own[:n])

    def lengths(self) -> np.ndarray:
        """[n]: what batches are grouped by; the target's own summary, else the human one."""
        return np.array([len((own or [gold])[0]) for own, gold in zip(self.own, self.gold, strict=True)])


def read_drafter_data(data: str | Path | None, pseudo: str | Path | list[str | Path] | None, tokenizer, max_source: int,
                      max_target: int, limit: int | None = None) -> Articles:
    """The articles of a pair file, of pseudo-datasets, or of both: then those that stand in both, in the pseudo's order.

    A gold summary keeps at most `max_target` ids, one `</s>` at its end. UserError: nothing given, no article in common,
    pseudo sources cut longer than `max_source`.
    """
    if data is None and not pseudo:
        raise UserError("nothing to train on; give --data, a pair file, or --pseudo-dataset-path, or both")
    if not pseudo:
        ids, texts, summaries = [], [], []
        for article, highlights in read_texts(data, ("article", "highlights")):
            if len(ids) == limit:
                break
            ids.append(article_id(article))
            texts.append(article)
            summaries.append(highlights)
        if not ids:
            raise UserError(f"{data}: holds no pairs; give a file with at least one article/highlights line")
        sources, gold = _encode(tokenizer, texts, max_source), _encode(tokenizer, summaries, max_target)
        return Articles(ids, sources, list(gold), [[] for _ in ids])
    articles = _own(pseudo if isinstance(pseudo, list) else [pseudo], max_source)
    if data is None:
        return articles.head(limit)
    wanted, found = set(articles.ids), {}
    for article, highlights in read_texts(data, ("article", "highlights")):
        if (name := article_id(article)) in wanted:
            found.setdefault(name, highlights)
    if not found:
        raise UserError(f"{data}: none of its articles stands in {pseudo}; give the file that foredraft pseudo read")
    kept = [i for i, name in enumerate(articles.ids) if name in found][:limit]
    gold = _encode(tokenizer, [found[articles.ids[i]] for i in kept], max_target)
    return Articles([articles.ids[i] for i in kept], [articles.sources[i] for i in kept], list(gold),
                    [articles.own[i] for i in kept])


def _own(paths: list[str | Path], max_source: int) -> Articles:
    articles, places = Articles([], [], [], []), {}
    for path in paths:
        for record in read_pseudo(path):
            place = places.setdefault(record["id"], len(articles))
            if place == len(articles):
                source = np.array(record["source_ids"], np.uint16)
                if len(source) > max_source:
                    raise UserError(f"{path}: its sources have up to {len(source)} ids, the limit here is {max_source}; "
                                    "make it again with --max-source, or raise --max-source here")
                articles.ids.append(record["id"])
                articles.sources.append(source)
                articles.gold.append(None)
                articles.own.append([])
            if record["target_ids"]:
                articles.own[place].append(np.array(record["target_ids"], np.uint16))
    return articles


def _encode(tokenizer, texts: list[str], limit: int) -> list[np.ndarray]:
    out = []
    for encoding in tokenizer.encode_batch(texts):
        ids = encoding.ids[:-1] if encoding.ids and encoding.ids[-1] == END else encoding.ids
        out.append(np.array([*ids[: limit - 1], END], np.uint16))
    return out


class DrafterDataset(Dataset):
    """Examples by (epoch, i), pure functions of (seed, epoch, i): the article's number, source, gold summary, one of the
    target's own ones, and a coin in [0, 1) for mixtures."""

    def __init__(self, articles: Articles, seed: int = 0):
        self.articles, self.seed = articles, seed

    def __len__(self) -> int:
        return len(self.articles)

    def __getitem__(self, index: tuple[int, int]) -> dict:
        epoch, i = index
        draw = np.random.default_rng((self.seed, epoch, i))
        own, coin = self.articles.own[i], draw.random()
        return {"article": i, "source": self.articles.sources[i], "gold": self.articles.gold[i],
                "own": own[draw.integers(len(own))] if own else None, "coin": coin}


def collate_drafter(examples: list[dict]) -> dict:
    """article [B], source_ids, source_mask [B, S] int64, coin [B]; gold, own: B id vectors or None each (see pad_sequences)."""
    longest = max(len(example["source"]) for example in examples)
    source_ids = torch.full((len(examples), longest), PAD)
    for row, example in zip(source_ids, examples, strict=True):
        row[: len(example["source"])] = torch.from_numpy(example["source"].astype(np.int64))
    lengths = torch.tensor([len(example["source"]) for example in examples])
    return {
        "article": torch.tensor([example["article"] for example in examples]),
        "source_ids": source_ids, "source_mask": (torch.arange(longest) < lengths[:, None]).long(),
        "coin": torch.tensor([example["coin"] for example in examples]),
        "gold": [example["gold"] for example in examples], "own": [example["own"] for example in examples],
    }


def pad_sequences(rows: list, start_token: int = PAD) -> tuple[torch.Tensor, torch.Tensor]:
    """Id vectors to (input_ids, labels) [N, T] int64: `start y_0 .. y_{T-2}` is read, `y` is scored, -100 is not."""
    longest = max(map(len, rows))
    labels = torch.full((len(rows), longest), IGNORE)
    for label, row in zip(labels, rows, strict=True):
        label[: len(row)] = torch.as_tensor(np.asarray(row, dtype=np.int64))
    before = torch.cat((labels.new_full((len(rows), 1), start_token), labels[:, :-1]), 1)
    return before.masked_fill(before == IGNORE, PAD), labels
