"""What commands print besides their result: tables of at most 100 columns, and notices on stderr."""

from __future__ import annotations

import json
import sys
from typing import NoReturn

WIDTH = 100
# exit code after Ctrl-C: 128 + SIGINT
INTERRUPTED = 130
# for all columns, where the output is no terminal
WIDE = 200


def console(wide: bool = False):
    """A rich Console on stdout, at most WIDTH columns; with `wide` as wide as the terminal."""
    from rich.console import Console

    found = Console(highlight=False, width=None if sys.stdout.isatty() else WIDE)
    return found if wide else Console(highlight=False, width=min(found.width, WIDTH))


def progress():
    """A rich Progress on stderr that leaves nothing behind."""
    from rich.console import Console
    from rich.progress import Progress

    return Progress(console=Console(stderr=True), transient=True)


def notice(text: str) -> None:
    """One line on stderr."""
    # a path may hold bytes that are not UTF-8
    print("foredraft: " + text.encode(errors="backslashreplace").decode(), file=sys.stderr)


def interrupted(how: str) -> NoReturn:
    """End an interrupted command with exit code 130 and a line that says how to resume."""
    import typer

    notice(f"interrupted; {how}")
    raise typer.Exit(INTERRUPTED)


def print_figures(figures: dict, as_json: bool) -> None:
    """A line of JSON, or a line for each figure that is a number or a text."""
    if as_json:
        print(json.dumps(figures))
        return
    shown = {name: value for name, value in figures.items() if isinstance(value, (str, int, float))}
    for name, value in shown.items():
        print(f"{name.replace('_', ' '):{max(map(len, shown))}}  {value if isinstance(value, str) else f'{value:,.6g}'}")


def announce_compilation() -> None:
    """From now on, say on stderr when this process begins to compile kernels."""
    from foredraft.kernels.core import compilation
    from foredraft.kernels.core.backend import kept_in

    def announce() -> None:
        where = kept_in()
        notice("compiling kernels for this machine; this takes up to a few minutes" + (
            f" and is kept in {where}" if where else " in EVERY run, because the cache folder cannot be written; set "
            "NUMBA_CACHE_DIR to a folder that can"))

    compilation.on_first[:] = [announce]
