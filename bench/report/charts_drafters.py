"""Charts of trained drafters: the baseline, and what distillation adds."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from foredraft.bench.report import collection
from foredraft.bench.report.charts import ACCENT, BAR, INK, MUTED, RULE, SOFT, Chart, bars, grid
from foredraft.bench.report.collection import BASELINE, best_distilled, by_method, figures_at, mean, untrained, values

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


def _of(drafters: dict[str, dict[str, list[dict]]]) -> list[dict]:
    return [row for methods in drafters.values() for found in methods.values() for row in found]
