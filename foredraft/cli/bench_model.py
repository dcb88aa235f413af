"""`foredraft bench model`: what a round must cost on a GPU, from bytes and launches."""

from __future__ import annotations

import json
import sys
from typing import Annotated

import typer

from foredraft.errors import UserError


def model(
    geometry: Annotated[str, typer.Option(help="Sizes of t5-small, flan-t5-small, -base, -large or -xl.")] = "flan-t5-xl",
    batch_sizes: Annotated[str, typer.Option(help="Rows decoded together, with commas.")] = "1,8,32,128",
    draft_tokens: Annotated[int, typer.Option(min=0, help="Tokens drafted a round (K).")] = 5,
    tokens_per_step: Annotated[float, typer.Option(help="As measured on a trained target; 1 if unknown.")] = 1.0,
    source: Annotated[int, typer.Option(min=1, help="Source tokens.")] = 512,
    position: Annotated[int, typer.Option(min=0, help="Decoder position: the middle of a summary.")] = 64,
    drafter: Annotated[str, typer.Option(help="none, lookup, ngram, lookup+ngram, t5shallow, lstm or cnn.")] = "lookup",
    sampled: Annotated[bool, typer.Option("--sampled", help="Logits are written; greedy rounds never do.")] = False,
    machine: Annotated[str, typer.Option(help="h200, h100, h100-nvl, h100-pcie, a100 or l4: the maker's figures.")] = "h200",
    bandwidth: Annotated[float | None, typer.Option(help="GB/s, in place of the machine's.")] = None,
    launch_us: Annotated[float | None, typer.Option(help="A launch, microseconds; eager ones cost 5 or more.")] = None,
) -> None:
    """Model a round's time in bf16. The last line is JSON."""
    from dataclasses import replace

    from rich.console import Console
    from rich.table import Table

    from foredraft.bench.gpu.roofline import MACHINES, Round, table

    if machine not in MACHINES:
        raise UserError(f"--machine {machine!r} is not known; one of {', '.join(MACHINES)}")
    try:
        sizes = [int(size) for size in batch_sizes.split(",")]
    except ValueError:
        sizes = []
    if not sizes or min(sizes) < 1:
        raise UserError(f"--batch-sizes {batch_sizes!r} are no whole numbers of at least 1; write 1,8,32")
    known = MACHINES[machine]
    for name, value in (("bandwidth", bandwidth), ("launch_us", launch_us)):
        if value is not None:
            if value <= 0:
                raise UserError(f"--{name.replace('_', '-')} is {value}; give a number above 0")
            known = replace(known, **{name: value})
    rounds = [Round(size, draft_tokens, source, position, sampled, drafter=drafter) for size in sizes]
    rows = table(geometry, known, rounds, tokens_per_step)

    console = Console(highlight=False, width=None if sys.stdout.isatty() else 160)
    speeds = f"{known.bandwidth:.0f} GB/s, {known.launch_us} us a launch"
    what = f"{geometry}, K={draft_tokens}, {source} source tokens, {speeds}: MODELLED, not measured"
    out = Table(title=what, title_justify="left")
    for name in ("B", "launches", "MB", "bytes alone, us", "plain step, us", "round, us", "v(K+1)", "plain tok/s", "tok/s"):
        out.add_column(name, justify="right")
    for size, row in zip(sizes, rows, strict=True):
        out.add_row(str(size), str(row["launches"]), f"{row['bytes'] / 1e6:,.0f}", f"{row['bytes_us']:,.0f}",
                    f"{row['plain_us']:,.0f}", f"{row['us']:,.0f}", f"{row['v']:.2f}",
                    f"{row['plain_tokens_per_second']:,.0f}", f"{row['tokens_per_second']:,.0f}")
    console.print(out)
    out = Table(title=f"parts of a round at B={sizes[0]}", title_justify="left")
    for name in ("part", "launches", "MB", "us"):
        out.add_column(name, justify="left" if name == "part" else "right")
    for part in rows[0]["parts"]:
        out.add_row(part["name"], str(part["launches"]), f"{part['bytes'] / 1e6:,.2f}", f"{part['us']:,.1f}")
    console.print(out)
    print(json.dumps({"modelled": rows}))
