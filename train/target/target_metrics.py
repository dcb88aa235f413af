"""What a target can do, in figures: does it read its source, does it copy, does it repeat itself, does it end?"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import torch
from rouge_score.rouge_scorer import RougeScorer

from foredraft.train.data.pair_batches import SPAN_PREFIX, collate, random_span
from foredraft.train.data.pairs import END, IGNORE, PAD, Pairs


@torch.no_grad()
def span_accuracy(model, pairs: Pairs, count: int, longest: int = 64, batch_size: int = 32, seed: int = 7) -> float:
    """Top-1 accuracy in continuing a random span of the source, teacher-forced, over the first ``count`` pairs."""
    hits = scored = 0
    for batch in _batches(pairs, count, batch_size, lambda i: _span(pairs, i, longest, seed)):
        batch = {name: tensor.to(model.device) for name, tensor in batch.items()}
        labels = batch.pop("labels")
        best = model(**batch).logits.argmax(-1)
        hits += (best == labels)[labels != IGNORE].sum().item()
        scored += (labels != IGNORE).sum().item()
    return hits / scored


def _span(pairs: Pairs, i: int, longest: int, seed: int) -> dict:
    source = pairs.source(i)
    return {
        "source": source,
        "target": random_span(source, longest, np.random.default_rng((seed, i))),
        "free": SPAN_PREFIX,
    }


@torch.no_grad()
def source_losses(model, pairs: Pairs, count: int, batch_size: int = 32) -> tuple[float, float]:
    """Loss in nats a token on the first ``count`` summaries: with their own sources, and with their neighbours'."""
    count = min(count, len(pairs))
    losses = []
    for shift in (0, 1):
        total = scored = 0.0

        def example(i: int, shift: int = shift) -> dict:
            return {"source": pairs.source((i + shift) % count), "target": pairs.target(i), "free": 0}

        for batch in _batches(pairs, count, batch_size, example):
            batch = {name: tensor.to(model.device) for name, tensor in batch.items()}
            labels = batch.pop("labels")
            logits = model(**batch).logits.float()
            total += torch.nn.functional.cross_entropy(
                logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORE, reduction="sum"
            ).item()
            scored += (labels != IGNORE).sum().item()
        losses.append(total / scored)
    return losses[0], losses[1]


def _batches(pairs: Pairs, count: int, batch_size: int, example):
    count = min(count, len(pairs))
    for start in range(0, count, batch_size):
        yield collate([example(i) for i in range(start, min(start + batch_size, count))])


def repeats(ids: Sequence, n: int = 4) -> bool:
    """Whether some ``n``-gram of ids, or of words, occurs twice."""
    grams = [tuple(ids[i : i + n]) for i in range(len(ids) - n + 1)]
    return len(set(grams)) < len(grams)


def words(text: str) -> list[str]:
    """The lower-cased words of a text, without punctuation."""
    return re.findall(r"\w+", text.lower())


def copied_share(ids: Sequence[int], source: Sequence[int], n: int = 3) -> float:
    """Share of the ``n``-grams of ``ids`` that stand in ``source``; nan when there are none."""
    known = {tuple(source[i : i + n]) for i in range(len(source) - n + 1)}
    grams = [tuple(ids[i : i + n]) for i in range(len(ids) - n + 1)]
    return sum(gram in known for gram in grams) / len(grams) if grams else float("nan")


def rouge(predictions: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """Mean ROUGE-1/2/L/Lsum F1 in percent, with stemming; sentences of a text stand on lines of their own for Lsum."""
    kinds = ("rouge1", "rouge2", "rougeL", "rougeLsum")
    scorer = RougeScorer(list(kinds), use_stemmer=True)
    scores = [scorer.score(reference, text) for reference, text in zip(references, predictions, strict=True)]
    return {kind: 100 * float(np.mean([score[kind].fmeasure for score in scores])) for kind in kinds}


def summary_figures(predictions: np.ndarray, labels: np.ndarray, tokenizer) -> dict[str, float]:
    """Figures of generated ids [n, T] (start token first) against label ids [n, T] for the training log."""
    outputs = [clean(row[1:]) for row in predictions]
    references = [clean(row) for row in labels]
    scores = rouge(tokenizer.decode_batch(outputs), tokenizer.decode_batch(references))
    return {
        "rouge1": round(scores["rouge1"], 2),
        "rouge2": round(scores["rouge2"], 2),
        "rougeL": round(scores["rougeL"], 2),
        "repeat4": float(np.mean([repeats(output) for output in outputs])),
        "ended": float(np.mean([END in row for row in predictions.tolist()])),
        "length": float(np.mean([len(output) for output in outputs])),
    }


def clean(ids: Sequence[int]) -> list[int]:
    """Token ids up to ``</s>``, without padding and ignored labels."""
    kept = []
    for token in np.asarray(ids).tolist():
        if token == END:
            break
        if token not in (PAD, IGNORE):
            kept.append(token)
    return kept
