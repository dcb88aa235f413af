"""Paths of the embedded reference family: a target, an n-gram table, a trained drafter and sample texts."""

from __future__ import annotations

from pathlib import Path

import foredraft.assets

ASSETS = Path(foredraft.assets.__path__[0]).resolve()
TARGET = ASSETS / "target"
NGRAM = ASSETS / "ngram" / "cnndm.ngram"
LSTM = ASSETS / "drafters" / "lstm"
TEXTS = ASSETS / "texts"
