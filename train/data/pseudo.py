"""The pseudo-dataset for sequence-level distillation (Kim and Rush 2016): the target's own summaries of articles, in shards.

A record is a line of a pair file with tokens: `id` (of the article's text), `sample`, `article`, `highlights` (the TARGET's
summary), `source_ids` (as the target read them), `target_ids` (as it emitted them, with `</s>` only where it was emitted). A
record depends on the article, the configuration and the seed alone, so any number of processes may work in one folder, on
all machines that share its file locks. A process locks a shard before it computes it and writes it atomically; if the
process ends early, another one takes over the shard.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from foredraft import embedded
from foredraft.atomic_write import write_atomic
from foredraft.engine.generate import Model
from foredraft.engine.load import load
from foredraft.engine.models.checkpoint import weights_hash
from foredraft.engine.models.hub import find_checkpoint
from foredraft.engine.params import BatchConfig, SamplingParams
from foredraft.engine.runtime.requests import Request
from foredraft.errors import UserError
from foredraft.json_file import read_object
from foredraft.kernels.core.philox import request_seed
from foredraft.output_lock import OutputLock
from foredraft.train.data.pairs import END, read_texts
from foredraft.train.data.shards import FORMATS, check_format, write_shard

MANIFEST = "pseudo.json"
# Invalid lines of the articles that are named; the others are counted.
MOST_ERRORS = 20
# Seconds between two checks whether other processes have finished their shards.
POLL_SECONDS = 0.5

Article = tuple[str, str]  # id, text
OnDone = Callable[[int, int], None]  # numbers of summaries and tokens done since the last call


@dataclass(frozen=True)
class PseudoConfig:
    """Everything that determines the records, besides the target and the articles.

    Attributes
    ----------
    temperature
        0 is greedy.
    samples_per_article, seed
        Summaries of each article, and the seed of their sampling.
    max_new_tokens, max_source
        Longest summary and source in tokens; None is the target's own limit.
    shard_size
        Articles of a shard.
    format
        "jsonl" or "parquet".
    limit
        Use the first articles only.
    """

    temperature: float = 0.0
    samples_per_article: int = 1
    seed: int = 0
    max_new_tokens: int = 128
    max_source: int | None = None
    shard_size: int = 256
    format: str = "jsonl"
    limit: int | None = None

    def __post_init__(self):
        if self.format not in FORMATS:
            raise UserError(f"--format is {self.format}; use {' or '.join(FORMATS)}")
        check_format(self.format)
        # these check their values
        SamplingParams(self.max_new_tokens, do_sample=self.temperature != 0, temperature=self.temperature or 1.0)
        BatchConfig(max_source=self.max_source)
        if self.samples_per_article > 1 and self.temperature == 0:
            raise UserError(f"--samples-per-article {self.samples_per_article} at temperature 0 would repeat one summary; "
                            "give --temperature 1")


@dataclass(frozen=True)
class EngineConfig:
    """How the summaries are computed. Nothing here changes a record."""

    target: str | None = None
    drafter: str = "lookup"
    draft_tokens: int = 5
    batch_size: int = 8
    device: str = "cpu"
    dtype: str = "float32"

    def __post_init__(self):
        SamplingParams(draft_tokens=self.draft_tokens)
        BatchConfig(self.batch_size)

    def load(self) -> Model:
        """Load the target and its drafter; UserError if it has no tokenizer."""
        model = load(self.target, None if self.drafter == "none" else self.drafter, self.device, self.dtype)
        if model.tokenizer is None:
            raise UserError(f"{model.path}: contains no tokenizer.json, which is needed to read articles; put it beside "
                            "config.json")
        return model


def article_id(text: str) -> str:
    """16 hex digits of the BLAKE2 hash of the text."""
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def read_articles(data: str | Path, limit: int | None = None,
                  skip: Callable[[str], None] | None = None) -> Iterator[Article]:
    """The first `limit` distinct articles of a file of lines. An invalid line raises UserError, or goes to `skip`."""
    seen: set[str] = set()
    for (text,) in read_texts(data, ("article",), skip):
        name = article_id(text)
        if name in seen:
            continue
        if len(seen) == limit:
            return
        seen.add(name)
        yield name, text


def read_sources(model: Model, data: str | Path, limit: int | None, max_source: int | None) -> list[np.ndarray]:
    """The sources of articles, as the model reads them.

    Parameters
    ----------
    model
        The target.
    data
        A .jsonl or .jsonl.gz file.
    limit
        Number of articles; None is all.
    max_source
        Longest source in tokens; None is the model's own limit, or 512.

    Returns
    -------
    list of numpy.ndarray
        [S_i] int64, each ending in the end token.

    Raises
    ------
    UserError
        The model has no tokenizer, or a line is invalid.
    """
    if model.tokenizer is None:
        raise UserError(f"{model.path}: contains no tokenizer.json, which is needed to read articles; put it beside "
                        "config.json")
    longest, sources = max_source or model.source_limit or 512, []
    for _, text in read_articles(data, limit):
        tokens = model.tokenizer.encode(text).ids
        if len(tokens) > longest:
            tokens = [*tokens[: longest - 1], model.target.end_token]
        sources.append(np.array(tokens, np.int64))
    return sources


def read_shards(data: str | Path, config: PseudoConfig) -> Iterator[tuple[int, list[Article]]]:
    """Yield (number, articles) of each shard."""
    number, shard = 0, []
    # open_folder has named the lines that are skipped
    for article in read_articles(data, config.limit, lambda message: None):
        shard.append(article)
        if len(shard) == config.shard_size:
            yield number, shard
            number, shard = number + 1, []
    if shard:
        yield number, shard


def summarise(model: Model, articles: list[Article], config: PseudoConfig, engine: EngineConfig,
              on_done: OnDone = lambda summaries, tokens: None) -> list[dict]:
    """The records of some articles, in their order."""
    longest = config.max_source or model.source_limit
    sources, requests = [], []
    for name, text in articles:
        tokens = model.tokenizer.encode(text).ids
        body = tokens[:-1] if tokens and tokens[-1] == END else tokens
        sources.append([*body[: longest - 1 if longest else None], END])
        own = request_seed(config.seed, int(name, 16))
        requests += [Request(sources[-1], seed=request_seed(own, sample)) for sample in range(config.samples_per_article)]
    records = []
    with model.stream(
        requests, in_order=True, max_new_tokens=config.max_new_tokens, draft_tokens=engine.draft_tokens,
        do_sample=config.temperature > 0, temperature=config.temperature or 1.0, batch_size=engine.batch_size,
        max_source=max(2, *map(len, sources))) as results:
        for result in results:
            if result.error is not None:
                raise result.error
            number, sample = divmod(result.index, config.samples_per_article)
            name, article = articles[number]
            records.append({"id": name, "sample": sample, "article": article, "highlights": result.text,
                            "source_ids": sources[number], "target_ids": result.token_ids})
            on_done(1, len(result.token_ids))
    return records


def shard_path(out: Path, number: int, config: PseudoConfig) -> Path:
    """The file of a shard."""
    return out / f"pseudo-{number:05d}.{config.format}"


def open_folder(data: str | Path, out: Path, config: PseudoConfig, engine: EngineConfig) -> dict:
    """Create the manifest of a folder, or check that it has the same target, articles and configuration; returns it."""
    folder = find_checkpoint(engine.target or embedded.TARGET)
    digest, count, skipped = hashlib.sha256(), 0, []
    for name, _ in read_articles(data, config.limit, skipped.append):
        digest.update(name.encode())
        count += 1
    for message in skipped[:MOST_ERRORS]:
        print(f"foredraft: {message}; skipped", file=sys.stderr)
    if len(skipped) > MOST_ERRORS:
        print(f"foredraft: {data}: {len(skipped) - MOST_ERRORS} more lines were skipped", file=sys.stderr)
    if not count:
        raise UserError(f"{data}: contains no articles; give a .jsonl or .jsonl.gz with 'article' in every line")
    manifest = {"target": weights_hash(folder), "data": digest.hexdigest()[:16], "articles": count,
                "shards": -(-count // config.shard_size), **asdict(config)}
    path = out / MANIFEST
    if path.is_file():
        known = read_object(path, "delete the folder and start again")
        for name, value in manifest.items():
            if known.get(name) != value:
                raise UserError(f"{out}: was started with {name} {known.get(name)!r}, not {value!r}; give another --out, or "
                                "the same settings to continue")
        return manifest
    write_atomic(path, json.dumps(manifest, indent=1) + "\n")
    return manifest


def missing_shards(out: Path, config: PseudoConfig, shards: int) -> set[int]:
    """Numbers of the shards that are not written yet."""
    return {number for number in range(shards) if not shard_path(out, number, config).is_file()}


def work(data: str | Path, out: Path, config: PseudoConfig, engine: EngineConfig, shards: int, on_done: OnDone) -> None:
    """Write the shards that no other process has locked, until all are written."""
    missing, model = missing_shards(out, config, shards), None
    while missing:
        before = len(missing)
        for number, articles in read_shards(data, config):
            path = shard_path(out, number, config)
            if number not in missing or path.is_file() or not (lock := OutputLock(path)).acquire():
                continue
            try:
                # another process may have written it just before the lock
                if not path.is_file():
                    model = model or engine.load()
                    write_shard(summarise(model, articles, config, engine, on_done), path)
            finally:
                lock.release()
        missing = missing_shards(out, config, shards)
        if len(missing) == before:
            time.sleep(POLL_SECONDS)


def pseudo(data: str | Path, out: str | Path, config: PseudoConfig, engine: EngineConfig, workers: int = 1,
           ray_address: str | None = None, progress: bool = True) -> dict:
    """Create or continue the pseudo-dataset in a folder.

    Parameters
    ----------
    data
        A .jsonl or .jsonl.gz file with the text `article` in every line.
    out
        The folder.
    config
        What determines the records.
    engine
        How they are computed.
    workers
        Processes, or Ray actors.
    ray_address
        Address of a Ray cluster, "local" for a new one; None uses processes of this machine.
    progress
        Whether to show a progress bar.

    Returns
    -------
    dict
        The manifest: `articles`, `shards`, the target's hash and the configuration.

    Raises
    ------
    UserError
        The data is invalid, or the folder was started with other settings.
    """
    from foredraft.train.data.pseudo_workers import ProgressBar, run_processes

    out = Path(out)
    manifest = open_folder(data, out, config, engine)
    missing = missing_shards(out, config, manifest["shards"])
    done = (manifest["shards"] - len(missing)) * config.shard_size
    total = manifest["articles"] * config.samples_per_article
    with ProgressBar(total, min(done, manifest["articles"]) * config.samples_per_article, progress) as bar:
        if not missing:
            return manifest
        if ray_address is not None:
            from foredraft.train.data.pseudo_ray import run_ray

            run_ray(data, out, config, replace(engine, target=str(find_checkpoint(engine.target or embedded.TARGET))),
                    missing, workers, ray_address, bar.add)
        elif workers > 1:
            run_processes(data, out, config, engine, manifest["shards"], workers, bar.add)
        else:
            work(data, out, config, engine, manifest["shards"], bar.add)
    return manifest
