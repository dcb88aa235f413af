"""The report: one self-contained HTML page, made from records alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from html import escape
from pathlib import Path

from foredraft.bench.report import (
    charts,
    charts_drafters,
    drafters_table,
    methods_table,
    other_tables,
    runs_table,
    steps_tables,
)
from foredraft.bench.report.charts import Chart
from foredraft.bench.report.collection import Collection, machine_name
from foredraft.bench.report.other_tables import theory_table
from foredraft.bench.report.tables import Table, absent, ran

TEMPERATURES = (0.0, 1.0)
# the roles of charts.PALETTE on a dark background
DARK = {
    "ink": "#e4e8ec", "muted": "#98a3ae", "rule": "#333b43", "accent": "#45b8a9", "soft": "#2b6f67", "bar": "#77838f",
    "pale": "#49535d", "ground": "#14181c",
}


@dataclass(frozen=True)
class Sample:
    """A text decoded by the embedded model: pieces (text, proposer) of its tokens, in order."""

    name: str
    drafter: str
    draft_tokens: int
    steps: int
    pieces: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Section:
    title: str
    text: str
    charts: Sequence[Chart] = ()
    tables: Sequence[Table] = ()
    html: str = ""


@dataclass
class Page:
    """Sections with their charts, under a sentence of results."""

    sections: list[Section] = field(default_factory=list)
    lede: str = ""

    @property
    def charts(self) -> list[Chart]:
        return [chart for section in self.sections for chart in section.charts]


def build(found: Collection, sample: Sample | None) -> Page:
    """The sections for which there are records."""
    drafts = [draw(found.drafters, temperature) for temperature in TEMPERATURES
              for draw in (charts_drafters.alphas, charts_drafters.by_position, charts_drafters.tokens_per_step,
                           charts_drafters.speed_ups)]
    speeds = [charts_drafters.speed_by_K(found.drafters, temperature) for temperature in TEMPERATURES]
    times = [*map(charts.time_split, found.runs), charts.token_time(found.steps), charts.encoding(found.steps)]
    scaled = [*charts.batches(found.runs), *(chart for i, row in enumerate(found.scale) for chart in charts.scale(row, i)),
              *(charts.throughput(row, i) for i, row in enumerate(found.throughput))]
    sections = [
        Section("Who is faster",
                "Every method decodes the same articles in one process, batch by batch in a random order. The dashed "
                "line is plain decoding. A speed-up over it is given only where every token is the same.",
                [charts.speeds(run) for run in found.runs], [_run_table(run) for run in found.runs],
                absence_notes(found.runs, lambda row: row["method"], charts.setting)),
        Section("Which drafter",
                "Every drafter at the K that was best on other articles, and with adaptive draft lengths; sampled "
                "drafts are verified token by token and as blocks. The drafter auto chooses by itself. The speed-up of a "
                "large target on a GPU is simulated: tokens per step as measured, costs counted from bytes and launches.",
                methods_charts(found.methods),
                [Table(f"{methods_table.setting(rows)}, {machine_name(rows[0])}", methods_table.HEADS,
                       methods_table.lines(rows)) for rows in found.methods],
                absence_notes(found.methods, methods_table.spec, methods_table.setting)),
        *([] if sample is None else [
            Section("Who proposed which token", sample_text(sample), html=sample_html(sample))]),
        Section("What distillation adds",
                "alpha is E[sum min(p, q)] over every prefix of the target's own output. Baselines were "
                "trained on human summaries, the others by the target, on as many articles and steps.", _known(drafts),
                [Table("All runs", drafters_table.HEADS, drafters_table.drafter_lines(found.drafters, TEMPERATURES))]
                if any(drafts) else []),
        Section("How many tokens to draft", "The speed-up that the cost model predicts for each K, and the measured one.",
                [*_known(speeds), *theory_charts(found.theory)],
                [theory_table(row["drafter"]["name"], figures) for row in found.theory for figures in row["figures"]]),
        Section("Where the time goes",
                "Encoding is bound by arithmetic, a decode step by the bytes it reads: its floor is "
                "those bytes over the bandwidth measured in the same process. Coloured: drafting; strokes, where known: the "
                "least time of encoding and of the whole.", _known(times),
                [table for row in found.steps for table in steps_tables.tables(row) if isinstance(table, Table)]),
        Section("How it scales", "Time and memory an article as the work grows.", _known(scaled)),
        Section("As Spec-Bench computes it",
                "Spec-Bench (Xia et al. 2024) on summaries: one request at a time, greedy, the mean "
                "over articles of each article's speed, encoding included, comparable with published figures.", [],
                [Table(other_tables.spec_bench_setting(row), other_tables.SPEC_BENCH_HEADS,
                       other_tables.spec_bench_lines(row)) for row in found.spec_bench],
                absence_notes([row["rows"] for row in found.spec_bench], lambda row: row["method"], charts.setting)),
        Section("Would a slowdown be seen",
                "Each case of make bench in units of a calibration beside it, relative to three earlier "
                "runs: runs of the same code, and one in which every case was slowed. Right of the dashed line is an alarm.",
                [charts.alarm(row, i) for i, row in enumerate(found.regression)])]
    return Page([one for one in sections if one.charts or one.tables or one.html], lede(found))


def _known(drawn: Sequence[Chart | None]) -> list[Chart]:
    """The charts that there are records for."""
    return [chart for chart in drawn if chart is not None]


def _run_table(run: Sequence[dict]) -> Table:
    lines = [[*line, *runs_table.footprint(row)] for line, row in zip(runs_table.lines(run), ran(run), strict=True)]
    return Table(charts.setting(run), (*runs_table.heads(), *runs_table.FOOTPRINT), lines)


def lede(found: Collection) -> str:
    """The result of the newest comparison at batch size 1 and temperature 0, in a sentence."""
    for run in found.runs:
        best = runs_table.best_drafter(run)
        if run[0]["temperature"] == 0 and run[0]["batch_size"] == 1 and best:
            others = [row for row in ran(run) if row["speed_up"] is not None and row["acceptance"] is None]
            said = (f"On {best['data']['articles']} articles, greedy and one at a time, the {best['method']} drafter "
                    f"decodes {best['speed_up']['median']:.2f} times as fast as foredraft's own plain decoding")
            if others:
                peer = max(others, key=lambda row: row["tokens_per_second"]["median"])
                times = best["tokens_per_second"]["median"] / peer["tokens_per_second"]["median"]
                said += f" and {times:.1f} times as fast as {peer['method']}, the fastest other engine of the run"
            return said + ", with the same tokens."
    return "Results of the committed records."


def methods_charts(settings: Sequence[Sequence[dict]]) -> list[Chart]:
    """A chart for each machine."""
    found: dict[str, list[dict]] = {}
    for rows in settings:
        found.setdefault(machine_name(rows[0]), []).extend(rows)
    return [replace(charts_drafters.by_setting(rows), name=f"methods-{i}") for i, rows in enumerate(found.values())]


def absence_notes(runs: Sequence[Sequence[dict]], name: Callable[[dict], str],
                  setting: Callable[[Sequence[dict]], str]) -> str:
    return "".join(f'<p class="quiet"><b>{escape(method)}</b> is absent at {"; ".join(where)}: {escape(why)}.</p>'
                   for (method, why), where in absent(runs, name, setting).items())


def sample_text(sample: Sample) -> str:
    drafted = sum(proposer != "target" for _, proposer in sample.pieces)
    return (f"A sample text ({sample.name}) summarised greedily by the small embedded model with the {sample.drafter} "
            f"drafter, K={sample.draft_tokens}: {len(sample.pieces)} tokens in {sample.steps} steps, {drafted} of them "
            "drafted. Plain decoding gives the same tokens, one a step.")


def sample_html(sample: Sample) -> str:
    known = {"lookup": "by-lookup", "ngram": "by-ngram"}
    spans = "".join(
        f'<span class="{known.get(proposer, "by-other")}">{escape(text)}</span>' if proposer != "target" else escape(text)
        for text, proposer in sample.pieces)
    legend = "".join(f'<span class="{known.get(proposer, "by-other")}">drafted by {escape(proposer)}</span>'
                     for proposer in dict.fromkeys(proposer for _, proposer in sample.pieces) if proposer != "target")
    return (f'<p class="sample">{spans}</p><p class="legend quiet"><span>the target\'s own</span>{legend}</p>'
            f'<pre class="quiet">foredraft summarize assets/texts/{escape(sample.name)} --drafter {escape(sample.drafter)} '
            f'--draft-tokens {sample.draft_tokens}</pre>')


def theory_charts(rows: Sequence[dict]) -> list[Chart]:
    return [charts_drafters.speed_panels(
        [(f"T={figures['temperature']:g}", figures) for figures in row["figures"]], f"theory-{number}",
        f"{row['drafter']['name']}: speed-up for every K", [row]) for number, row in enumerate(rows)]


def style() -> str:
    """The style sheet, with the colours of both themes as variables."""
    light, dark = (" ".join(f"--{role}: {colour};" for role, colour in roles.items()) for roles in (charts.PALETTE, DARK))
    return (f":root {{ color-scheme: light dark; {light} }}\n"
            f"@media (prefers-color-scheme: dark) {{ :root {{ {dark} }} }}\n"
            + Path(__file__).with_name("page.css").read_text(encoding="utf-8"))


def render(page: Page, found: Collection) -> str:
    """The page as HTML that loads nothing from anywhere."""
    body = "".join(_section(section) for section in page.sections)
    records = "".join(f"<li><code>{escape(command)}</code><br><span class=quiet>{escape(machine)}, {day}</span></li>"
                      for command, machine, day in dict.fromkeys((row["command"], machine_name(row), row["time"][:10])
                                                                for row in found.all))
    machines = "; ".join(dict.fromkeys(machine_name(row) for row in found.all))
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<title>foredraft, measured</title><link rel="icon" href="data:,"><style>{style()}</style></head><body><main>'
        f'<h1>foredraft, measured</h1><p class="lede">{escape(page.lede)}</p>'
        f'<p class="quiet">Made by <code>foredraft report</code> from committed records: {escape(machines)}. '
        "Every figure names the command that produced it.</p>"
        f"{body}<h2>All records</h2><details><summary>{len(found.all)} records, by command</summary><ul>{records}</ul>"
        "</details></main></body></html>\n")


def _section(section: Section) -> str:
    figures = "".join(_figure(chart) for chart in section.charts)
    return (f"<section><h2>{escape(section.title)}</h2><p>{escape(section.text)}</p>{section.html}"
            + (f'<div class="figures">{figures}</div>' if figures else "")
            + "".join(map(_table, section.tables)) + "</section>")


def _figure(chart: Chart) -> str:
    how = "".join(f"<p>{escape(machine)}, {day}</p><pre>{escape(command)}</pre>"
                  for command, machine, day in charts.sources([chart]))
    return (f'<figure id="{chart.name}"><figcaption><h3>{escape(chart.title)}</h3><p>{escape(chart.note)}</p></figcaption>'
            f'{charts.svg(chart)}<details><summary>machine and command</summary>{how}</details></figure>')


def _table(table: Table) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in table.heads)
    rows = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in line) + "</tr>" for line in table.lines)
    return (f"<details><summary>Table: {escape(table.title)}</summary>"
            f'<div class="scroll" tabindex="0"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'
            "</details>")
