"""The reference family in ``assets/``: the target, its card, and the n-gram table of its training summaries."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from foredraft.train.drafter.fit_ngram import fit_ngram
from foredraft.train.history import NAME
from foredraft.train.target.model_card import write_card
from foredraft.train.target.train_target import TargetTrainingConfig, find_split, train_target

TARGET_FILES = ("model.safetensors", "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json")
TABLE_ORDER, TABLE_BYTES = 4, 3_000_000
SAMPLES = 3

# How the shipped target was trained: to the end of a decay, then on, against the loops of its own greedy output.
SHIPPED = TargetTrainingConfig(steps=2000, decay_steps=500, embedding_scale=2.0, extracts=0.75, bf16=True, lowercase=True)
UNLOOPED = replace(SHIPPED, steps=2500, decay_steps=500, sequence_unlikelihood=4.0, sequence_every=1)


def build_family(
    data: str | Path,
    tokenizer: str | Path,
    work: str | Path,
    out: str | Path,
    phases: Sequence[TargetTrainingConfig] = (SHIPPED, UNLOOPED),
    resume: bool = False,
    test_articles: int = 500,
) -> dict[str, float] | None:
    """Train in ``work``, then write ``out/target`` and ``out/ngram/cnndm.ngram``; returns the card's figures.

    ``data`` is a folder with the splits train, validation and test as text. An interrupted training leaves ``out`` as
    it was and returns None; ``resume`` continues it.
    """
    data, work, out = Path(data), Path(work), Path(out)
    train_split, test_split = find_split(data, "train"), find_split(data, "test")
    for phase in phases:
        if not train_target(data, work, tokenizer, phase, resume=resume):
            return None
        resume = True
    publish_target(work, out / "target")
    table = out / "ngram" / "cnndm.ngram"
    table.parent.mkdir(parents=True, exist_ok=True)
    fit_ngram([train_split], table, out / "target", order=TABLE_ORDER, max_bytes=TABLE_BYTES, quantise=True)
    texts = sorted((out / "texts").glob("*.txt"))[:SAMPLES]
    return write_card(out / "target", test_split, test_articles, texts)


def publish_target(work: str | Path, folder: str | Path) -> None:
    """Copy a finished target and its history, without checkpoints and caches; each file appears whole."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for name in (*TARGET_FILES, NAME):
        partial = folder / f".{name}"
        shutil.copyfile(Path(work) / name, partial)
        os.replace(partial, folder / name)
