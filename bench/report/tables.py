"""One table type for the terminal, Markdown and HTML, and the cells that several tables share."""

from __future__ import annotations

import shlex
import textwrap
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table as RichTable

from foredraft.bench.harness.methods import REFERENCE

Column = tuple[str, Callable[[dict], str]]
# characters of a line on the terminal and in docs/
WIDTH = 100


@dataclass(frozen=True)
class Table:
    """Heads and lines of text cells. `wide`: heads that the terminal shows only with --wide."""

    title: str
    heads: Sequence[str]
    lines: Sequence[Sequence[str]]
    wide: Iterable[str] = ()
    caption: str | None = None

    def _figures(self, i: int) -> bool:
        """Whether a column holds numbers, which stand to the right."""
        return any(line[i][:1].isdigit() for line in self.lines)

    def show(self, console: Console, wide: bool = False) -> None:
        """Print the table; without `wide` only the columns that fit WIDTH characters."""
        kept = [i for i, head in enumerate(self.heads) if wide or head not in self.wide]
        table = RichTable(title=self.title, title_justify="left", caption=self.caption, caption_justify="left")
        for i in kept:
            table.add_column(self.heads[i], justify="right" if self._figures(i) else "left", no_wrap=not i, overflow="fold")
        for line in self.lines:
            table.add_row(*(line[i] for i in kept))
        console.print(table, markup=False)

    def markdown(self) -> str:
        """The table in Markdown, without its title."""
        rules = ["---:" if self._figures(i) else "---" for i in range(len(self.heads))]
        lines = [self.heads, rules, *self.lines]
        return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def wrapped(text: str) -> str:
    """A paragraph in lines of WIDTH characters."""
    return textwrap.fill(text, WIDTH, break_long_words=False, break_on_hyphens=False)


def command_block(rows: Iterable[dict]) -> str:
    """The commands of the records, each once, as a code block; a long one continues after a backslash."""
    commands = []
    for command in dict.fromkeys(row["command"] for row in rows):
        lines = textwrap.wrap(command, WIDTH - 2, subsequent_indent="    ", break_long_words=False, break_on_hyphens=False)
        commands.append(" \\\n".join(lines) if shlex.split(command) == shlex.split(" ".join(lines)) else command)
    return "\n```\n" + "\n".join(commands) + "\n```\n"


def absent(runs: Iterable[Sequence[dict]], name: Callable[[dict], str],
           setting: Callable[[Sequence[dict]], str]) -> dict[tuple[str, str], list[str]]:
    """Settings of the methods that did not run, by (name, reason)."""
    missing: dict[tuple[str, str], list[str]] = {}
    for run in runs:
        for row in run:
            if row["absent"] is not None:
                missing.setdefault((name(row), row["absent"]), []).append(setting(run))
    return missing


def absences(runs: Iterable[Sequence[dict]], name: Callable[[dict], str],
             setting: Callable[[Sequence[dict]], str]) -> list[str]:
    """A Markdown sentence for each of `absent`."""
    return [f"`{method}` is absent at {', '.join(where)}: {why}."
            for (method, why), where in absent(runs, name, setting).items()]


def number(value: float | None, digits: int = 2) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def rate(field: str) -> Callable[[dict], str]:
    def cell(row: dict) -> str:
        return f"{row[field]['median']:,.0f} ({row[field]['p20']:,.0f}-{row[field]['p80']:,.0f})"

    return cell


def interval(found: dict | None) -> str:
    """A speed-up with its 95 % interval."""
    return "{median:.2f}x ({low:.2f}-{high:.2f})".format(**found) if found else "-"


def times(field: str) -> Callable[[dict], str]:
    return lambda row: "1" if row["method"] == REFERENCE else interval(row[field])


def accepted(field: str) -> Callable[[dict], str]:
    """A figure of the drafts; a dash for a method without any."""
    def cell(row: dict) -> str:
        found = row["acceptance"] or {}
        return number(found.get(field)) if found.get("drafted") else "-"

    return cell


def gate(row: dict) -> str:
    return "not comparable" if row["differ"] is None else f"{row['differ']} of {row['data']['articles']}"


def rouge(row: dict) -> str:
    found = row.get("rouge")
    return " / ".join(number(found[kind], 1) for kind in ("rouge1", "rouge2", "rougeLsum")) if found else "-"


def ran(rows: Sequence[dict]) -> list[dict]:
    """The records of methods that ran."""
    return [row for row in rows if row["absent"] is None]
