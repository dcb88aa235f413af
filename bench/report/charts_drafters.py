"""Charts of drafters: what distillation adds to trained ones, speed-up by K, and every drafter at each setting."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from foredraft.bench.report import collection
from foredraft.bench.report.charts import ACCENT, BAR, INK, MUTED, RULE, SOFT, Chart, bars, dashed, grid, lines_of
from foredraft.bench.report.collection import (
    BASELINE,
    best_distilled,
    by_method,
    figures_at,
    machine_name,
    mean,
    untrained,
    values,
)
from foredraft.bench.report.methods_table import fastest_by_drafter
from foredraft.engine.params import AUTO

# stands for the training method of a drafter without one
OTHER = ""


def alphas(rows: Sequence[dict], temperature: float) -> Chart | None:
    return _dots(rows, temperature, "alpha", "alpha", collection.alpha, (0.0, 1.0))


def tokens_per_step(rows: Sequence[dict], temperature: float) -> Chart | None:
    return _dots(rows, temperature, "step", "tokens per step", collection.tokens_per_step, (1.0, None))


def speed_ups(rows: Sequence[dict], temperature: float) -> Chart | None:
    return _dots(rows, temperature, "gain", "decode speed-up", collection.speed_up, (None, None))


def _dots(rows: Sequence[dict], temperature: float, name: str, what: str, value: Callable[[dict], float | None],
          ends: tuple[float | None, float | None]) -> Chart | None:
    """A value of each run, a line for each drafter: baselines hollow, the best method filled and named. Drafters without
    training come last."""
    found = by_method(rows) | {drafter: {OTHER: [row]} for drafter, row in untrained(rows).items()}
    drafters = {drafter: methods for drafter, methods in found.items()
                if any(mean(runs, temperature, value) is not None for runs in methods.values())}
    if not drafters:
        return None
    figure, axes = bars(70 + 44 * len(drafters))
    for line, methods in enumerate(drafters.values()):
        best = best_distilled(methods, temperature, value)
        for method, runs in methods.items():
            points = values(runs, temperature, value)
            style = (dict(facecolors="none", edgecolors=INK, zorder=4) if method == BASELINE
                     else dict(color=INK) if method == OTHER
                     else dict(color=ACCENT, zorder=3) if method == best else dict(color=SOFT, zorder=2))
            axes.scatter(points, [line] * len(points), s=34, **style)
        labelled = ((OTHER, 13, INK),) if best == OTHER else ((BASELINE, -13, MUTED), (best, 13, ACCENT))
        for method, offset, colour in labelled:
            if (middle := mean(methods.get(method, ()), temperature, value)) is not None:
                axes.annotate(f"{method} {middle:.2f}".strip(), (middle, line), (0, offset), textcoords="offset points",
                              ha="center", va="center", fontsize=10, color=colour)
    axes.set_yticks(range(len(drafters)), list(drafters))
    axes.set_ylim(len(drafters) - 0.4, -0.6)
    axes.margins(x=0.25)
    axes.set_xlim(*ends)
    axes.grid(axis="x", color=RULE, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.set_xlabel(what)
    return Chart(f"{name}-T{temperature:g}", f"{what[0].upper()}{what[1:]} of trained drafters at T={temperature:g}",
                 "A dot a run. Hollow: trained on human summaries; coloured: distilled, the best method named.",
                 figure, _of(drafters))


def by_position(rows: Sequence[dict], temperature: float) -> Chart | None:
    """accepted / tested at each position of the longest draft: a panel for each drafter, its baseline grey, the best
    distilled in colour and named."""
    drafters = {}
    for drafter, methods in by_method(rows).items():
        best = best_distilled(methods, temperature)
        pair = {method: figures for method in (BASELINE, best)
                if method in methods and (figures := figures_at(methods[method][0], temperature))}
        if pair:
            drafters[drafter] = pair
    if not drafters:
        return None
    figure, axes = grid(len(drafters), 175, 20, sharey=True)
    for panel, (drafter, pair) in zip(axes, drafters.items(), strict=True):
        panel.set_title(drafter, loc="left", color=INK)
        for method, figures in pair.items():
            rates = max(figures["rows"], key=lambda one: one["draft_tokens"])["acceptance"]["at"]
            known = [(position, rate) for position, rate in enumerate(rates, 1) if rate is not None]
            colour = BAR if method == BASELINE else ACCENT
            if known:
                panel.plot(*zip(*known, strict=True), color=colour, marker="o", markersize=3.5)
            if method != BASELINE:
                panel.set_title(method, loc="right", color=ACCENT, fontsize=10)
        panel.set_xlabel("position in the draft")
        longest = max(one["draft_tokens"] for figures in pair.values() for one in figures["rows"])
        panel.set_xlim(0.5, longest + 0.5)
        panel.set_xticks(range(1, longest + 1, -(-longest // 6)))
    axes[0].set_ylim(0, 1)
    axes[0].set_ylabel("accepted / tested")
    return Chart(f"position-T{temperature:g}", f"Acceptance by position in the draft at T={temperature:g}",
                 "Grey: baseline; coloured: the best distilled run, each at the K that it was measured at.", figure,
                 _of(by_method(rows)))


def speed_by_K(rows: Sequence[dict], temperature: float) -> Chart | None:
    """Measured and predicted speed-up by K, of each untrained drafter that was measured at several K."""
    found = [(name, figures, row) for name, row in untrained(rows).items()
             if (figures := figures_at(row, temperature)) is not None and len(figures["rows"]) > 1]
    if not found:
        return None
    return speed_panels([(title, figures) for title, figures, _ in found], f"predicted-T{temperature:g}",
                        f"Speed-up against K at T={temperature:g}", [row for *_, row in found])


def speed_panels(panels: Sequence[tuple[str, dict]], name: str, title: str, rows: Sequence[dict]) -> Chart:
    """A panel for each (title, figures of harness.evaluate): measured and predicted speed-up by K."""
    from matplotlib.ticker import MaxNLocator

    figure, axes = grid(len(panels), 175, 20)
    for panel, (said, figures) in zip(axes, panels, strict=True):
        kept = [one for one in figures["rows"] if "speed_up" in one]
        Ks = [one["draft_tokens"] for one in kept]
        panel.fill_between(Ks, [one["speed_up"]["low"] for one in kept], [one["speed_up"]["high"] for one in kept],
                           color=SOFT, alpha=0.35, linewidth=0)
        panel.plot(Ks, [one["speed_up"]["median"] for one in kept], color=ACCENT, marker="o", markersize=3.5)
        guessed = [(one["draft_tokens"], one["predicted"]) for one in figures["rows"] if one["predicted"] is not None]
        panel.plot(*zip(*guessed, strict=True), color=INK, linewidth=1.2, linestyle=(0, (3, 2)))
        panel.axhline(1, color=RULE, linewidth=1)
        panel.set_title(said, loc="left", color=INK)
        panel.set_xlabel("K")
        panel.set_ylim(0)
        panel.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        panel.yaxis.set_major_locator(MaxNLocator(4))
    axes[0].set_ylabel("over plain decoding")
    return Chart(name, title, "Line: measured, with its 95 % interval. Dashed: predicted from alpha, c and the measured "
                 "v(K+1) (Leviathan et al., Theorem 3.8).", figure, rows)


def by_setting(rows: Sequence[dict]) -> Chart:
    """A panel for each setting of methods_comparison, on one machine: the speed-up of each drafter's fastest configuration,
    with its 95 % interval; the simulated speed-up hollow."""
    settings = fastest_by_drafter(rows)
    names = list(dict.fromkeys(name for found in settings.values() for name in found))
    figure, panels = grid(len(settings), 70 + 20 * len(names), 64, sharey=True, sharex=True)
    for panel, ((T, B), found) in zip(panels, settings.items(), strict=True):
        best = max(found, key=lambda name: found[name]["speed_up"]["median"])
        for line, name in enumerate(names):
            if (row := found.get(name)) is None:
                continue
            over, colour = row["speed_up"], ACCENT if name == AUTO else INK if name == best else BAR
            panel.plot((over["low"], over["high"]), (line, line), color=SOFT if name == AUTO else RULE, linewidth=4)
            panel.scatter([over["median"]], [line], s=30, color=colour, zorder=3)
            if "speed_up" in (row["simulated"] or {}):
                panel.scatter([row["simulated"]["speed_up"]], [line], s=24, facecolors="none", edgecolors=MUTED, zorder=2)
        dashed(panel, 1, color=MUTED)
        panel.set_title(f"T={T:g}, B={B}", loc="left", color=INK)
        lines_of(panel, names)
        panel.grid(axis="x", color=RULE, linewidth=0.7)
        panel.set_axisbelow(True)
    for panel in panels[-2:]:
        panel.set_xlabel("over plain decoding")
    panels[0].scatter([], [], s=30, color=BAR, label="measured, 95 % interval")
    panels[0].scatter([], [], s=24, facecolors="none", edgecolors=MUTED, label="simulated, on a GPU")
    figure.legend(loc="outside upper left", ncols=2, frameon=False, fontsize=10, labelcolor=MUTED, handletextpad=0.2,
                  columnspacing=1.2)
    return Chart("methods", "Drafters, over plain decoding",
                 f"{machine_name(rows[0])}. Filled: measured, each drafter's fastest configuration, with its 95 % "
                 "interval; coloured: drafter auto. Hollow: simulated at the costs of a large target on a GPU.",
                 figure, list(rows))


def _of(drafters: dict[str, dict[str, list[dict]]]) -> list[dict]:
    return [row for methods in drafters.values() for found in methods.values() for row in found]
