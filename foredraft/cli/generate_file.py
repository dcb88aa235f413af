"""`--input` to `--output`: texts read line by line, decoded by the scheduler, results written as they end."""

from __future__ import annotations

import gzip
import json
import sys
import zlib
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

from tqdm import tqdm

from foredraft.cli import settings_file
from foredraft.cli.journal import STDOUT, Journal
from foredraft.cli.sampling_settings import OPTIONS
from foredraft.engine.clock import now
from foredraft.engine.params import AUTO, BatchConfig, SamplingParams
from foredraft.engine.runtime.requests import Request
from foredraft.engine.stats import DecodeStats
from foredraft.errors import UserError
from foredraft.kernels.core.philox import request_seed
from foredraft.outputs import check_not_input
from foredraft.text_lines import TOO_LONG, bounded_lines

# Lines that fail are named on stderr up to this many; the others are counted.
MOST_ERRORS = 20
# index of a line from 0, its id (the index where it has none), why it has no result
Failed = Callable[[int, Any, str], None]


def open_lines(path: Path):
    """The bytes of a .jsonl or .jsonl.gz, line by line. UserError: no such file."""
    if not path.is_file():
        raise UserError(f"{path}: no such file; give a .jsonl or .jsonl.gz with a text on every line")
    return gzip.open(path, "rb") if path.suffix == ".gz" else open(path, "rb")


def count_lines(path: Path) -> int:
    """Lines that are not blank, as far as the file can be read."""
    with open_lines(path) as lines:
        count = 0
        try:
            for line in bounded_lines(lines):
                count += line is None or bool(line.strip())
        except (EOFError, OSError, zlib.error):
            # read_texts reports the error
            count += 1
        return count


def read_texts(path: Path, field: str, failed: Failed) -> Iterator[tuple[int, Any, str]]:
    """(index, id, text) of every line with a text under `field`; `failed` is called for the other lines."""
    index = -1
    with open_lines(path) as lines:
        try:
            for index, line in enumerate(bounded_lines(lines)):
                if line is None:
                    failed(index, index, TOO_LONG)
                    continue
                if not line.strip():
                    continue
                name = index
                try:
                    record = json.loads(line)
                    if not isinstance(record, dict):
                        raise UserError("not a JSON object")
                    name = checked_id(record.get("id", index))
                    if not isinstance(record.get(field), str) or not record[field].strip():
                        raise UserError(f"no text under '{field}'")
                except UserError as error:
                    failed(index, name, str(error))
                    continue
                except (ValueError, RecursionError) as error:
                    failed(index, name, f"not JSON ({error})")
                    continue
                yield index, name, record[field]
        except (EOFError, OSError, zlib.error) as error:
            failed(index + 1, index + 1, f"unreadable from here on ({error})")


def checked_id(value: Any) -> Any:
    """The id of a line. UserError: it cannot be written as JSON, or does not equal itself when it is read again."""
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False)
        text.encode()
    except (ValueError, RecursionError):
        raise UserError("its id is not finite, nested too deeply, or has half of a surrogate pair") from None
    return value


class Bar:
    """Progress on stderr: texts done, texts and tokens a second, the acceptance rate and the time left."""

    def __init__(self, total: int, done: int, show: bool):
        self.bar = tqdm(total=total, initial=done, desc="texts", unit="", disable=not show, smoothing=0.05)
        self.began = now()

    def advance(self, stats: DecodeStats | None = None) -> None:
        """Count a text that is done; `stats` are those of the whole run so far."""
        if stats is not None:
            rate = stats.emitted / (now() - self.began)
            self.bar.set_postfix_str(f"{rate:,.0f} tokens/s, {stats.acceptance_rate:.0%} of drafts accepted", refresh=False)
        self.bar.update()

    def close(self) -> None:
        self.bar.close()


def split_settings(**settings) -> tuple[SamplingParams, BatchConfig]:
    """Arguments of Model.stream as the two objects that check them."""
    shared = {name: settings.pop(name) for name in BatchConfig.__dataclass_fields__ if name in settings}
    return SamplingParams(**settings), BatchConfig(**shared)


def settings_of(model, params: SamplingParams, config: BatchConfig, prefix: str = "") -> dict[str, Any]:
    """{flag: value} of every option that decides a result; None: not given, or without effect on it."""
    known, seeded = model.describe(), params.do_sample and params.seed is not None
    lossy = config.big_little is not None
    # with drafts that are point masses the tokens are those of plain decoding, unless verification is lossy
    drafts_matter = lossy or seeded and not model.drafter.capabilities.point_masses
    adapts = params.draft_tokens == AUTO or model.drafter.capabilities.adaptive
    return {
        "--target": f"(weights {known['hash']})", "--prefix": repr(prefix) if prefix else None, "--dtype": known["dtype"],
        "--weights": known["weights"], "--device": model.target.device.type,
        "--temperature": params.temperature if params.do_sample else 0,
        "--top-k": params.top_k if params.do_sample and params.top_k else None,
        "--top-p": params.top_p if params.do_sample and params.top_p < 1 else None,
        "--seed": params.seed if params.do_sample else None, "--max-new-tokens": params.max_new_tokens,
        "--max-source": config.max_source or model.source_limit,
        "--drafter": known["drafter"] if drafts_matter else None,
        "--draft-tokens": params.draft_tokens if drafts_matter else None,
        "--verification": config.verification if drafts_matter else None,
        "--batch-size": config.batch_size if drafts_matter and adapts else None,
        "--big-little": "{:g},{:g}".format(*config.big_little) if config.big_little is not None else None,
        **_further_settings(params),
    }


