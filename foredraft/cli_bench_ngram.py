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
    pseudo: Annotated[Path | None, typer.Option(help="The target's own summaries, as `train`: a second fit.")] = None,
    field: Annotated[str, typer.Option(help="Name of the text in a line of --train.")] = "highlights",
    pseudo_field: Annotated[str, typer.Option(help="The same in --pseudo.")] = "summary",
    parts: Annotated[str, typer.Option(help="With commas: " + ", ".join(PARTS) + ".")] = ",".join(PARTS),
    order: Annotated[int, typer.Option(min=2, max=8, help="Longest n-gram of the speeds.")] = 4,
    orders: Annotated[str, typer.Option(help="Orders of the acceptance table.")] = "2,3,4,5",
    draft_tokens: Annotated[str, typer.Option(help="K of the acceptance table, with commas.")] = "5,8",
    limit: Annotated[int, typer.Option(min=1, help="Test articles decoded for the acceptance table.")] = 100,
    repeats: Annotated[int, typer.Option(min=1, help="Timed turns; the fastest counts.")] = 3,
    megabytes: Annotated[int, typer.Option(min=1, help="Size of the file that is opened.")] = 1000,
    lmplz: Annotated[str | None, typer.Option(help="KenLM's lmplz; default: if it is on the PATH.")] = None,
    out: Annotated[Path, typer.Option(help="The record's folder; a line is added.")] = Path("bench/results"),
) -> None:
    """Measure counting, look-ups, sizes, drafts and acceptance. The last line is JSON."""
    from rich.console import Console

    import foredraft
    from foredraft import show
    from foredraft.bench import machine, record

    wanted = parts.split(",")
    if unknown := set(wanted) - set(PARTS):
        raise UserError(f"--parts: {', '.join(sorted(unknown))} not known; choose from {', '.join(PARTS)}")
    show.announce_compilation()
    model = foredraft.load(target, drafter=None)
    row = {
        "kind": "ngram", "time": datetime.now(UTC).isoformat(timespec="seconds"), "foredraft": foredraft.__version__,
        "command": shlex.join(["foredraft", *sys.argv[1:]]), "machine": machine.describe(),
        "train": [path.name for path in train], "pseudo": pseudo.name if pseudo else None, "test": test.name,
    }
    row |= _measure(wanted, model, train, field, test, order, repeats, megabytes, lmplz)
    if "acceptance" in wanted:
        known = model.describe()
        row["target"] = {name: known[name] for name in ("model", "hash", "parameters")}
        row["acceptance"] = _acceptance(model, train, field, pseudo, pseudo_field, test, limit,
                                        [int(n) for n in orders.split(",")], [int(k) for k in draft_tokens.split(",")])
    show_tables(row, Console(highlight=False, width=None if sys.stdout.isatty() else 160))
    path = out / f"ngram-{machine.file_name(row['machine'])}.jsonl"
    record.append_lines(path, [row])
    print(json.dumps({"record": str(path), "row": row}))


def _measure(wanted, model, train, field, test, order, repeats, megabytes, lmplz) -> dict:
    """The speeds and sizes."""
    from foredraft.bench import ngram as bench
    from foredraft.ngram_native import smooth
    from foredraft.ngram_native.count import count

    if not set(wanted) - {"acceptance", "opening"}:
        return {"opening": bench.opening(megabytes)} if "opening" in wanted else {}
    V, found = model.target.config.vocab_size, {}
    tokens, starts = _ids(train, field, model)
    counts = count(tokens, starts, order, V)
    if "counting" in wanted:
        found["counting"] = bench.counting(tokens, starts, order, V, repeats, lmplz)
    if set(wanted) & {"queries", "drafting"}:
        tests = _ids([test], "highlights", model)
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


def _ids(paths, field, model):
    """Texts as ids [n] and starts [m + 1], each with its start and end tokens."""
    import numpy as np

    from foredraft.train.ngram import sequences

    found = [ids for path in paths for batch in sequences(path, field, model.tokenizer) for ids in batch]
    return np.concatenate(found), np.cumsum([0, *map(len, found)])


def _acceptance(model, train, field, pseudo, pseudo_field, test, limit, orders, ks) -> list[dict]:
    """alpha and tokens a round of every smoothing and order, and of the lookup and combined drafters, on greedy outputs."""
    from foredraft.bench.cases import load_cases
    from foredraft.bench.replay import replay
    from foredraft.engine.draft_lookup import LookupDrafter
    from foredraft.engine.draft_ngram import NgramDrafter
    from foredraft.ngram_native import smooth
    from foredraft.train.ngram import count_texts

    articles = load_cases(test, model.tokenizer, limit=limit, max_source=model.source_limit)
    sources = [list(case.source) for case in articles]
    outputs = model.generate(sources, draft_tokens=0, batch_size=16).token_ids
    rows = []

    def add(name: str, make, **fields) -> None:
        for K in ks:
            figures = replay(make(), sources, outputs, K, model.target.start_token, model.target.end_token)
            rows.append({"drafter": name, "K": K, **fields, **figures})

    add("lookup", LookupDrafter)
    fits = [("gold", train, field)] + ([("target's own", [pseudo], pseudo_field)] if pseudo else [])
    for data, paths, name in fits:
        for N in orders:
            counts = count_texts(paths, model.path, N, name, model.target.config.vocab_size).finish()
            for smoothing in smooth.SMOOTHINGS:
                table = smooth.fit(counts, smoothing, added=1.0)
                add("ngram", lambda table=table: NgramDrafter(table), data=data, order=N, smoothing=smoothing)
                if smoothing == "kneser-ney":
                    add("lookup+ngram", lambda table=table: LookupDrafter(table=table), data=data, order=N,
                        smoothing=smoothing)
    return rows


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
        names = [name for name in found if name != "n" and "perplexity" not in name]
        table(f"Look-ups of {found['n']:,} n-grams, {stored}, perplexity {found['perplexity']:.2f}",
              ["how", "million/s"], [[name, f"{found[name] / 1e6:.2f}"] for name in names])
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
        table("Greedy drafts on the target's outputs", ["drafter", "fitted on", "order", "smoothing", "K", "alpha",
                                                        "tokens a round", "accepted / tested", "coverage"],
              [[one["drafter"], one.get("data", "-"), str(one.get("order", "-")), one.get("smoothing", "-"), str(one["K"]),
                f"{one['alpha']:.3f}", f"{one['tokens_per_round']:.3f}", f"{one['acceptance_rate']:.3f}",
                f"{one['coverage']:.3f}"] for one in acceptance])
