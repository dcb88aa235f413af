"""Summaries of a file of articles: read line by line, decoded by the scheduler, written as they end."""

from __future__ import annotations

import gzip
import json
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tqdm import tqdm

from foredraft.cli import settings_file as manifest
from foredraft.cli.journal import Journal
from foredraft.engine.drafters.auto import AutoDrafter
from foredraft.engine.params import AUTO, DecodeConfig
from foredraft.engine.runtime.requests import Request
from foredraft.engine.stats import DecodeStats
from foredraft.errors import UserError
from foredraft.kernels.core.philox import request_seed

# index of a line from 0, its id (the index where it has none), why it cannot be summarised
Failed = Callable[[int, Any, str], None]


def open_lines(path: Path):
    """The bytes of a .jsonl or .jsonl.gz, line by line. UserError: no such file."""
    if not path.is_file():
        raise UserError(f"{path}: no such file; give a .jsonl or .jsonl.gz with 'article' on every line")
    return gzip.open(path, "rb") if path.suffix == ".gz" else open(path, "rb")


def count_lines(path: Path) -> int:
    """Lines with something on them, as far as the file can be read."""
    with open_lines(path) as lines:
        count = 0
        try:
            for line in lines:
                count += bool(line.strip())
        except (EOFError, OSError, zlib.error):
            # said where it is read
            count += 1
        return count


def read_articles(path: Path, failed: Failed) -> Iterator[tuple[int, Any, str]]:
    """(index, id, article) of every line that has an article; the others are told to `failed`."""
    index = -1
    with open_lines(path) as lines:
        try:
            for index, line in enumerate(lines):
                if not line.strip():
                    continue
                name = index
                try:
                    row = json.loads(line)
                    if not isinstance(row, dict):
                        raise UserError("not a JSON object")
                    name = row.get("id", index)
                    if not isinstance(row.get("article"), str) or not row["article"].strip():
                        raise UserError("no text under 'article'")
                except (ValueError, UserError) as error:
                    failed(index, name, str(error) if isinstance(error, UserError) else f"not JSON ({error})")
                    continue
                yield index, name, row["article"]
        except (EOFError, OSError, zlib.error) as error:
            failed(index + 1, index + 1, f"unreadable from here on ({error})")


class Bar:
    """Articles done of all, articles and ids a second, how many tested drafts stood, and the time left, on stderr."""

    def __init__(self, total: int, done: int, show: bool):
        self.bar = tqdm(total=total, initial=done, desc="articles", unit="", disable=not show, smoothing=0.05)
        self.began = time.perf_counter()

    def advance(self, stats: DecodeStats | None = None) -> None:
        """Another article is done; `stats` of all that this run has decoded."""
        if stats is not None:
            rate = stats.emitted / (time.perf_counter() - self.began)
            self.bar.set_postfix_str(f"{rate:,.0f} tokens/s, {stats.acceptance_rate:.0%} of drafts accepted", refresh=False)
        self.bar.update()

    def close(self) -> None:
        self.bar.close()


def settings_of(model, config: DecodeConfig) -> dict[str, Any]:
    """{flag: value} of all that decides the summaries of an article; None: not given, or of no consequence."""
    known, seeded = model.describe(), config.do_sample and config.seed is not None
    # point masses, sampled or not, give plain decoding's ids, unless what stands is lossy
    lossy = config.big_little is not None
    drawn = lossy or seeded and not model.drafter.capabilities.point_masses
    adapts = config.draft_tokens == AUTO or isinstance(model.drafter, AutoDrafter)
    return {
        "--target": f"(weights {known['hash']})", "--dtype": known["dtype"], "--weights": known["weights"],
        "--device": model.target.device.type, "--temperature": config.temperature if config.do_sample else 0,
        "--top-k": config.top_k if config.do_sample and config.top_k else None,
        "--top-p": config.top_p if config.do_sample and config.top_p < 1 else None,
        "--seed": config.seed if config.do_sample else None, "--max-new-tokens": config.max_new_tokens,
        "--max-source": config.max_source or model.source_limit, "--drafter": known["drafter"] if drawn else None,
        "--draft-tokens": config.draft_tokens if drawn else None, "--verification": config.verification if drawn else None,
        "--batch-size": config.batch_size if drawn and adapts else None,
        "--big-little": "{:g},{:g}".format(*config.big_little) if lossy else None,
    }


def summarise_file(model, source: Path, output: Path, *, in_order: bool, truncation: bool, seed: int | None,
                   progress: bool = True, **config) -> dict:
    """Append {"id", "index", "summary", "tokens"} to `output` for every article of `source` that it lacks.

    tokens: how many the summary has. What cannot be summarised is named on stderr and counted. `config`: arguments of
    Model.stream; where they are lossy every line says so under "lossy". An output goes on with the settings that it was
    begun with (manifest.py). Returns the counts articles, done_before, failed, cut, and the DecodeStats under stats.
    UserError: a full disk, among others; all that was finished is written.
    """
    if model.tokenizer is None:
        raise UserError(f"{model.path}: tokenizer.json is missing, so texts cannot be read; put it beside config.json")
    if output.suffix == ".gz":
        raise UserError(f"{output}: the output is written line by line, uncompressed; leave .gz out")
    total = count_lines(source)
    if output.exists() and output.samefile(source):
        raise UserError(f"{output}: is the input; give another --output")
    names: dict[str, tuple[int, Any]] = {}
    counts = {"articles": 0, "done_before": 0, "failed": 0, "cut": 0}
    settings = settings_of(model, DecodeConfig(seed=seed, **config))
    with Journal(output) as journal:
        if journal.is_file and not journal.done:
            manifest.begin(output, settings)
        elif journal.is_file and not manifest.go_on(output, settings):
            tqdm.write(f"foredraft: {output}: no {manifest.manifest_of(output).name} beside it; taken to be of this run's "
                       "settings", file=sys.stderr)
        bar = Bar(total, len(journal.done), progress)

        def failed(index: int, name: Any, why: str) -> None:
            counts["failed"] += 1
            tqdm.write(f"foredraft: {source}, line {index + 1}, id {name}: {why}", file=sys.stderr)
            bar.advance()

        def requests() -> Iterator[Request]:
            for index, name, text in read_articles(source, failed):
                if index in journal.done:
                    if journal.done[index] != name:
                        raise UserError(f"{output}: holds id {journal.done[index]} for line {index + 1} of {source}, which "
                                        f"has {name}; it belongs to another input: give another --output")
                    counts["done_before"] += 1
                    continue
                names[f"line {index + 1}"] = index, name
                yield Request(text, id=f"line {index + 1}", seed=None if seed is None else request_seed(seed, index))

        began = time.perf_counter()
        try:
            with model.stream(requests(), in_order=in_order, truncation=truncation, **config) as stream:
                for result in stream:
                    index, name = names.pop(result.id)
                    if result.error is not None:
                        failed(index, name, str(result.error))
                        continue
                    line = {"id": name, "index": index, "summary": result.text, "tokens": len(result.token_ids)}
                    journal.append(line | ({"lossy": result.stats.lossy} if result.stats.lossy else {}))
                    counts["articles"] += 1
                    counts["cut"] += bool(result.warnings)
                    bar.advance(stream.stats)
                stats = stream.stats
        finally:
            bar.close()
    stats.close_seconds(time.perf_counter() - began)
    return counts | {"stats": stats}
