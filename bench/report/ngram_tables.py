"""The terminal's tables of `foredraft bench ngram`."""

from __future__ import annotations

from collections.abc import Iterator

from foredraft.bench.report.tables import Table, number

ACCEPTANCE = ("drafter", "temperature", "data", "order", "smoothing", "K", "alpha", "tokens_per_step", "tokens_per_pass",
              "acceptance_rate", "over_better", "oracle", "oracle_by_id")


def tables(row: dict) -> Iterator[Table | str]:
    """A table for each part that was measured."""
    if counting := row.get("counting"):
        yield Table(f"Counting {counting['tokens']:,} tokens, order {counting['order']}, {counting['threads']} threads",
                    ("how", "million tokens/s"), _rates(counting, "over"))
    for stored, found in row.get("queries", {}).items():
        yield Table(f"Queries of {found['n']:,} n-grams, {stored}, perplexity {found['perplexity']:.2f}",
                    ("how", "million/s"), _rates(found, "perplexity", "kenlm_perplexity"))
        for name, ratio in found.get("over_kenlm", {}).items():
            yield f"{name.replace('_', ' ')}: {ratio:.2f}x"
    for stored, found in row.get("drafting", {}).items():
        yield Table(f"One draft, {stored}", ("sequences", "K", "microseconds"),
                    [[str(one["rows"]), str(one["K"]), f"{one['microseconds']:.1f}"] for one in found])
    if size := row.get("size"):
        yield Table("Size", ("stored", "n-grams", "MB", "bytes an n-gram"),
                    [[name, f"{one['ngrams']:,}", f"{one['bytes'] / 1e6:.1f}", f"{one['bytes_per_ngram']:.2f}"]
                     for name, one in size.items()])
    if opening := row.get("opening"):
        yield f"opening {opening['bytes'] / 1e6:.0f} MB: {opening['milliseconds']:.2f} ms"
    if acceptance := row.get("acceptance"):
        yield Table("Drafts on the target's outputs; oracles relative to the better of lookup and ngram",
                    [name.replace("_", " ") for name in ACCEPTANCE],
                    [[number(value, 3) if isinstance(value := one.get(name, "-"), float) else str(value)
                      for name in ACCEPTANCE] for one in acceptance],
                    wide=("temperature", "tokens per pass", "over better", "oracle", "oracle by id"))


def _rates(found: dict, *without: str) -> list[list[str]]:
    return [[name, number(value / 1e6)] for name, value in found.items()
            if isinstance(value, float) and not name.startswith(without)]
