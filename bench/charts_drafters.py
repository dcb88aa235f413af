"""Charts of trained drafters: what training without the target gives, and what distillation adds."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from foredraft.bench.charts import ACCENT, BAR, INK, MUTED, RULE, SOFT, Chart, blank
from foredraft.bench.collection import BASELINE, alpha_of, best_distilled, by_method, figures_at, trained


def alphas(rows: Sequence[dict], temperature: float) -> Chart | None:
    """alpha of every run, a line for each drafter: its baselines hollow, the best method filled and named."""
    drafters = {drafter: methods for drafter, methods in by_method(rows).items()
                if any(alpha_of(found, temperature) is not None for found in methods.values())}
    if not drafters:
        return None
    figure, ((axes,),) = blank(70 + 44 * len(drafters))
    for line, methods in enumerate(drafters.values()):
        best = best_distilled(methods, temperature)
        for method, found in methods.items():
            values = [figures["alpha"]["value"] for row in found if (figures := figures_at(row, temperature))]
            style = (dict(facecolors="none", edgecolors=INK, zorder=4) if method == BASELINE
                     else dict(color=ACCENT, zorder=3) if method == best else dict(color=SOFT, zorder=2))
            axes.scatter(values, [line] * len(values), s=34, **style)
        own, distilled = alpha_of(methods.get(BASELINE, ()), temperature), alpha_of(methods.get(best, ()), temperature)
        for value, method, offset, colour in ((own, BASELINE, -13, MUTED), (distilled, best, 13, ACCENT)):
            if value is not None:
                axes.annotate(f"{method} {value:.2f}", (value, line), (0, offset), textcoords="offset points", ha="center",
                              va="center", fontsize=10, color=colour)
    axes.set_yticks(range(len(drafters)), list(drafters))
    axes.set_ylim(len(drafters) - 0.4, -0.6)
    axes.set_xlim(0, 1)
    axes.grid(axis="x", color=RULE, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.set_xlabel("alpha")
    axes.spines["left"].set_visible(False)
    return Chart(f"alpha-T{temperature:g}", f"alpha of trained drafters at T={temperature:g}",
                 "Hollow: trained on human summaries alone; filled: distilled, the best method named.", figure,
                 _of(drafters))


def by_place(rows: Sequence[dict], temperature: float) -> Chart | None:
    """accepted / tested at each place of the longest draft, baseline and best distilled."""
    return _twins(rows, temperature, "place", "Acceptance by place in the draft", "place in the draft", "accepted / tested",
                  lambda figures: list(enumerate(_longest(figures)["acceptance"]["at"], 1)), top=1.0)


def tokens_a_round(rows: Sequence[dict], temperature: float) -> Chart | None:
    """Tokens a round by K, baseline and best distilled."""
    return _twins(rows, temperature, "round", "Tokens a round", "K", "tokens a round",
                  lambda figures: [(one["draft_tokens"], one["acceptance"]["tokens_per_round"]) for one in figures["rows"]])


def speed_by_K(rows: Sequence[dict], temperature: float) -> Chart | None:
    """Measured speed-up by K with its interval, and what alpha, c and v predict, of each drafter's best run."""
    found = []
    drafters = by_method(rows)
    for drafter, methods in drafters.items():
        best = best_distilled(methods, temperature) or BASELINE
        if figures := figures_at(methods.get(best, [{"figures": []}])[0], temperature):
            found.append((drafter, f"{drafter}, {best}", figures, methods[best][0]))
    for row in rows:
        drafter, method, _ = trained(row)
        figures = figures_at(row, temperature)
        if method is None and figures is not None:
            found.append((drafter, row["drafter"].get("path") or drafter, figures, row))
    if not found:
        return None
    return speed_panels([(title, figures) for _, title, figures, _ in found], f"predicted-T{temperature:g}",
                        f"Speed-up against K at T={temperature:g}", [row for *_, row in found])


def speed_panels(panels: Sequence[tuple[str, dict]], name: str, title: str, rows: Sequence[dict]) -> Chart:
    """A panel for each (title, figures of bench.evaluate): measured and predicted speed-up by K."""
    figure, axes = _grid(len(panels))
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
        _whole_ticks(panel)
    axes[0].set_ylabel("over plain decoding")
    return Chart(name, title, "Line: measured, with its 95 % interval. Dashed: predicted from alpha, c and the measured "
                 "v(K+1) (Leviathan et al., Theorem 3.8).", figure, rows)


def _twins(rows: Sequence[dict], temperature: float, name: str, title: str, x: str, y: str,
           points: Callable[[dict], list[tuple[int, float | None]]], top: float | None = None) -> Chart | None:
    """A panel for each drafter: the baseline grey, the best distilled in colour and named."""
    drafters = {}
    for drafter, methods in by_method(rows).items():
        best = best_distilled(methods, temperature)
        pair = {method: figures for method in (BASELINE, best)
                if method in methods and (figures := figures_at(methods[method][0], temperature))}
        if pair:
            drafters[drafter] = pair
    if not drafters:
        return None
    figure, axes = _grid(len(drafters), sharey=True)
    highest = 0.0
    for panel, (drafter, pair) in zip(axes, drafters.items(), strict=True):
        panel.set_title(drafter, loc="left", color=INK)
        for method, figures in pair.items():
            known = [(place, value) for place, value in points(figures) if value is not None]
            colour = BAR if method == BASELINE else ACCENT
            panel.plot(*zip(*known, strict=True), color=colour, marker="o", markersize=3.5)
            highest = max(highest, *(value for _, value in known))
            if method != BASELINE:
                panel.set_title(method, loc="right", color=ACCENT, fontsize=10)
        panel.set_xlabel(x)
        _whole_ticks(panel)
    axes[0].set_ylim(0, top or highest * 1.1)
    axes[0].set_ylabel(y)
    return Chart(f"{name}-T{temperature:g}", f"{title} at T={temperature:g}",
                 "Grey: baseline; coloured: the best distilled run.", figure, _of(by_method(rows)))


def _longest(figures: dict) -> dict:
    return max(figures["rows"], key=lambda one: one["draft_tokens"])


def _grid(panels: int, **options):
    """Two panels beside each other, as many rows as it takes; what is left over is not shown."""
    down = -(-panels // 2)
    figure, axes = blank(20 + 175 * down, across=min(2, panels), down=down, **options)
    flat = list(axes.flat)
    for extra in flat[panels:]:
        extra.set_visible(False)
    return figure, flat[:panels]


def _whole_ticks(panel) -> None:
    from matplotlib.ticker import MaxNLocator

    panel.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    panel.yaxis.set_major_locator(MaxNLocator(4))


def _of(drafters: dict[str, dict[str, list[dict]]]) -> list[dict]:
    return [row for methods in drafters.values() for found in methods.values() for row in found]
