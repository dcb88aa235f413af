"""The articles of a measurement, as source tokens."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from statistics import median

from foredraft.errors import UserError
from foredraft.train.data.pairs import END, read_pairs

DEFAULT_MAX_SOURCE = 512
SAMPLE_TEXTS = "sample texts"


@dataclass(frozen=True)
class Case:
    """One article: its `source` tokens with `</s>`, how many were `cut` from its end, the human summary if there is one."""

    name: str
    source: tuple[int, ...]
    cut: int
    reference: str | None


def sample_texts() -> list[tuple[str, str]]:
    """(file name, text) of foredraft's sample articles, in order."""
    folder = resources.files("foredraft.assets") / "texts"
    files = sorted((file for file in folder.iterdir() if file.name.endswith(".txt")), key=lambda file: file.name)
    return [(file.name, file.read_text(encoding="utf-8").strip()) for file in files]


def load_cases(data: str | Path | None, tokenizer, *, limit: int | None = None,
               max_source: int | None = None) -> list[Case]:
    """The first `limit` articles of a jsonl(.gz) of article/highlights, or of the sample texts if `data` is None.

    `tokenizer` is a tokenizers.Tokenizer. A source keeps at most `max_source` tokens (default 512), `</s>` included.
    UserError: no tokenizer, an unreadable file, a broken line, no article, a limit below 1, a `max_source` below 2.
    """
    if tokenizer is None:
        raise UserError("the target has no tokenizer; put tokenizer.json beside config.json")
    max_source = DEFAULT_MAX_SOURCE if max_source is None else max_source
    if limit is not None and limit < 1:
        raise UserError(f"--limit is {limit}; give 1 or more articles")
    if max_source < 2:
        raise UserError(f"--max-source is {max_source}; a source needs 2 tokens or more, </s> included")
    cases = []
    for name, text, reference in _texts(data):
        if len(cases) == limit:
            break
        body = tokenizer.encode(text).ids
        body = body[:-1] if body and body[-1] == END else body
        kept = body[: max_source - 1]
        cases.append(Case(name, (*kept, END), len(body) - len(kept), reference))
    if not cases:
        raise UserError(f"{data}: holds no article; give a jsonl of article/highlights objects")
    return cases


def describe(data: str | Path | None, cases: list[Case]) -> dict:
    """What a record states of the cases: file name, number, source lengths in tokens, what was cut."""
    lengths = [len(case.source) for case in cases]
    return {
        "name": Path(data).name if data else SAMPLE_TEXTS,
        "articles": len(cases),
        "source_tokens": {"min": min(lengths), "median": median(lengths), "max": max(lengths)},
        "articles_cut": sum(case.cut > 0 for case in cases),
        "tokens_cut": sum(case.cut for case in cases),
    }


def _texts(data: str | Path | None) -> Iterator[tuple[str, str, str | None]]:
    if data is None:
        for name, text in sample_texts():
            yield name, text, None
    else:
        for number, (article, highlights) in enumerate(read_pairs(data), 1):
            yield str(number), article, highlights
