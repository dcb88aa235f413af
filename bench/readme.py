"""The README's table and picture, generated from records."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from foredraft.bench.report import accepted, gate, rate, times
from foredraft.errors import UserError

BEGIN, END = "<!-- table: begin -->", "<!-- table: end -->"
COLUMNS = (
    ("tok/s", rate("tokens_per_second")),
    ("speed-up", times("speed_up")),
    ("with encoding", times("speed_up_encoding")),
    ("tokens a round", accepted("tokens_per_round")),
    ("accepted / tested", accepted("rate")),
    ("alpha", accepted("alpha_tv")),
    ("articles that differ", gate),
)


def latest_runs(rows: Sequence[dict]) -> list[list[dict]]:
    """The newest run of every setting (temperature, batch size) on real articles, by those two; a run is its rows."""
    newest: dict[tuple, list[dict]] = {}
    for row in rows:
        key = (row["temperature"], row["batch_size"])
        if row["data"]["name"] == "sample texts":
            continue
        if key not in newest or row["time"] > newest[key][0]["time"]:
            newest[key] = []
        newest[key].append(row)
    return [newest[key] for key in sorted(newest)]


def table(runs: Sequence[Sequence[dict]]) -> str:
    """One Markdown table over all runs, and a line that says what was measured where."""
    row = runs[0][0]
    target, data, machine = row["target"], row["data"], row["machine"]
    lines = [
        f"{data['articles']} articles of {data['name']} ({data['source_tokens']['min']}-{data['source_tokens']['max']} "
        f"source tokens), the embedded target ({target['parameters'] / 1e6:.1f}M, {target['weights']}, `{target['hash']}`), "
        f"K={row['draft_tokens']}, up to {row['max_new_tokens']} new tokens, {row['repeats']} passes, {machine['cpu']}, "
        f"{target['threads']} threads. T=0 is greedy; speed-ups are over `plain` of the same run.", "",
        "| T | B | method | " + " | ".join(name for name, _ in COLUMNS) + " |",
        "|---|---|---|" + "---:|" * len(COLUMNS),
    ]
    absent = {}
    for run in runs:
        for row in run:
            if row["absent"] is None:
                cells = " | ".join(cell(row) for _, cell in COLUMNS)
                lines.append(f"| {row['temperature']:g} | {row['batch_size']} | {row['method']} | {cells} |")
            else:
                where = f"T={row['temperature']:g} B={row['batch_size']}"
                absent.setdefault((row["method"], row["absent"]), []).append(where)
    lines += [""] + [f"`{method}` is absent at {', '.join(where)}: {why}." for (method, why), where in absent.items()]
    commands = "\n".join(run[0]["command"] for run in runs)
    return "\n".join(lines) + f"\n\n```\n{commands}\n```\n"


def write_table(readme: Path, text: str) -> None:
    """Put `text` between the README's markers."""
    page = readme.read_text(encoding="utf-8")
    if page.count(BEGIN) != 1 or page.count(END) != 1:
        raise UserError(f"{readme}: needs the lines {BEGIN} and {END} once each, where the table goes")
    before, rest = page.split(BEGIN)
    _, after = rest.split(END)
    readme.write_text(f"{before}{BEGIN}\n{text}{END}{after}", encoding="utf-8")


def draw(runs: Sequence[Sequence[dict]], path: Path) -> None:
    """Bars of decoding speed for every method, a panel for every setting; dashed: plain decoding of the same run."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, len(runs), figsize=(3.4 * len(runs), 3.2), squeeze=False, layout="constrained")
    for panel, run in zip(panels[0], runs, strict=True):
        ran = [row for row in run if row["absent"] is None]
        names = [row["method"] for row in ran]
        speeds = [row["tokens_per_second"]["median"] for row in ran]
        # grey: without DecodeStats it is another's engine
        colours = ["#8a8f98" if row["acceptance"] is None else "#3f6fb5" if row["method"] == "plain" else "#e07b39"
                   for row in ran]
        bars = panel.barh(names, speeds, color=colours)
        panel.bar_label(bars, [f"{speed:,.0f}" for speed in speeds], padding=3, fontsize=8,
                        bbox=dict(facecolor="white", edgecolor="none", pad=0.5))
        panel.axvline(speeds[names.index("plain")], color="#3f6fb5", linestyle="--", linewidth=1)
        panel.invert_yaxis()
        panel.set_title(f"T={run[0]['temperature']:g}, B={run[0]['batch_size']}", fontsize=10)
        panel.set_xlabel("tokens a second, decoding", fontsize=8)
        panel.margins(x=0.2)
        panel.spines[["top", "right"]].set_visible(False)
        panel.tick_params(labelsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    plt.close(figure)
