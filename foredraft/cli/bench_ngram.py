"""`foredraft bench ngram`: the n-gram library's speeds, sizes, and what its tables draft."""

from __future__ import annotations

import json
import shlex
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from foredraft.errors import UserError

PARTS = ("counting", "queries", "size", "drafting", "opening", "acceptance")


def ngram(
    train: Annotated[list[Path], typer.Option(help="Summaries that tables are fitted on; may be repeated.")],
    test: Annotated[Path, typer.Option(help="jsonl(.gz) of article/highlights: look-ups, and drafts for the target.")],
    target: Annotated[str | None, typer.Option(help="T5 checkpoint, folder or hub id; default: embedded.")] = None,
    pseudo: Annotated[
        list[Path] | None, typer.Option(help="The target's own summaries (`foredraft pseudo`): fits beside.")] = None,
    field: Annotated[str, typer.Option(help="Name of the text in a line.")] = "highlights",
    train_limit: Annotated[int | None, typer.Option(min=1, help="Only so many summaries of --train.")] = None,
    parts: Annotated[str, typer.Option(help="With commas: " + ", ".join(PARTS) + ".")] = ",".join(PARTS),
    order: Annotated[int, typer.Option(min=2, max=8, help="Longest n-gram of the speeds.")] = 4,
    orders: Annotated[str, typer.Option(help="Orders of the acceptance table.")] = "2,3,4,5",
    draft_tokens: Annotated[str, typer.Option(help="K of the acceptance table, with commas.")] = "5,8",
    skip: Annotated[int, typer.Option(min=0, help="Test articles left out before those.")] = 0,
    limit: Annotated[int, typer.Option(min=1, help="Test articles decoded for the acceptance table.")] = 100,
    temperatures: Annotated[str, typer.Option(help="Temperatures of the acceptance table, with commas.")] = "0,1",
    repeats: Annotated[int, typer.Option(min=1, help="Timed turns; the fastest counts.")] = 3,
    megabytes: Annotated[int, typer.Option(min=1, help="Size of the file that is opened.")] = 1000,
    lmplz: Annotated[str | None, typer.Option(help="KenLM's lmplz; default: if it is on the PATH.")] = None,
    out: Annotated[Path, typer.Option(help="The record's folder; a line is added.")] = Path("bench/results"),
) -> None:
    """Measure counting, look-ups, sizes, drafts and acceptance. The last line is JSON."""
    from rich.console import Console

    import foredraft
    from foredraft.bench.harness import machine, record
    from foredraft.cli.output import announce_compilation

    wanted = parts.split(",")
    if unknown := set(wanted) - set(PARTS):
        raise UserError(f"--parts: {', '.join(sorted(unknown))} not known; choose from {', '.join(PARTS)}")
    announce_compilation()
    model = foredraft.load(target, drafter=None)
    row = {
        "kind": "ngram", "time": datetime.now(UTC).isoformat(timespec="seconds"), "foredraft": foredraft.__version__,
        "command": shlex.join(["foredraft", *sys.argv[1:]]), "machine": machine.describe(),
        "train": [path.name for path in train], "train_limit": train_limit,
        "pseudo": [path.name for path in pseudo or []], "test": test.name,
    }
    gold = _ids(train, field, model, train_limit)
    row |= _measure(wanted, model, gold, field, test, order, repeats, megabytes, lmplz)
    if "acceptance" in wanted:
        known = model.describe()
        row["target"] = {name: known[name] for name in ("model", "hash", "parameters")}
        row["articles"] = {"skipped": skip, "decoded": limit}
        row["acceptance"] = _acceptance(model, gold, pseudo or [], field, test, skip, limit,
                                        *([kind(one) for one in text.split(",")] for kind, text in
                                          ((int, orders), (int, draft_tokens), (float, temperatures))))
    show_tables(row, Console(highlight=False, width=None if sys.stdout.isatty() else 160))
    path = out / f"ngram-{machine.file_name(row['machine'])}.jsonl"
    record.append_lines(path, [row])
    print(json.dumps({"record": str(path), "row": row}))


def _measure(wanted, model, gold, field, test, order, repeats, megabytes, lmplz) -> dict:
    """The speeds and sizes."""
    from foredraft.bench.harness import ngram_speed as bench
    from foredraft.ngram_native import smooth
    from foredraft.ngram_native.count import count

    if not set(wanted) - {"acceptance", "opening"}:
        return {"opening": bench.opening(megabytes)} if "opening" in wanted else {}
    V, found = model.target.config.vocab_size, {}
    tokens, starts = gold
    counts = count(tokens, starts, order, V)
    if "counting" in wanted:
        found["counting"] = bench.counting(tokens, starts, order, V, repeats, lmplz)
    if set(wanted) & {"queries", "drafting"}:
        tests = _ids([test], field, model)
        for name, quantise in (("float32", False), ("quantised", True)):
            table = smooth.fit(counts, quantise=quantise)
            if "queries" in wanted:
                found.setdefault("queries", {})[name] = bench.queries(table, *tests, repeats)
            if "drafting" in wanted:
                found.setdefault("drafting", {})[name] = bench.drafting(table, *tests, repeats)
    if "size" in wanted:
        found["size"] = bench.sizes(counts)
    if "opening" in wanted:
        found["opening"] = bench.opening(megabytes)
    return found