def _further_settings(params: SamplingParams) -> dict[str, str]:
    """{flag: value} of the settings that settings_of does not list and that differ from their defaults."""
    listed = ("max_new_tokens", "max_length", "draft_tokens", "do_sample", "temperature", "top_k", "top_p", "seed")
    found = {field.name: getattr(params, field.name) for field in fields(params) if field.name not in listed}
    return {OPTIONS.get(name, f"--set {name}"): json.dumps(value) for name, value in found.items()
            if value != getattr(SamplingParams, name) and (name, value) != ("min_new_tokens", 0)}


def check_output(output: Path, source: Path) -> None:
    """UserError: `output` cannot be written line by line, or is the input."""
    if str(output) == STDOUT:
        return
    if output.suffix == ".gz":
        raise UserError(f"--output {output}: it is written line by line, uncompressed; leave .gz out")
    if output.is_dir():
        raise UserError(f"--output {output}: is a folder; give a file")
    if not output.parent.is_dir():
        raise UserError(f"--output {output}: no such folder {output.parent}; create it first")
    check_not_input(output, [source], "--output")


def generate_file(model, source: Path, output: Path, *, key: str, field: str, prefix: str = "", in_order: bool,
                  truncation: bool, seed: int | None, progress: bool = True, **config) -> dict:
    """Append one line to `output` for every text of `source` that it lacks.

    A line is {"id", "index", key: text, "tokens": length of the text}, and "lossy" where the settings are lossy. Lines that
    fail are named on stderr and counted. An existing output is resumed only with the settings that it was begun with.

    Parameters
    ----------
    model : foredraft.Model
    source, output : Path
        .jsonl(.gz), and .jsonl.
    key, field : str
        Names of the result in `output` and of the text in `source`.
    prefix : str
        Put before every text.
    in_order : bool
        Write the lines in the order of `source`; otherwise as they end.
    truncation : bool
        Cut a text that is too long; otherwise it fails.
    seed : int | None
        Each line's seed is derived from it and from the line's index.
    progress : bool
        Show a progress bar on stderr.
    config
        Further arguments of Model.stream.

    Returns
    -------
    dict
        Counts `articles` (done now), `done_before`, `failed`, `cut`; and `stats`, a DecodeStats.

    Raises
    ------
    UserError
        The output belongs to other settings or another input, or the disk is full; all finished lines are on the disk.
    """
    check_output(output, source)
    total = count_lines(source)
    names: dict[str, tuple[int, Any]] = {}
    counts = {"articles": 0, "done_before": 0, "failed": 0, "cut": 0}
    settings = settings_of(model, *split_settings(seed=seed, **config), prefix)
    with Journal(output, settings_file.path_of(output).is_file()) as journal:
        if journal.is_file and not journal.done:
            settings_file.write(output, settings)
        elif journal.is_file and not settings_file.check(output, settings):
            tqdm.write(f"foredraft: {output}: {settings_file.path_of(output).name} is missing; its lines are taken to have "
                       "this run's settings", file=sys.stderr)
        bar = Bar(total, len(journal.done), progress)

        def failed(index: int, name: Any, why: str) -> None:
            counts["failed"] += 1
            if counts["failed"] <= MOST_ERRORS:
                text = f"foredraft: {source}, line {index + 1}, id {name}: {why}"
                tqdm.write(text.encode(errors="backslashreplace").decode(), file=sys.stderr)
            bar.advance()

        def requests() -> Iterator[Request]:
            for index, name, text in read_texts(source, field, failed):
                if index in journal.done:
                    if journal.done[index] != name:
                        raise UserError(f"--output {output} has id {journal.done[index]} for line {index + 1} of {source}, "
                                        f"whose id is {name}: it belongs to another input; give another --output")
                    counts["done_before"] += 1
                    continue
                names[f"line {index + 1}"] = index, name
                own_seed = None if seed is None else request_seed(seed, index)
                yield Request(prefix + text, id=f"line {index + 1}", seed=own_seed)

        began = now()
        try:
            with model.stream(requests(), in_order=in_order, truncation=truncation, **config) as stream:
                for result in stream:
                    index, name = names.pop(result.id)
                    if result.error is not None:
                        failed(index, name, str(result.error))
                        continue
                    line = {"id": name, "index": index, key: result.text, "tokens": len(result.token_ids)}
                    journal.append(line | ({"lossy": result.stats.lossy} if result.stats.lossy else {}))
                    counts["articles"] += 1
                    counts["cut"] += bool(result.warnings)
                    bar.advance(stream.stats)
                stats = stream.stats
        finally:
            bar.close()
    if (more := counts["failed"] - MOST_ERRORS) > 0:
        tqdm.write(f"foredraft: {source}: {more} more lines failed", file=sys.stderr)
    stats.close_seconds(now() - began)
    return counts | {"stats": stats}
