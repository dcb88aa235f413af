"""`foredraft report`: the records as one page, as pictures, and as the README's tables."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from foredraft.errors import UserError

# Long enough for both drafters to show, short enough to read.
SAMPLE_TOKENS, SAMPLE_DRAFTER, SAMPLE_K = 96, "lookup+ngram", 5


def register(app: typer.Typer) -> None:
    """Add `report` to the application."""
    app.command("report")(report)


def report(
    records: Annotated[Path, typer.Argument(help="A record file, or a folder of them.")] = Path("bench/results"),
    out: Annotated[Path | None, typer.Option(help="Folder for index.html and the pictures.")] = None,
    readme: Annotated[bool, typer.Option("--readme", help="Write README.md's tables and pictures anew.")] = False,
    sample: Annotated[int, typer.Option(min=1, help="Which sample text is shown with its drafts.")] = 1,
) -> None:
    """Make a page, pictures, or the README's tables from records. The last line is JSON."""
    from foredraft.bench.report import charts, collection, page
    from foredraft.bench.report import generated_sections as readme_page

    if out is None and not readme:
        raise UserError("report: name what to make: --out DIR, --readme, or both")
    try:
        import matplotlib  # noqa: F401  asked for before anything is written
    except ImportError:
        raise UserError("report: the charts need matplotlib; pip install 'foredraft[bench]'") from None
    found = collection.collect(records)
    made = {"rows": len(found.all)}
    if out is not None:
        built = page.build(found, decode_sample(sample))
        out.mkdir(parents=True, exist_ok=True)
        for chart in built.charts:
            charts.save_png(chart, out / f"{chart.name}.png")
        partial = out / ".index.html"
        partial.write_text(page.render(built, found), encoding="utf-8")
        partial.replace(out / "index.html")
        made |= {"page": str(out / "index.html"), "pictures": len(built.charts)}
        print(f"{made['page']}: {len(built.sections)} sections, {made['pictures']} charts from {len(found.all)} rows")
    if readme:
        readme_page.update(Path("README.md"), found, records if records.is_dir() else records.parent)
        made |= {"readme": "README.md"}
        print("README.md: tables and pictures written anew")
    print(json.dumps(made))


def decode_sample(number: int):
    """A bench.page.Sample: one of our own texts, decoded with drafts by the embedded model."""
    import foredraft
    from foredraft.bench.harness.cases import sample_texts
    from foredraft.bench.report.page import Sample
    from foredraft.cli import coloured_text as show

    texts = sample_texts()
    if number > len(texts):
        raise UserError(f"--sample is {number}; there are {len(texts)} sample texts")
    name, text = texts[number - 1]
    show.announce_compilation()
    model = foredraft.load(drafter=SAMPLE_DRAFTER)
    out = model.generate([text], max_new_tokens=SAMPLE_TOKENS, draft_tokens=SAMPLE_K)
    pieces = show.pieces(out.token_ids[0], show.proposer_names(out)[0], model.tokenizer)
    return Sample(name, SAMPLE_DRAFTER, SAMPLE_K, out.stats.steps, pieces)
