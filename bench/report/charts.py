"""Charts of records, drawn with matplotlib and saved as PNG, and as SVG whose colours follow the page's theme."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from foredraft.atomic_write import atomic_path
from foredraft.bench.harness.machine import file_name
from foredraft.bench.harness.methods import REFERENCE
from foredraft.bench.report.collection import machine_name
from foredraft.bench.report.tables import ran

# colours by role on a light background; in SVG each becomes the CSS variable of its name
PALETTE = {
    "ink": "#1d2329", "muted": "#69737f", "rule": "#d8dde3", "accent": "#0d7a6f", "soft": "#8fc7bf", "bar": "#93a0ad",
    "pale": "#c9d1d9", "ground": "#fdfdfb",
}
INK, MUTED, RULE, ACCENT, SOFT, BAR, PALE, GROUND = PALETTE.values()
# CSS pixels: about a phone's width; two charts side by side on a desktop
WIDTH = 390
PHASES = {"encode": PALE, "draft": ACCENT, "verify": BAR, "other": RULE}


@dataclass(frozen=True)
class Chart:
    """`name`: stem of the file. `title` and `note`: text beside the drawing. `rows`: the records it shows."""

    name: str
    title: str
    note: str
    figure: object
    rows: Sequence[dict]


def blank(height: int, across: int = 1, down: int = 1, **options):
    """A figure of WIDTH x height CSS pixels and its axes [down, across], in the charts' style."""
    import matplotlib
    from matplotlib.figure import Figure

    style = {"font.size": 11, "text.color": INK, "axes.edgecolor": RULE, "axes.labelcolor": MUTED, "xtick.color": MUTED,
             "ytick.color": MUTED, "xtick.labelcolor": MUTED, "ytick.labelcolor": INK, "axes.spines.top": False,
             "axes.spines.right": False, "axes.titlesize": 11, "axes.titleweight": "bold", "axes.titlelocation": "left",
             "axes.labelsize": 10, "xtick.labelsize": 10, "ytick.labelsize": 10, "axes.facecolor": GROUND,
             "figure.facecolor": GROUND, "xtick.major.size": 3, "ytick.major.size": 0, "lines.linewidth": 1.8}
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(WIDTH / 72, height / 72), layout="constrained")
        figure.get_layout_engine().set(wspace=0.06)
        axes = figure.subplots(down, across, squeeze=False, **options)
    return figure, axes


def bars(height: int):
    """A figure and its one panel, without a left edge: bars begin there."""
    figure, ((axes,),) = blank(height)
    axes.spines["left"].set_visible(False)
    return figure, axes


def grid(panels: int, height: int, above: int, **options):
    """A figure of panels two abreast, each `height` high, and its panels."""
    down = -(-panels // 2)
    figure, axes = blank(above + height * down, across=min(2, panels), down=down, **options)
    for spare in axes.flat[panels:]:
        spare.set_visible(False)
    return figure, axes.flat[:panels]


def dashed(axes, at: float, **options) -> None:
    """A vertical line at a value that the others are compared with."""
    axes.axvline(at, **{"color": INK, "linewidth": 1, "linestyle": (0, (3, 3))} | options)


def lines_of(axes, names: Sequence[str]) -> None:
    """A line for each name, the first at the top."""
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)


def _by_size(axes, sizes: Sequence[int], what: str) -> None:
    """The horizontal axis of sizes that double."""
    axes.set_xscale("log", base=2)
    axes.set_xticks(sorted(sizes))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.set_xlabel(what)


def save_png(chart: Chart, path: Path, facts: dict[str, str] | None = None) -> None:
    """Write the chart, with `facts` as text chunks of the file."""
    import matplotlib

    with matplotlib.rc_context({"savefig.facecolor": GROUND}), atomic_path(path) as partial:
        chart.figure.savefig(partial, format="png", dpi=144, metadata={"Software": None, **(facts or {})})


def svg(chart: Chart) -> str:
    """The chart as an <svg> element: text in the page's font, colours by role, unique ids."""
    import matplotlib

    text = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "foredraft"}):
        chart.figure.savefig(text, format="svg", transparent=True, metadata={"Date": None})
    drawn = text.getvalue()
    drawn = re.sub(r"<metadata>.*?</metadata>", "", drawn[drawn.index("<svg"):], flags=re.S)
    for role, colour in PALETTE.items():
        drawn = drawn.replace(colour, f"var(--{role})")
    drawn = re.sub(r'(\bid="|"#|url\(#)', rf"\g<1>{chart.name}-", drawn)
    label = escape(f"{chart.title}. {chart.note}", quote=True)
    opening = (rf'<svg role="img" aria-label="{label}" viewBox="\1" xmlns="http://www.w3.org/2000/svg" '
               r'xmlns:xlink="http://www.w3.org/1999/xlink">')
    return re.sub(r'<svg .*?viewBox="([^"]*)".*?>', opening, drawn, count=1, flags=re.S)


