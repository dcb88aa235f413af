"""The pseudo-dataset: the target's own summaries of articles, each with its source and an id, in shards.

A record is a pair line (data.py) and what a trainer needs without tokenising again: `id` (of the article's text), `sample`,
`article`, `highlights` (the TARGET's summary), `source_ids` (as the target read them), `target_ids` (as it wrote them,
`</s>` only where it came). A record depends on the article, the settings and the seed alone, so any number of processes
may work in one folder, on any machines that lock files with each other: a shard belongs to whoever locks it, appears whole
or not at all, and is taken over by another when its owner dies.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from foredraft import embedded
from foredraft.atomic_write import write_atomic
from foredraft.engine.generate import Model, load
from foredraft.engine.models.checkpoint import find_checkpoint, weights_hash
from foredraft.engine.runtime.requests import Request
from foredraft.errors import UserError
from foredraft.kernels.core.philox import request_seed
from foredraft.train.data.pairs import END, read_texts
from foredraft.train.data.shards import FORMATS, write_shard

MANIFEST = "pseudo.json"
# How long to wait before looking again whether others have finished their shards, in seconds.
PATIENCE = 0.5

Article = tuple[str, str]  # id, text
OnDone = Callable[[int, int], None]  # summaries and ids done since the last call


@dataclass(frozen=True)
class PseudoConfig:
    """Everything that decides the records, besides the articles; max_source None is the target's own limit."""

    temperature: float = 0.0
    samples_per_article: int = 1
    seed: int = 0
    max_new_tokens: int = 128
    max_source: int | None = None
    shard_size: int = 256  # articles
    format: str = "jsonl"
    limit: int | None = None  # the first articles only

    def __post_init__(self):
        if self.format not in FORMATS:
            raise UserError(f"--format {self.format} is not known; use {' or '.join(FORMATS)}")
        if self.temperature < 0:
            raise UserError(f"--temperature is {self.temperature}; give 0 (greedy) or more")
        if self.samples_per_article > 1 and self.temperature == 0:
            raise UserError(f"--samples-per-article {self.samples_per_article} at temperature 0 would repeat one summary; "
                            "give --temperature 1")


@dataclass(frozen=True)
class EngineConfig:
    """How the summaries are computed: nothing here changes a record."""

    target: str | None = None
    drafter: str = "lookup"
    draft_tokens: int = 5
    batch_size: int = 8
    device: str = "cpu"
    dtype: str = "float32"

    def load(self) -> Model:
        model = load(self.target, None if self.drafter == "none" else self.drafter, self.device, self.dtype)
        if model.tokenizer is None:
            raise UserError(f"{model.path}: tokenizer.json is missing, so articles cannot be read; put it beside "
                            "config.json")
        return model


def article_id(text: str) -> str:
    """16 hex digits of the text's BLAKE2: the same wherever the article stands."""
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def read_articles(data: str | Path, limit: int | None = None) -> Iterator[Article]:
    """Distinct articles of a jsonl(.gz), first come, first `limit`; UserError names a broken line."""
    seen: set[str] = set()
    for (text,) in read_texts(data, ("article",)):
        name = article_id(text)
        if name in seen:
            continue
        if len(seen) == limit:
            return
        seen.add(name)
        yield name, text


def read_sources(model: Model, data: str | Path, limit: int | None, max_source: int | None) -> list[np.ndarray]:
    """Articles as the ids [S] int64 that the model reads, at most max_source (None: its own limit, or 512). UserError: it
    has no tokenizer."""
    if model.tokenizer is None:
        raise UserError(f"{model.path}: tokenizer.json is missing, so articles cannot be read; put it beside config.json")
    longest, sources = max_source or model.source_limit or 512, []
    for _, text in read_articles(data, limit):
        ids = model.tokenizer.encode(text).ids
        cut = ids if len(ids) <= longest else [*ids[: longest - 1], model.target.end_token]
        sources.append(np.array(cut, np.int64))
    return sources


def read_shards(data: str | Path, order: PseudoConfig) -> Iterator[tuple[int, list[Article]]]:
    """(number, articles) of each shard."""
    number, waiting = 0, []
    for article in read_articles(data, order.limit):
        waiting.append(article)
        if len(waiting) == order.shard_size:
            yield number, waiting
            number, waiting = number + 1, []
    if waiting:
        yield number, waiting


