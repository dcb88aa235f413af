"""`foredraft generate` and `foredraft summarize`: one command with the defaults of two tasks."""

from __future__ import annotations

import inspect
import json
import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Annotated

import typer

import foredraft
from foredraft.cli import options
from foredraft.cli.output import announce_compilation, interrupted, notice
from foredraft.errors import UserError


def _run(
    command: str,
    files: Annotated[list[str] | None, typer.Argument(metavar="[FILE ...|-]", help="Texts; - is standard input.")] = None,
    text: Annotated[list[str] | None, typer.Option("--text", help="A text, in place of FILE; repeatable.")] = None,
    prefix: Annotated[
        str | None, typer.Option(
            "--prefix", help="Put before every text, such as 'translate English to German: '. summarize takes it from the "
                             "checkpoint's config.json; otherwise the default is none.")
    ] = None,
    input: Annotated[Path | None, typer.Option(help="In place of FILE: .jsonl(.gz) with a text on every line.")] = None,
    output: Annotated[Path | None, typer.Option(help="With --input: .jsonl of results; run again to resume.")] = None,
    field: Annotated[str, typer.Option(help="With --input: name of the text in a line.")] = "text",
    in_order: Annotated[bool, typer.Option("--in-order", help="Write --output in the order of --input.")] = False,
    strict: Annotated[bool, typer.Option("--strict", help="Refuse a text that is too long; otherwise it is cut.")] = False,
    target: options.Target = None,
    adapter: options.Adapter = None,
    revision: options.Revision = None,
    drafter: options.Drafter = "lookup",
    draft_tokens: options.DraftTokens = None,
    verification: options.Verification = "token",
    big_little: options.BigLittle = None,
    temperature: options.Temperature = 0.0,
    top_k: options.TopK = 0,
    top_p: options.TopP = 1.0,
    seed: options.Seed = None,
    max_new_tokens: options.MaxNewTokens = 256,
    min_new_tokens: options.MinNewTokens = None,
    repetition_penalty: options.RepetitionPenalty = None,
    no_repeat_ngram_size: options.NoRepeatNgramSize = None,
    num_beams: options.NumBeams = None,
    length_penalty: options.LengthPenalty = None,
    early_stopping: options.EarlyStopping = None,
    choices: options.Choices = None,
    regex: options.Regex = None,
    json_schema: options.JsonSchema = None,
    settings: options.Settings = None,
    batch_size: options.BatchSize = 8,
    max_source: options.MaxSource = None,
    kv_memory: options.KvMemory = None,
    device: options.Device = "cpu",
    dtype: options.Dtype = "float32",
    weights: options.Weights = None,
    threads: options.Threads = None,
    stats: Annotated[bool, typer.Option("--stats", help="Print on stderr what the drafts gained.")] = False,
    as_json: options.Json = False,
) -> None:
    """The body of both commands; `command` is the name of one of them."""
    if (input is None) != (output is None) or sum(map(bool, (files, text, input))) > 1:
        raise UserError("give FILEs, or --text TEXT, or --input FILE.jsonl with --output FILE.jsonl")
    from foredraft.cli.sampling_settings import parse_settings

    config = dict(
        max_new_tokens=max_new_tokens, do_sample=temperature != 0,
        temperature=temperature if temperature != 0 else 1.0, top_k=top_k, top_p=top_p, seed=seed,
        batch_size=batch_size, max_source=max_source, kv_memory=None if kv_memory is None else int(kv_memory * 1e9),
        verification=verification, big_little=options.parse_big_little(big_little),
        **({} if draft_tokens is None else {"draft_tokens": options.parse_draft_tokens(draft_tokens)}),
        **parse_settings(json_schema, settings, min_new_tokens=min_new_tokens, repetition_penalty=repetition_penalty,
                         no_repeat_ngram_size=no_repeat_ngram_size, num_beams=num_beams, length_penalty=length_penalty,
                         early_stopping=options.parse_early_stopping(early_stopping), choices=choices or None,
                         regex=regex),
    )
    _check(config, input, output)
    names, texts = ([], []) if input else _texts(text) if text else _read(files or [])
    announce_compilation()
    if threads is not None:
        from foredraft.engine.threads import set_threads

        set_threads(threads)
    model = foredraft.load(target, drafter=None if drafter == "none" else drafter, device=device, dtype=dtype,
                           weights=weights, adapter=adapter, revision=revision)
    if dtype == "auto":
        notice(f"the encoder runs in {model.dtype}")
    if model.tokenizer is None:
        raise UserError(f"{model.path}: there is no tokenizer.json or spiece.model, so texts cannot be read; put one beside "
                        "config.json")
    if prefix is None:
        prefix = summarization_prefix(model.path) if command == "summarize" else ""
    key = "summary" if command == "summarize" else "output"
    if input is not None:
        _generate_file(model, input, output, key, field, prefix, in_order, strict, stats, as_json, config)
        return
    out = _generate_and_print(model, names, [prefix + one for one in texts], config)
    for warning in out.warnings:
        notice(warning)
    _warn_if_lossy(out.stats)
    if stats:
        notice(stats_line(out.stats))
    if as_json:
        from foredraft.cli.coloured_text import proposer_names

        results = [
            {"file": name, key: found, "token_ids": tokens, "proposers": proposers}
            for name, found, tokens, proposers in zip(names, out.texts, out.token_ids, proposer_names(out), strict=True)
        ]
        known = {"model": model.describe(), "prefix": prefix, "stats": out.stats.as_dict(), "warnings": out.warnings}
        print(json.dumps(known | {"summaries" if key == "summary" else "outputs": results}))