def setting(run: Sequence[dict]) -> str:
    row = run[0]
    gpu = f", {row['machine']['gpu']}" if row["machine"]["gpu"] else ""
    return f"T={row['temperature']:g}, B={row['batch_size']}, K={row['draft_tokens']}{gpu}"


def _stem(run: Sequence[dict]) -> str:
    row = run[0]
    return f"{file_name(row['machine'])}-T{row['temperature']:g}-B{row['batch_size']}-K{row['draft_tokens']}"


def _where(run: Sequence[dict]) -> str:
    row = run[0]
    return f"{row['data']['articles']} articles of {row['data']['name']}, {machine_name(row)}."


def speeds(run: Sequence[dict]) -> Chart:
    """Decoding speed of each method of a comparison, with the speed-up over plain decoding where tokens are equal."""
    rows = ran(run)
    figure, axes = bars(46 + 24 * len(rows))
    values = [row["tokens_per_second"]["median"] for row in rows]
    # pale: other engines, which have no DecodeStats
    colours = [PALE if row["acceptance"] is None else BAR if row["method"] == REFERENCE else ACCENT for row in rows]
    drawn = axes.barh([row["method"] for row in rows], values, color=colours, height=0.66)
    for row, bar in zip(rows, drawn, strict=True):
        said = "other tokens" if row["differ"] else "" if row["speed_up"] is None else f"{row['speed_up']['median']:.2f}x"
        text = f"{bar.get_width():,.0f}" + (f" · {said}" if said and row["method"] != REFERENCE else "")
        axes.annotate(text, (bar.get_width(), bar.get_y() + bar.get_height() / 2), (5, 0), textcoords="offset points",
                      va="center", fontsize=10, color=MUTED if row["differ"] else INK, zorder=4,
                      bbox=dict(facecolor=GROUND, edgecolor="none", pad=0.8))
    dashed(axes, values[[row["method"] for row in rows].index(REFERENCE)], color=MUTED, zorder=3)
    axes.invert_yaxis()
    axes.set_xlim(0, max(values) * 1.4)
    axes.set_xlabel("tokens a second, decoding")
    axes.xaxis.set_major_locator(_few())
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    return Chart(f"speed-{_stem(run)}", f"Decoding speed at {setting(run)}", _where(run), figure, run)


def time_split(run: Sequence[dict]) -> Chart | None:
    """Milliseconds an article by phase, of the methods that report phases."""
    rows = [row for row in ran(run) if row["seconds"]["other"] is not None]
    if not rows:
        return None
    figure, axes = bars(66 + 26 * len(rows))
    names, left = [row["method"] for row in rows], [0.0] * len(rows)
    for phase, colour in PHASES.items():
        widths = [row["seconds"][phase] * 1e3 / row["data"]["articles"] for row in rows]
        axes.barh(names, widths, left=left, color=colour, height=0.66)
        middle = left[0] + widths[0] / 2
        if widths[0] > 0.06 * max(row["seconds"]["total"] for row in rows) * 1e3 / rows[0]["data"]["articles"]:
            axes.text(middle, -0.62, phase, ha="center", fontsize=10, color=MUTED)
        left = [start + width for start, width in zip(left, widths, strict=True)]
    for line, (row, total) in enumerate(zip(rows, left, strict=True)):
        axes.text(total, line, f" {total:.1f} ms", va="center", fontsize=10, color=INK)
        if least := row.get("floor"):
            ends = [least[part] * 1e3 / row["data"]["articles"] for part in ("encode", "total")]
            axes.vlines(ends, line - 0.33, line + 0.33, color=INK, linewidth=1.2)
    axes.set_ylim(len(rows) - 0.5, -0.95)
    axes.set_xlim(0, max(left) * 1.2)
    axes.set_xlabel("milliseconds an article")
    axes.xaxis.set_major_locator(_few())
    return Chart(f"time-{_stem(run)}", f"Time an article at {setting(run)}", _where(run), figure, rows)


def batches(runs: Sequence[Sequence[dict]]) -> list[Chart]:
    """A chart for each machine and K with several batch sizes."""
    groups: dict[tuple[str, int], list[Sequence[dict]]] = {}
    for run in runs:
        groups.setdefault((file_name(run[0]["machine"]), run[0]["draft_tokens"]), []).append(run)
    charts = [_batches(f"batch-{machine}-K{K}", group) for (machine, K), group in groups.items()]
    return [chart for chart in charts if chart is not None]