def _ids(paths, field, model, limit=None):
    """The first `limit` texts as ids [n] and starts [m + 1], each with its start and end tokens."""
    from itertools import islice

    import numpy as np

    from foredraft.train.drafter.fit_ngram import sequences

    read = (ids for path in paths for batch in sequences(path, field, model.tokenizer) for ids in batch)
    found = list(islice(read, limit))
    return np.concatenate(found), np.cumsum([0, *map(len, found)])


def _acceptance(model, gold, pseudo, field, test, skip, limit, orders, ks, temperatures) -> list[dict]:
    """The rows of bench/harness/ngram_drafts.py, on what the target writes about articles of the test set."""
    from tqdm import tqdm

    from foredraft.bench.harness import ngram_drafts as bench
    from foredraft.bench.harness.cases import load_cases

    articles = load_cases(test, model.tokenizer, limit=skip + limit, max_source=model.source_limit)[skip:]
    if not articles:
        raise UserError(f"{test}: has no article left after --skip {skip}; skip fewer")
    sources, fits = [list(case.source) for case in articles], {"gold": gold}
    for path in pseudo:
        fits[bench.name_of(path)] = _ids([path], field, model)
    texts = [bench.Texts(T, model.generate(sources, draft_tokens=0, batch_size=16, do_sample=T > 0, temperature=T or 1.0,
                                           seed=0).token_ids) for T in temperatures]
    with tqdm(total=len(fits) * len(orders) * len(bench.smooth.SMOOTHINGS) * len(texts), unit=" rows") as bar:
        return bench.acceptance(fits, model.target.config.vocab_size, sources, texts, orders, ks, model.target.start_token,
                                model.target.end_token, bar.update)


def show_tables(row: dict, console) -> None:
    from rich.table import Table

    def table(title: str, columns: list[str], lines: list[list[str]]) -> None:
        shown = Table(title=title, title_justify="left")
        for name in columns:
            shown.add_column(name, justify="right")
        for line in lines:
            shown.add_row(*line)
        console.print(shown)

    if counting := row.get("counting"):
        names = [name for name in counting if isinstance(counting[name], float) and not name.startswith("over")]
        table(f"Counting {counting['tokens']:,} ids, order {counting['order']}, {counting['threads']} threads",
              ["how", "million ids/s"], [[name, f"{counting[name] / 1e6:.2f}"] for name in names])
    for stored, found in row.get("queries", {}).items():
        names = [name for name, value in found.items() if isinstance(value, float) and "perplexity" not in name]
        table(f"Look-ups of {found['n']:,} n-grams, {stored}, perplexity {found['perplexity']:.2f}",
              ["how", "million/s"], [[name, f"{found[name] / 1e6:.2f}"] for name in names])
        for name, ratio in found.get("over_kenlm", {}).items():
            console.print(f"{name.replace('_', ' ')}: {ratio:.2f}x")
    for stored, found in row.get("drafting", {}).items():
        table(f"One draft, {stored}", ["rows", "K", "microseconds"],
              [[str(one["rows"]), str(one["K"]), f"{one['microseconds']:.1f}"] for one in found])
    if size := row.get("size"):
        table("Size", ["stored", "n-grams", "MB", "bytes an n-gram"],
              [[name, f"{one['ngrams']:,}", f"{one['bytes'] / 1e6:.1f}", f"{one['bytes_per_ngram']:.2f}"]
               for name, one in size.items()])
    if opening := row.get("opening"):
        console.print(f"opening {opening['bytes'] / 1e6:.0f} MB: {opening['milliseconds']:.2f} ms")
    if acceptance := row.get("acceptance"):
        names = ["drafter", "temperature", "data", "order", "smoothing", "K", "alpha", "tokens_per_step",
                 "tokens_per_pass", "acceptance_rate", "over_better", "oracle", "oracle_by_id"]
        table("Drafts on the target's outputs; oracles over the better part",
              [name.replace("_", " ") for name in names],
              [[f"{value:.3f}" if isinstance(value := one.get(name, "-"), float) else str(value) for name in names]
               for one in acceptance])