def _check(config: dict, source: Path | None, output: Path | None) -> None:
    """Refuse or name what is wrong with the options, before the model is loaded."""
    from foredraft.cli.generate_file import check_output, open_lines, split_settings
    from foredraft.cli.journal import Journal
    from foredraft.cli.settings_file import path_of

    params, batch = split_settings(**config)
    batch.check(params)
    ignored = [flag for flag, given in (("--top-k", params.top_k), ("--top-p", params.top_p < 1),
                                        ("--seed", params.seed is not None)) if given]
    if not params.do_sample and ignored:
        notice(f"{' and '.join(ignored)} without effect at temperature 0; give --temperature 1 to sample")
    if source is not None:
        open_lines(source).close()
        check_output(output, source)
        if output.is_file():
            Journal(output, path_of(output).is_file()).close()


def _command(name: str, help: str, **defaults) -> Callable:
    """_run as a command of its own, with these defaults."""
    @wraps(_run)
    def run(**values):
        _run(name, **values)

    signature = inspect.signature(_run, eval_str=True)
    parameters = [parameter.replace(default=defaults.get(parameter.name, parameter.default))
                  for parameter in signature.parameters.values() if parameter.name != "command"]
    # typer reads a command's options from its signature
    vars(run)["__signature__"] = signature.replace(parameters=parameters)
    run.__name__, run.__doc__ = name, help
    return run


generate = _command("generate", "Generate text from text with a T5. On a terminal, accepted drafts are coloured.")
summarize = _command(
    "summarize", "Summarise texts, or a file of articles. On a terminal, accepted drafts are coloured.",
    field="article", max_new_tokens=128)


def summarization_prefix(checkpoint: Path) -> str:
    """What config.json says is put before a text to summarise; "" where it says nothing."""
    from foredraft.engine.arguments import task_entries

    return task_entries(Path(checkpoint), "summarization").get("prefix") or ""


def stats_line(stats) -> str:
    """The figures of a call in one line."""
    seconds = ", ".join(f"{part} {value:.2f} s" for part, value in stats.seconds.items())
    lossy = f"LOSSY ({stats.lossy}): " if stats.lossy else ""
    return lossy + (
        f"{stats.emitted} tokens in {stats.steps} steps ({stats.tokens_per_step:.2f} a step); accepted "
        f"{stats.accepted} of {stats.tested} verified draft tokens ({stats.acceptance_rate:.0%}), "
        f"drafts in {stats.coverage:.0%} of steps; {stats.tokens_per_second:.0f} tokens a second of decoding; {seconds}"
    )


def _generate_file(model, source: Path, output: Path, key: str, field: str, prefix: str, in_order: bool, strict: bool,
                   stats: bool, as_json: bool, config: dict) -> None:
    """`--input` to `--output`. Exit code 1 where a text failed, or after an interruption."""
    from foredraft.cli.generate_file import generate_file

    try:
        done = generate_file(model, source, output, key=key, field=field, prefix=prefix, in_order=in_order,
                             truncation=not strict, **config)
    except KeyboardInterrupt:
        interrupted(f"run the same command again to resume {output}")
    found = done.pop("stats")
    _warn_if_lossy(found)
    notice(f"{done['articles']} texts done, {done['done_before']} were done before, {done['failed']} failed, {done['cut']} "
           "were cut to the longest source")
    if stats:
        notice(stats_line(found))
    if as_json:
        print(json.dumps({"model": model.describe(), "prefix": prefix, "output": str(output), **done,
                          "stats": found.as_dict()}))
    if done["failed"]:
        raise typer.Exit(1)


def _texts(texts: list[str]) -> tuple[list[str], list[str]]:
    """Names and texts of --text."""
    if not all(text.strip() for text in texts):
        raise UserError("--text is empty; give some text")
    return [f"--text {number}" for number in range(1, len(texts) + 1)], texts


def _read(files: list[str]) -> tuple[list[str], list[str]]:
    """Names and texts of the files. Without a name, or for `-`, standard input is read."""
    if not files and sys.stdin.isatty():
        raise UserError("no text; give a FILE, --text TEXT, or - to read standard input")
    texts = []
    for name in files or ["-"]:
        raw = sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()
        try:
            text = raw.decode("utf-8").strip()
        except UnicodeDecodeError as error:
            raise UserError(f"{name}: not UTF-8 at byte {error.start}; convert the file to UTF-8") from None
        if not text:
            raise UserError(f"{name}: the text is empty; give some text")
        texts.append(text)
    return files or ["-"], texts


def _generate_and_print(model, names: list[str], texts: list[str], config: dict):
    """Print the results on stdout: streamed and coloured on a terminal, bare text elsewhere. Returns the Output."""
    from rich.console import Console

    from foredraft.cli import coloured_text

    console = Console(highlight=False)
    if not console.is_terminal:
        out = model.generate(texts, **config)
        for name, text in zip(names, out.texts, strict=True):
            if len(names) > 1:
                print(f"== {name}")
            print(text)
        return out
    beams = config.get("num_beams", model.settings.get("num_beams", 1))
    if len(texts) > 1 or beams > 1:
        out = model.generate(texts, **config)
        coloured_text.print_outputs(console, names, out, model.tokenizer)
        return out
    with coloured_text.Stream(console, model.tokenizer) as stream:
        out = model.generate(texts, streamer=stream, **config)
        stream.finish(out)
    console.print(coloured_text.legend(coloured_text.proposer_names(out)))
    return out


def _warn_if_lossy(stats) -> None:
    if stats.lossy:
        notice(f"LOSSY ({stats.lossy}): not what the target alone would write")