def _batches(name: str, runs: Sequence[Sequence[dict]]) -> Chart | None:
    """Tokens a second by batch size, plain and with drafts, at each temperature; None for one batch size."""
    lines: dict[tuple[float, str], list[tuple[int, float]]] = {}
    for run in runs:
        for row in ran(run):
            if row["acceptance"] is not None:
                lines.setdefault((row["temperature"], row["method"]), []).append(
                    (row["batch_size"], row["tokens_per_second"]["median"]))
    temperatures = sorted({temperature for (temperature, _), points in lines.items() if len(points) > 1})
    if not temperatures:
        return None
    figure, (panels,) = blank(230, across=len(temperatures), sharey=True)
    # one scale for all panels, set before lines are labelled
    panels[0].set_ylim(0, max(value for points in lines.values() for _, value in points) * 1.08)
    for axes, temperature in zip(panels, temperatures, strict=True):
        known = {method: sorted(points) for (at, method), points in lines.items() if at == temperature and len(points) > 1}
        _curves(axes, known, {method: MUTED if method == REFERENCE else ACCENT for method in known})
        axes.set_title(f"T={temperature:g}", loc="left", color=INK)
        axes.margins(x=0.4)
        axes.yaxis.set_major_locator(_few())
    panels[0].set_ylabel("tokens a second")
    return Chart(name, "By batch size", "Decoding speed; drafts gain less in batches, which already share each weight read.",
                 figure, [row for run in runs for row in run])


def token_time(steps: Sequence[dict]) -> Chart | None:
    """A plain step by part, relative to its bytes over the measured bandwidth."""
    known = {f"{row['geometry']}, {stored}": figures for row in steps for stored, figures in row["weights"].items()}
    if not known:
        return None
    figure, axes = bars(74 + 24 * len(known))
    parts = {"matrices": ACCENT, "cross-attention": SOFT, "head and argmax": BAR}
    for number, found in enumerate(known.values()):
        step, left = found["step_ms"]["1"]["median"], 0.0
        widths = {name: found["parts_ms"][f"{name} 1"] / found["floor_ms"] for name in parts}
        widths["rest"] = max(0.0, step / found["floor_ms"] - sum(widths.values()))
        for name, width in widths.items():
            axes.barh(number, width, left=left, height=0.66, color=parts.get(name, PALE), label=None if number else name)
            left += width
        axes.text(left, number, f" {step:.1f} ms", va="center", fontsize=10, color=INK)
    figure.legend(loc="outside upper left", ncols=4, frameon=False, fontsize=10, labelcolor=MUTED, handlelength=0.8,
                  handletextpad=0.4, columnspacing=1.2)
    dashed(axes, 1)
    lines_of(axes, list(known))
    axes.set_xlim(0, max(found["step_ms"]["1"]["median"] / found["floor_ms"] for found in known.values()) * 1.25)
    axes.set_xlabel("times its floor (dashed): bytes over measured bandwidth")
    return Chart("token-time", "Where a token's time goes",
                 "One plain step at real models' sizes, random weights; each part timed alone.",
                 figure, steps)


def encoding(steps: Sequence[dict]) -> Chart | None:
    """The encoder's time, relative to its FLOPs over the measured rate of a large product."""
    known = {row["geometry"]: next(iter(row["weights"].values()))["encoder"] for row in steps}
    if not known:
        return None
    figure, axes = bars(56 + 24 * len(known))
    for number, found in enumerate(known.values()):
        width = 1 / found["share_of_floor"]
        axes.barh(number, width, height=0.66, color=BAR)
        axes.text(width, number, f" {found['ms']:.0f} ms", va="center", fontsize=10, color=INK)
    dashed(axes, 1)
    lines_of(axes, list(known))
    axes.set_xlim(0, max(1 / found["share_of_floor"] for found in known.values()) * 1.25)
    axes.set_xlabel("times its floor (dashed): FLOP over the measured rate")
    return Chart("encode-time", f"Encoding {steps[0]['source_tokens']} source tokens",
                 "One request.", figure, steps)


