"""The command `foredraft`. Everything heavy is imported inside the command that needs it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

import foredraft
from foredraft.cli import bench as cli_bench
from foredraft.cli import compact as cli_compact
from foredraft.cli import eval as cli_eval
from foredraft.cli import matrix as cli_matrix
from foredraft.cli import ngram as cli_ngram
from foredraft.cli import pseudo as cli_pseudo
from foredraft.cli import report as cli_report
from foredraft.cli import train as cli_train
from foredraft.cli import train_drafter as cli_train_drafter
from foredraft.cli import tune_skip as cli_tune_skip
from foredraft.cli import tune_tree as cli_tune_tree
from foredraft.errors import UserError

app = typer.Typer(
    help="Lossless speculative decoding for T5.", no_args_is_help=True, add_completion=False, rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


def main() -> None:
    """Run the command line. What a user can mend ends in one line on stderr and exit code 2."""
    try:
        app()
    except UserError as error:
        _fail(str(error))
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError) as error:
        _fail(f"{error.filename}: {error.strerror}" if error.filename else str(error))
    except BrokenPipeError:
        # the reader of our output has left, as `head` does; nothing more can be said to it
        sys.stderr.close()
        raise SystemExit(1) from None


def _fail(message: str) -> None:
    print(f"foredraft: {' '.join(message.split())}", file=sys.stderr)
    raise SystemExit(2)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"foredraft {foredraft.__version__}")
        raise typer.Exit()


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Lossless speculative decoding for T5."""


