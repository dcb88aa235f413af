"""Metrics of a target: use of the source, copying, repetition, ends of summaries, ROUGE."""

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
    """Teacher-forced top-1 accuracy of continuing a random span of the source, over the first `count` pairs."""
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
    """Loss in nats per token on the first `count` summaries: with their own sources, and with those of the next pairs."""
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


def repeats(tokens: Sequence, n: int = 4) -> bool:
    """Whether an n-gram of tokens, or of words, occurs twice."""
    grams = [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]
    return len(set(grams)) < len(grams)


def words(text: str) -> list[str]:
    """The lower-cased words of a text, without punctuation."""
    return re.findall(r"\w+", text.lower())


def copied_share(tokens: Sequence[int], source: Sequence[int], n: int = 3) -> float:
    """Share of the n-grams of `tokens` that occur in `source`; nan if there are none."""
    known = {tuple(source[i : i + n]) for i in range(len(source) - n + 1)}
    grams = [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]
    return sum(gram in known for gram in grams) / len(grams) if grams else float("nan")


def rouge(predictions: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """Mean ROUGE-1/2/L/Lsum F1 in percent, with stemming. Lsum takes every line of a text as a sentence."""
    kinds = ("rouge1", "rouge2", "rougeL", "rougeLsum")
    scorer = RougeScorer(list(kinds), use_stemmer=True)
    scores = [scorer.score(reference, text) for reference, text in zip(references, predictions, strict=True)]
    return {kind: 100 * float(np.mean([score[kind].fmeasure for score in scores])) for kind in kinds}


def summary_figures(predictions: np.ndarray, labels: np.ndarray, tokenizer) -> dict[str, float]:
    """Metrics for the training log of generated tokens [n, T] (start token first) and labels [n, T]."""
    outputs = [clean(output[1:]) for output in predictions]
    references = [clean(reference) for reference in labels]
    scores = rouge(tokenizer.decode_batch(outputs), tokenizer.decode_batch(references))
    return {
        "rouge1": round(scores["rouge1"], 2),
        "rouge2": round(scores["rouge2"], 2),
        "rougeL": round(scores["rougeL"], 2),
        "repeat4": float(np.mean([repeats(output) for output in outputs])),
        "ended": float(np.mean([END in output for output in predictions.tolist()])),
        "length": float(np.mean([len(output) for output in outputs])),
    }


def clean(tokens: Sequence[int]) -> list[int]:
    """The tokens before `</s>`, without padding and ignored labels."""
    kept = []
    for token in np.asarray(tokens).tolist():
        if token == END:
            break
        if token not in (PAD, IGNORE):
            kept.append(token)
    return kept