def summarise(model: Model, articles: list[Article], order: PseudoConfig, engine: EngineConfig,
              on_done: OnDone = lambda summaries, ids: None) -> list[dict]:
    """The records of some articles, in order."""
    longest = order.max_source or model.source_limit
    sources, requests = [], []
    for name, text in articles:
        ids = model.tokenizer.encode(text).ids
        body = ids[:-1] if ids and ids[-1] == END else ids
        sources.append([*body[: longest - 1 if longest else None], END])
        own = request_seed(order.seed, int(name, 16))
        requests += [Request(sources[-1], seed=request_seed(own, sample)) for sample in range(order.samples_per_article)]
    records = []
    with model.stream(
        requests, in_order=True, max_new_tokens=order.max_new_tokens, draft_tokens=engine.draft_tokens,
        do_sample=order.temperature > 0, temperature=order.temperature or 1.0, batch_size=engine.batch_size,
        max_source=max(2, *map(len, sources))) as results:
        for result in results:
            if result.error is not None:
                raise result.error
            number, sample = divmod(result.index, order.samples_per_article)
            name, article = articles[number]
            records.append({"id": name, "sample": sample, "article": article, "highlights": result.text,
                            "source_ids": sources[number], "target_ids": result.token_ids})
            on_done(1, len(result.token_ids))
    return records


def shard_path(out: Path, number: int, order: PseudoConfig) -> Path:
    return out / f"pseudo-{number:05d}.{order.format}"


def open_folder(data: str | Path, out: Path, order: PseudoConfig, engine: EngineConfig) -> dict:
    """Check that `out` is new or belongs to the same order, and note it there; returns the manifest."""
    folder = find_checkpoint(engine.target or embedded.TARGET)
    digest, count = hashlib.sha256(), 0
    for name, _ in read_articles(data, order.limit):
        digest.update(name.encode())
        count += 1
    if not count:
        raise UserError(f"{data}: holds no article; give a .jsonl or .jsonl.gz with 'article' on every line")
    manifest = {"target": weights_hash(folder), "data": digest.hexdigest()[:16], "articles": count,
                "shards": -(-count // order.shard_size), **asdict(order)}
    path = out / MANIFEST
    if path.is_file():
        try:
            known = json.loads(path.read_text(encoding="utf-8"))
        except json.JSONDecodeError:
            raise UserError(f"{path}: not JSON; delete the folder and start again") from None
        for name, value in manifest.items():
            if known.get(name) != value:
                raise UserError(f"{out}: was begun with {name} {known.get(name)!r}, not {value!r}; give another --out, or "
                                "the same settings to go on")
        return manifest
    write_atomic(path, json.dumps(manifest, indent=1) + "\n")
    return manifest


def missing_shards(out: Path, order: PseudoConfig, shards: int) -> set[int]:
    return {number for number in range(shards) if not shard_path(out, number, order).is_file()}


def work(data: str | Path, out: Path, order: PseudoConfig, engine: EngineConfig, shards: int, on_done: OnDone) -> None:
    """Write the shards that nobody else is writing, until all are there."""
    missing, model = missing_shards(out, order, shards), None
    with open(out / ".lock", "ab") as lock:
        while missing:
            before = len(missing)
            for number, articles in read_shards(data, order):
                path = shard_path(out, number, order)
                if number not in missing or path.is_file() or not _locked(lock, number):
                    continue
                # finished by another between the look and the lock
                if not path.is_file():
                    model = model or engine.load()
                    write_shard(summarise(model, articles, order, engine, on_done), path)
                fcntl.lockf(lock, fcntl.LOCK_UN, 1, number)
            missing = missing_shards(out, order, shards)
            if len(missing) == before:
                time.sleep(PATIENCE)


def _locked(lock, number: int) -> bool:
    """Take byte `number` of the lock file; a dying process lets go of its locks."""
    try:
        fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, number)
    except (BlockingIOError, PermissionError):
        return False
    return True


def pseudo(data: str | Path, out: str | Path, order: PseudoConfig, engine: EngineConfig, workers: int = 1,
           ray_address: str | None = None, progress: bool = True) -> dict:
    """Make, or go on with, the pseudo-dataset in `out`; returns its manifest."""
    from foredraft.train.data.pseudo_workers import Bar, run_processes

    out = Path(out)
    manifest = open_folder(data, out, order, engine)
    missing = missing_shards(out, order, manifest["shards"])
    done = (manifest["shards"] - len(missing)) * order.shard_size
    total = manifest["articles"] * order.samples_per_article
    with Bar(total, min(done, manifest["articles"]) * order.samples_per_article, progress) as bar:
        if not missing:
            return manifest
        if ray_address is not None:
            from foredraft.train.data.pseudo_ray import run_ray

            run_ray(data, out, order, replace(engine, target=str(find_checkpoint(engine.target or embedded.TARGET))),
                    missing, workers, ray_address, bar.add)
        elif workers > 1:
            run_processes(data, out, order, engine, manifest["shards"], workers, bar.add)
        else:
            work(data, out, order, engine, manifest["shards"], bar.add)
    return manifest
