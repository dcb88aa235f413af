"""The demonstration: two summaries with their drafts coloured, and a sentence on what the drafts gained."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console

from foredraft import show
from foredraft.bench.methods import REFERENCE
from foredraft.engine.state import ORIGINS


def summarise(model, texts: Sequence[tuple[str, str]], console: Console) -> None:
    """Print each text's beginning and its summary, coloured by who proposed each token; the colours' meaning last."""
    out = model.generate([text for _, text in texts], max_new_tokens=64)
    origins = [[ORIGINS[origin] for origin in row] for row in out.origins]

    def decode(ids: list[int]) -> str:
        return model.tokenizer.decode(ids, skip_special_tokens=True)

    for (name, text), ids, row in zip(texts, out.token_ids, origins, strict=True):
        console.print(f"{name}: {text[:200]} ...", style="dim", markup=False)
        console.print(show.coloured(ids, row, decode), "\n")
    console.print(show.legend(origins), "\n")


def gain(rows: Sequence[dict]) -> str:
    """What the run showed, one clause a method: never a speed-up without equal tokens."""
    clauses = []
    for row in rows:
        if row["method"] == REFERENCE or row["absent"] is not None:
            continue
        if row["differ"] != 0:
            clauses.append(f"{row['method']} gave other tokens than plain decoding on {row['differ']} articles")
        else:
            clauses.append(f"{row['method']} gave the same tokens in {1 / row['speed_up']['median']:.0%} of the time")
    return "Against plain decoding: " + "; ".join(clauses) + "."
