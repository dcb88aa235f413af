"""The report's style sheet: one column of text, figures two abreast where there is room, one accent, two themes."""

from foredraft.bench.report.charts import PALETTE

DARK = {
    "ink": "#e4e8ec", "muted": "#98a3ae", "rule": "#333b43", "accent": "#45b8a9", "soft": "#2b6f67", "bar": "#77838f",
    "pale": "#49535d", "ground": "#14181c",
}


def _variables(colours: dict[str, str]) -> str:
    return " ".join(f"--{role}: {colour};" for role, colour in colours.items())


STYLE = f"""
:root {{ color-scheme: light dark; {_variables(PALETTE)} }}
@media (prefers-color-scheme: dark) {{ :root {{ {_variables(DARK)} }} }}
""" + """
* { box-sizing: border-box; }
body { margin: 0; background: var(--ground); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; -webkit-text-size-adjust: 100%; }
main { max-width: 1000px; margin: 0 auto; padding: 56px 20px 80px; }
h1, h2, .lede { font-family: ui-serif, Charter, Georgia, "DejaVu Serif", serif; }
h1 { font-size: 40px; line-height: 1.1; letter-spacing: -0.01em; font-weight: 600; margin: 0 0 18px; }
h2 { font-size: 25px; line-height: 1.2; font-weight: 600; margin: 72px 0 8px; padding-top: 20px;
  border-top: 1px solid var(--rule); }
h3 { font-size: 15px; line-height: 1.35; font-weight: 600; margin: 0; }
p { max-width: 68ch; margin: 0 0 14px; }
.lede { font-size: 20px; line-height: 1.5; max-width: 60ch; }
.quiet, figcaption p, footer { color: var(--muted); font-size: 14px; line-height: 1.5; }
a { color: var(--accent); }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 400px), 1fr)); gap: 40px 48px;
  margin: 28px 0; }
figure { margin: 0; min-width: 0; max-width: 480px; }
figure svg, figure img { display: block; width: 100%; height: auto; margin-top: 10px; }
figure svg text { font-family: inherit !important; font-variant-numeric: tabular-nums; }
figcaption p { margin: 2px 0 0; }
details { margin: 10px 0; font-size: 14px; }
summary { cursor: pointer; color: var(--muted); width: fit-content; padding: 6px 0; }
summary:hover { color: var(--ink); }
:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; }
pre, code { font: 13px/1.5 ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace; }
code { overflow-wrap: anywhere; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; margin: 4px 0 10px; }
.scroll { overflow-x: auto; margin: 8px 0 20px; }
table { border-collapse: collapse; font-size: 14px; font-variant-numeric: tabular-nums; white-space: nowrap; }
th { font-weight: 500; color: var(--muted); text-align: right; padding: 4px 14px 6px 0;
  border-bottom: 1px solid var(--rule); }
td { text-align: right; padding: 5px 14px 5px 0; border-bottom: 1px solid var(--rule); }
th:first-child, td:first-child { text-align: left; }
.sample { font-size: 18px; line-height: 2; max-width: 62ch; margin: 20px 0 10px; }
.sample span { padding: 3px 0; border-radius: 2px; box-shadow: inset 1px 0 var(--ground); }
.legend span { display: inline-block; padding: 0 7px; margin: 0 6px 4px 0; border-radius: 2px; }
.legend span:first-child { padding-left: 0; }
.by-lookup { background: color-mix(in srgb, var(--accent) 26%, transparent); }
.by-ngram { background: color-mix(in srgb, var(--ink) 15%, transparent); }
.by-other { background: color-mix(in srgb, var(--accent) 12%, transparent); border-bottom: 2px solid var(--accent); }
@media (max-width: 600px) {
  main { padding: 32px 16px 56px; } h1 { font-size: 31px; } .lede { font-size: 18px; }
  h2 { margin-top: 52px; font-size: 22px; }
  .sample { font-size: 17px; }
}
"""
