"""`foredraft report`: the records as an HTML page, as pictures, and as the tables of README.md and docs/."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from foredraft.errors import UserError
from foredraft.outputs import check_file, check_folder

# The sample: long enough that both drafters propose tokens, short enough to read.
SAMPLE_TOKENS, SAMPLE_DRAFTER, SAMPLE_K = 96, "lookup+ngram", 5


def report(
    records: Annotated[Path, typer.Argument(help="A record file, or a folder of them.")] = Path("bench/results"),
    out: Annotated[Path | None, typer.Option(help="Folder for index.html and the pictures.")] = None,
    docs: Annotated[bool, typer.Option("--docs", help="Regenerate the tables and pictures of README.md and docs/.")] = False,
    sample: Annotated[int, typer.Option(min=1, help="Number of the sample text that the page shows.")] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="Print what was made as JSON.")] = False,
) -> None:
    """Make an HTML page, pictures, or the tables of README.md and docs/ from records."""
    from foredraft.bench.report import charts, collection, generated_sections, page

    if out is None and not docs:
        raise UserError("report: give --out DIR, --docs, or both")
    try:
        import matplotlib  # noqa: F401  refused before anything is written
    except ImportError:
        raise UserError("report: the charts need matplotlib; pip install 'foredraft[bench]'") from None
    if out is not None:
        check_folder(out, [])
        check_file(out / "index.html", [], lambda file: "foredraft" in file.read_text(encoding="utf-8", errors="replace"),
                   "page of foredraft report")
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
    if docs:
        generated_sections.update(Path("."), found)
        made |= {"docs": list(generated_sections.blocks(found))}
    if as_json:
        print(json.dumps(made))
        return
    if out is not None:
        print(f"{made['page']}: {len(built.sections)} sections, {made['pictures']} charts from {len(found.all)} records")
    if docs:
        print(f"README.md and docs/: {', '.join(made['docs'])} regenerated")


def decode_sample(number: int):
    """One of the sample texts, decoded with drafts by the embedded model."""
    import foredraft
    from foredraft.bench.harness.cases import sample_texts
    from foredraft.bench.report.page import Sample
    from foredraft.cli import coloured_text as show
    from foredraft.cli.output import announce_compilation

    texts = sample_texts()
    if number > len(texts):
        raise UserError(f"--sample is {number}; there are {len(texts)} sample texts")
    name, text = texts[number - 1]
    announce_compilation()
    model = foredraft.load(drafter=SAMPLE_DRAFTER)
    out = model.generate([text], max_new_tokens=SAMPLE_TOKENS, draft_tokens=SAMPLE_K)
    pieces = show.pieces(out.token_ids[0], show.proposer_names(out)[0], model.tokenizer)
    return Sample(name, SAMPLE_DRAFTER, SAMPLE_K, out.stats.steps, pieces)
