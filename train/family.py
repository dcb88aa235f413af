"""The reference family in `assets/`: the target, its model card, and the n-gram table of its training summaries."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from foredraft.atomic_write import atomic_path
from foredraft.train.drafter.fit_ngram import fit_ngram
from foredraft.train.history import NAME
from foredraft.train.target.model_card import write_card
from foredraft.train.target.train_target import TargetTrainingConfig, find_split, train_target

TARGET_FILES = ("model.safetensors", "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json")
TABLE_ORDER, TABLE_BYTES = 4, 3_000_000
SAMPLES = 3

# Two runs trained the shipped target: a full schedule, and a further one with unlikelihood of the repetitions in its output.
SHIPPED = TargetTrainingConfig(steps=2000, decay_steps=500, embedding_scale=2.0, extracts=0.75, bf16=True, lowercase=True)
WITHOUT_LOOPS = replace(SHIPPED, steps=2500, decay_steps=500, sequence_unlikelihood=4.0, sequence_every=1)


def build_family(
    data: str | Path,
    tokenizer: str | Path,
    work: str | Path,
    out: str | Path,
    phases: Sequence[TargetTrainingConfig] = (SHIPPED, WITHOUT_LOOPS),
    resume: bool = False,
    test_articles: int = 500,
) -> dict[str, float] | None:
    """Train the target, fit the table, write the card.

    Parameters
    ----------
    data
        Folder with the splits train, validation and test as text.
    tokenizer
        tokenizer.json of the T5 vocabulary, or a folder that contains it.
    work
        Folder of the training run.
    out
        Folder to write: `target`, `ngram/cnndm.ngram`. The texts in its folder `texts` give the card's samples.
    phases
        Training runs, each continuing the last.
    resume
        Continue an interrupted run.
    test_articles
        Articles that the card's figures are measured on.

    Returns
    -------
    dict or None
        The card's figures; None if the training was interrupted, which leaves `out` unchanged.
    """
    data, work, out = Path(data), Path(work), Path(out)
    train_split, test_split = find_split(data, "train"), find_split(data, "test")
    for phase in phases:
        if not train_target(data, work, tokenizer, phase, resume=resume, is_phase=True):
            return None
        resume = True
    publish_target(work, out / "target")
    table = out / "ngram" / "cnndm.ngram"
    table.parent.mkdir(parents=True, exist_ok=True)
    fit_ngram([train_split], table, out / "target", order=TABLE_ORDER, max_bytes=TABLE_BYTES, quantise=True)
    texts = sorted((out / "texts").glob("*.txt"))[:SAMPLES]
    return write_card(out / "target", test_split, test_articles, texts)


def publish_target(work: str | Path, folder: str | Path) -> None:
    """Copy a finished target and its history, without checkpoints and caches, each file atomically."""
    for name in (*TARGET_FILES, NAME):
        with atomic_path(Path(folder) / name) as partial:
            shutil.copyfile(Path(work) / name, partial)