@app.command()
def summarize(
    files: Annotated[list[str] | None, typer.Argument(metavar="[FILE ...|-]", help="Texts; - is stdin.")] = None,
    target: Annotated[str | None, typer.Option(help="T5 checkpoint, folder or hub id; default: embedded.")] = None,
    drafter: Annotated[
        str, typer.Option(
            help="lookup, ngram, ngram:PATH, lookup+ngram, lstm, self:SKIP, a folder, tree:SHAPE:NAME, cascade:A,B, "
                 "staged:A,B; auto; none.")
    ] = "lookup",
    draft_tokens: Annotated[
        str | None, typer.Option(
            help="Tokens drafted a round (K); 0 is plain decoding, auto adapts; default: 5, or auto of drafter auto.")
    ] = None,
    verification: Annotated[str, typer.Option(help="Of sampled drafts: token or block.")] = "token",
    big_little: Annotated[
        str | None, typer.Option(help="FALLBACK,ROLLBACK of Big Little Decoder, such as 0.6,4: LOSSY; default: off.")
    ] = None,
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 0.0,
    top_k: Annotated[int, typer.Option(help="Sample from the k likeliest; 0 is off.")] = 0,
    top_p: Annotated[float, typer.Option(help="Sample from the likeliest of this mass; 1 is off.")] = 1.0,
    seed: Annotated[int | None, typer.Option(help="Makes sampling repeatable.")] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Longest summary, in tokens.")] = 128,
    batch_size: Annotated[int, typer.Option(help="Texts decoded together.")] = 8,
    input: Annotated[Path | None, typer.Option(help="In place of FILEs: .jsonl(.gz) with 'article', and 'id'.")] = None,
    output: Annotated[Path | None, typer.Option(help="Its summaries, a line each; the same command goes on.")] = None,
    in_order: Annotated[bool, typer.Option("--in-order", help="Write them as they stand in --input.")] = False,
    max_source: Annotated[int | None, typer.Option(help="Source tokens kept; default: the target's.")] = None,
    strict: Annotated[bool, typer.Option("--strict", help="A longer article fails instead of being cut.")] = False,
    kv_memory: Annotated[float | None, typer.Option(help="GB for keys and values; default: half of what is free.")] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    dtype: Annotated[str, typer.Option(help="Of the encoder: float32 or bfloat16.")] = "float32",
    weights: Annotated[str | None, typer.Option(help="The decoder's: fp32, bf16 or int8; default: as stored.")] = None,
    stats: Annotated[bool, typer.Option("--stats", help="Say on stderr what the drafts gained.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="End with one line of JSON.")] = False,
) -> None:
    """Summarise texts, or a whole file of articles; on a terminal, accepted drafts of texts are coloured."""
    from foredraft.cli import coloured_text as show
    from foredraft.engine.params import draft_length, thresholds

    if (input is None) != (output is None) or (input is not None and files):
        raise UserError("give FILEs, or --input FILE.jsonl with --output FILE.jsonl")
    names, texts = _read(files or []) if input is None else ([], [])
    show.announce_compilation()
    drafter = None if drafter == "none" else drafter
    model = foredraft.load(target, drafter=drafter, device=device, dtype=dtype, weights=weights)
    config = dict(
        max_new_tokens=max_new_tokens, do_sample=temperature != 0,
        temperature=temperature if temperature != 0 else 1.0, top_k=top_k, top_p=top_p, seed=seed,
        batch_size=batch_size, max_source=max_source, kv_memory=None if kv_memory is None else int(kv_memory * 1e9),
        verification=verification, big_little=thresholds(big_little),
        **({} if draft_tokens is None else {"draft_tokens": draft_length(draft_tokens)}),
    )
    if input is not None:
        _summarize_file(model, input, output, in_order, strict, stats, as_json, config)
        return
    out = _generate_and_print(model, names, texts, config)
    for warning in out.warnings:
        print(f"foredraft: {warning}", file=sys.stderr)
    _say_if_lossy(out.stats)
    if stats:
        print(_gain(out.stats), file=sys.stderr)
    if as_json:
        from foredraft.cli.coloured_text import proposer_names

        summaries = [
            {"file": name, "summary": text, "token_ids": ids, "proposers": proposers}
            for name, text, ids, proposers in zip(names, out.texts, out.token_ids, proposer_names(out), strict=True)
        ]
        known = {"model": model.describe(), "stats": out.stats.as_dict(), "warnings": out.warnings}
        print(json.dumps(known | {"summaries": summaries}))


def _summarize_file(model, source: Path, output: Path, in_order: bool, strict: bool, stats: bool, as_json: bool,
                    config: dict) -> None:
    """`--input` to `--output`. Exit code 1 where an article failed, or after an interruption."""
    from foredraft.cli.batch_summaries import summarise_file

    try:
        done = summarise_file(model, source, output, in_order=in_order, truncation=not strict, **config)
    except KeyboardInterrupt:
        print(f"foredraft: interrupted; the same command goes on in {output}", file=sys.stderr)
        raise typer.Exit(1) from None
    found = done.pop("stats")
    _say_if_lossy(found)
    print(f"foredraft: {done['articles']} articles summarised, {done['done_before']} were there before, {done['failed']} "
          f"failed, {done['cut']} were cut to the longest source", file=sys.stderr)
    if stats:
        print(_gain(found), file=sys.stderr)
    if as_json:
        print(json.dumps({"model": model.describe(), "output": str(output), **done, "stats": found.as_dict()}))
    if done["failed"]:
        raise typer.Exit(1)


def _read(files: list[str]) -> tuple[list[str], list[str]]:
    """Names and texts of the files; `-`, or no name and no terminal, is standard input."""
    if not files and sys.stdin.isatty():
        raise UserError("no text; name a FILE, or - to read standard input")
    texts = []
    for name in files or ["-"]:
        raw = sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()
        try:
            text = raw.decode("utf-8").strip()
        except UnicodeDecodeError as error:
            raise UserError(f"{name}: not UTF-8 at byte {error.start}; convert the file to UTF-8") from None
        if not text:
            raise UserError(f"{name}: the text is empty; give some text to summarise")
        texts.append(text)
    return files or ["-"], texts


def _generate_and_print(model, names: list[str], texts: list[str], config: dict):
    """Summaries on stdout: streamed and coloured on a terminal, bare text elsewhere. Returns the Output."""
    from rich.console import Console

    from foredraft.cli import coloured_text as show

    if model.tokenizer is None:
        raise UserError(f"{model.path}: tokenizer.json is missing, so texts cannot be read; put it beside config.json")

    console = Console(highlight=False)
    if not console.is_terminal:
        out = model.generate(texts, **config)
        for name, text in zip(names, out.texts, strict=True):
            if len(names) > 1:
                print(f"== {name}")
            print(text)
        return out
    if len(texts) > 1:
        out = model.generate(texts, **config)
        show.summaries(console, names, out, model.tokenizer)
        return out
    with show.Stream(console, model.tokenizer) as stream:
        out = model.generate(texts, streamer=stream, **config)
        stream.finish(out)
    console.print(show.legend(show.proposer_names(out)))
    return out


def _say_if_lossy(stats) -> None:
    if stats.lossy:
        print(f"foredraft: LOSSY ({stats.lossy}): not what the target alone would write", file=sys.stderr)


def _gain(stats) -> str:
    """The figures of a call in a few words."""
    seconds = ", ".join(f"{part} {value:.2f} s" for part, value in stats.seconds.items())
    return (
        (f"LOSSY ({stats.lossy}): " if stats.lossy else "") +
        f"{stats.emitted} tokens in {stats.steps} rounds ({stats.tokens_per_step:.2f} a round); accepted "
        f"{stats.accepted} of {stats.tested} tested drafts ({stats.acceptance_rate:.0%}), "
        f"drafts in {stats.coverage:.0%} of rounds; {stats.tokens_per_second:.0f} tokens a second of decoding; "
        f"{seconds}"
    )


cli_bench.register(app)
cli_compact.register(app)
cli_pseudo.register(app)
cli_eval.register(app)
cli_matrix.register(app)
cli_report.register(app)
cli_train.register(app)
cli_train_drafter.register(app)
cli_ngram.register(app)
cli_tune_skip.register(app)
cli_tune_tree.register(app)
