"""The chart of bench.studies.methods_comparison: the speed-up of each drafter at each setting."""

from __future__ import annotations

from collections.abc import Sequence

from foredraft.bench.report.charts import ACCENT, BAR, INK, MUTED, RULE, SOFT, Chart, dashed, grid, lines_of
from foredraft.bench.report.collection import machine_name
from foredraft.bench.report.methods_table import fastest_by_drafter
from foredraft.engine.params import AUTO


def speed_ups(rows: Sequence[dict]) -> Chart:
    """A panel for each setting of rows from one machine: each drafter's fastest configuration over plain decoding,
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
                 f"interval; coloured: "
                 "drafter auto. Hollow: simulated at the costs of a large target on a GPU.", figure, list(rows))