def scale(row: dict, number: int) -> list[Chart]:
    """Milliseconds and memory an article by articles, source length and output length; resident memory by articles."""
    charts = []
    said = f"{machine_name(row)}, batch size {row['batch_size']}, drafter {row['drafter']['name']}"
    for axis, what in (("articles", "articles decoded"), ("source", "source tokens"), ("output", "output tokens")):
        points = row["curves"].get(axis, ())
        if len(points) < 2:
            continue
        figure, axes = blank(300, down=2, sharex=True)
        (times,), (sizes_of,) = axes
        sizes = [point["size"] for point in points]
        times.plot(sizes, [point["ms_per_article"] for point in points], color=ACCENT, marker="o", markersize=4)
        times.set_ylabel("ms an article")
        known = [(point["size"], point["bytes_per_article"] / 1e6) for point in points if point["bytes_per_article"]]
        if known:
            sizes_of.plot(*zip(*known, strict=True), color=INK, marker="o", markersize=4)
        sizes_of.set_ylabel("MB an article")
        _by_size(sizes_of, sizes, what)
        sizes_of.minorticks_off()
        for panel in (times, sizes_of):
            panel.set_ylim(0)
            panel.yaxis.set_major_locator(_few())
            panel.grid(axis="y", color=RULE, linewidth=0.7)
            panel.set_axisbelow(True)
        charts.append(Chart(f"scale-{number}-{axis}", f"Time and memory by {what}",
                            f"{said}. Memory: the peak over the loaded model, divided by the articles.", figure, [row]))
    if memory := row.get("memory"):
        figure, ((axes,),) = blank(210)
        axes.plot(memory["articles"], [value / 1e6 for value in memory["rss"]], color=ACCENT)
        axes.set_xlabel("articles decoded")
        axes.set_ylabel("resident memory, MB")
        axes.set_ylim(0, max(memory["rss"]) / 1e6 * 1.15)
        axes.yaxis.set_major_locator(_few())
        note = ("{said}. Slope {slope:+.0f} bytes an article (95 % interval {low:+.0f} to {high:+.0f}), fitted after the "
                "first fifth.").format(said=said, **memory["slope"])
        charts.append(Chart(f"memory-{number}", f"Memory over {memory['articles'][-1]:,} articles", note, figure, [row]))
    return charts


def alarm(row: dict, number: int) -> Chart:
    """Every case's change in unchanged runs and in the slowed one, beside the limit of the alarm."""
    lines = {"unchanged": [change for case in row["cases"] for change in case["unchanged"]],
             f"slowed {row['slow']:g} times": [case["seeded"] for case in row["cases"]]}
    figure, axes = bars(130)
    for line, (values, colour) in enumerate(zip(lines.values(), (BAR, ACCENT), strict=True)):
        axes.scatter(values, [line] * len(values), s=200, marker="|", color=colour, linewidth=1.2)
    dashed(axes, row["limit"])
    axes.set_yticks(range(len(lines)), list(lines))
    axes.set_ylim(1.6, -0.6)
    axes.set_xlabel("times the cost of the runs before")
    note = (f"{machine_name(row)}. {row['runs']} unchanged runs of {len(row['cases'])} cases: {len(row['false_alarms'])} "
            f"false "
            f"alarms, {row['timed_again']} timed again; slowed: {len(row['missed'])} missed.")
    return Chart(f"alarm-{number}", "Changes that raise the alarm", note, figure, [row])


def throughput(row: dict, number: int) -> Chart | None:
    """Articles a second by batch size, of each engine with plain decoding's tokens; None for one batch size."""
    lines: dict[str, list[tuple[int, float]]] = {}
    for one in row["rows"]:
        if one["differ"] == 0:
            lines.setdefault(one["engine"], []).append((one["batch_size"], one["articles_per_second"]["median"]))
    if not any(len(points) > 1 for points in lines.values()):
        return None
    figure, ((axes,),) = blank(250)
    ours = next(iter(lines))
    colours = {engine: ACCENT if engine == ours else MUTED for engine in lines}
    # the scale is set before lines are labelled
    values = [value for points in lines.values() for _, value in points]
    axes.set_ylim(0, max(values) + 0.05 * (max(values) - min(values)))
    _curves(axes, lines, colours)
    # room for the labels at the ends of the lines
    axes.set_xlim(right=axes.get_xlim()[1] * 2.5)
    axes.set_ylabel("articles a second")
    axes.yaxis.set_major_locator(_few())
    name = row["geometry"] or row["target"]["model"]
    return Chart(f"throughput-{number}", f"Many articles: {name}, drafter {row['drafter']}",
                 "Encoding included; engines whose tokens differ are left out.", figure, [row])


def _curves(axes, lines: dict[str, list[tuple[int, float]]], colours: dict[str, str]) -> None:
    """Lines of (batch size, value), named at their ends; names are moved apart where they would overlap."""
    _by_size(axes, {size for points in lines.values() for size, _ in points}, "batch size")
    for name, points in lines.items():
        axes.plot(*zip(*sorted(points), strict=True), color=colours[name], marker="o", markersize=4)
    gap, last = 0.075 * axes.get_ylim()[1], float("-inf")
    for name, (x, y) in sorted(((name, max(points)) for name, points in lines.items()), key=lambda item: item[1][1]):
        last = max(y, last + gap)
        axes.annotate(f" {name}", (x, y), (x, last), fontsize=10, va="center", color=colours[name])


def _few():
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(4)


def sources(charts: Sequence[Chart]) -> list[tuple[str, str, str]]:
    """(command, machine, day) of the records of charts, each once."""
    return list(dict.fromkeys((row["command"], machine_name(row), row["time"][:10]) for chart in charts
                              for row in chart.rows))
