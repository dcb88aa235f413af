"""Every option that two commands share, declared once. A command gives the default: `target: options.Target = None`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from foredraft.engine.drafters import registry
from foredraft.engine.params import AUTO
from foredraft.errors import UserError
from foredraft.outputs import check_folder

# the model
Target = Annotated[
    str | None, typer.Option("--target", help="T5 checkpoint: folder or Hugging Face name. Default: the embedded model.")]
Adapter = Annotated[
    str | None, typer.Option("--adapter", help="LoRA adapter (PEFT's format) to merge: folder or Hugging Face name.")]
Revision = Annotated[
    str | None, typer.Option("--revision", help="Branch, tag or commit of a checkpoint on the hub. Default: main.")]
Drafter = Annotated[
    str, typer.Option(
        "--drafter", help=f"One of {registry.specs()}.")]
Device = Annotated[str, typer.Option("--device", help="cpu or cuda.")]
Dtype = Annotated[str, typer.Option("--dtype", help="Encoder: float32, bfloat16, int8 or auto.")]
Weights = Annotated[
    str | None, typer.Option("--weights", help="Storage of the decoder: fp32, bf16, int8 or int4. Default: as stored.")]
Threads = Annotated[
    int | None, typer.Option("--threads", min=1, help="CPU threads. Default: one for each core.")]

# decoding
DraftTokens = Annotated[
    str | None, typer.Option(
        "--draft-tokens", help="Tokens drafted a step (K): a number, 0 (plain decoding) or auto. Default: 5; auto with "
                               "--drafter auto.")]
MaxDraftTokens = Annotated[int, typer.Option("--draft-tokens", min=0, help="Most tokens drafted a step (K).")]
DraftTokensList = Annotated[
    str | None, typer.Option("--draft-tokens", help="Tokens drafted a step (K), separated by commas.")]
Temperature = Annotated[float, typer.Option("--temperature", help="0 is greedy decoding.")]
TemperatureList = Annotated[
    str | None, typer.Option("--temperatures", "--temperature", help="Separated by commas; 0 is greedy decoding.")]
TopK = Annotated[int, typer.Option("--top-k", help="Sample from the K most likely tokens; 0 is off.")]
TopP = Annotated[
    float, typer.Option("--top-p", help="Sample from the most likely tokens that hold this probability; 1 is off.")]
Seed = Annotated[int | None, typer.Option("--seed", help="Seed of the sampling; makes it repeatable.")]
SamplingSeed = Annotated[int, typer.Option("--seed", min=0, help="Seed of the sampling.")]
Verification = Annotated[str, typer.Option("--verification", help="Verify sampled drafts by token or by block.")]
BigLittle = Annotated[
    str | None, typer.Option(
        "--big-little", help="FALLBACK,ROLLBACK of Big Little Decoder, such as 0.6,4. LOSSY, greedy only. Default: off.")]
MaxNewTokens = Annotated[
    int, typer.Option("--max-new-tokens", "--gen-length", help="Longest output, in tokens.")]
MinNewTokens = Annotated[
    int | None, typer.Option("--min-new-tokens", help="Shortest output, in tokens.")]
RepetitionPenalty = Annotated[
    float | None, typer.Option("--repetition-penalty", help="Above 1: tokens in the output so far become less likely.")]
NoRepeatNgramSize = Annotated[
    int | None, typer.Option("--no-repeat-ngram-size", help="No n-gram of this size occurs twice in the output.")]
NumBeams = Annotated[int | None, typer.Option("--num-beams", help="Beam search with this many beams; 1 is greedy.")]
LengthPenalty = Annotated[
    float | None, typer.Option("--length-penalty", help="Beam search: above 0 favours long outputs, below 0 short ones.")]
EarlyStopping = Annotated[
    str | None, typer.Option("--early-stopping", help="When beam search ends: true, false or never.")]
Choices = Annotated[
    list[str] | None, typer.Option("--choices", help="The output must be one of the given texts; repeatable.")]
Regex = Annotated[str | None, typer.Option("--regex", help="The output must match this regular expression.")]
JsonSchema = Annotated[
    Path | None, typer.Option("--json-schema", metavar="FILE", help="The output must be JSON of the schema in this file.")]
Settings = Annotated[
    list[str] | None, typer.Option(
        "--set", metavar="NAME=VALUE", help="Any other setting of Python's SamplingParams, such as min_p=0.1 or "
                                            "'stop_strings=[\"END\"]'; repeatable.")]
MaxSource = Annotated[
    int | None, typer.Option("--max-source", help="Source tokens kept. Default: the target's own limit.")]
BatchSize = Annotated[int, typer.Option("--batch-size", help="Texts decoded together.")]
BatchSizeList = Annotated[
    str | None, typer.Option("--batch-sizes", "--batch-size", help="Texts decoded together, separated by commas.")]
KvMemory = Annotated[
    float | None, typer.Option(
        "--kv-memory", help="Memory for keys and values, in GB. Default: half of the machine's available memory.")]

# data
Data = Annotated[
    Path | None, typer.Option("--data", help="Articles, .jsonl(.gz) of 'article' and 'highlights'. Default: sample texts.")]
Articles = Annotated[Path, typer.Option("--data", help="Articles, .jsonl(.gz) with 'article' on every line.")]
Limit = Annotated[int | None, typer.Option("--limit", min=1, help="Use only the first articles.")]
Field = Annotated[str, typer.Option("--field", help="Name of the text in a line or column.")]

# drafters on disk
CkptPath = Annotated[
    Path | None, typer.Option("--ckpt-path", help="Folder of a trained drafter, or an n-gram table.")]
PseudoDatasetPath = Annotated[
    list[Path] | None, typer.Option("--pseudo-dataset-path", help="Output of `foredraft pseudo`; repeatable.")]
DraftVocab = Annotated[
    int, typer.Option("--draft-vocab", min=0, help="Draft vocabulary: the most frequent tokens; 0 is all.")]

# n-gram tables
Smoothing = Annotated[
    str, typer.Option("--smoothing", help="N-grams: kneser-ney, absolute, laplace or stupid-backoff.")]
Discount = Annotated[
    float | None, typer.Option("--discount", help="Subtracted from every n-gram count. Default: estimated.")]
Added = Annotated[float, typer.Option("--added", help="Laplace smoothing: added to every n-gram count.")]
Factor = Annotated[float, typer.Option("--factor", help="Stupid back-off: factor of each shorter n-gram.")]
Quantise = Annotated[bool, typer.Option("--quantise", "--quantize", help="Store n-gram probabilities in 16 bits.")]
MinCount = Annotated[
    int, typer.Option("--min-count", min=1, help="Drop n-grams longer than 1 token that occur less often.")]
MaxSize = Annotated[
    float | None, typer.Option("--max-size", min=0.0, help="Largest n-gram table, in MB (10^6 bytes).")]
VocabSize = Annotated[
    int | None, typer.Option("--vocab-size", min=2, help="Vocabulary of the target. Default: that of its files.")]

# training
Steps = Annotated[int, typer.Option("--steps", min=1, help="Updates in all.")]
WarmupSteps = Annotated[int, typer.Option("--warmup-steps", min=0, help="Updates of linear warm-up.")]
Bf16 = Annotated[bool, typer.Option("--bf16", help="Multiply in bfloat16; weights stay in float32.")]
Resume = Annotated[bool, typer.Option("--resume", help="Continue from the newest checkpoint.")]
TrainingSeed = Annotated[int, typer.Option("--seed", help="Seed of weights, data order and samples.")]
Workers = Annotated[int, typer.Option("--workers", min=1, help="Processes.")]

# measuring
Repeats = Annotated[int, typer.Option("--repeats", min=1, help="Timed passes.")]
Results = Annotated[
    Path, typer.Option("--out", callback=lambda out: check_folder(out, []) or out,
                       help="Folder of the records; this run is appended.")]

# output
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace files that exist.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as one line of JSON, last.")]
Wide = Annotated[bool, typer.Option("--wide", help="Print all columns of the tables.")]


def parse_numbers(flag: str, text: str, kind: type, low: float) -> list:
    """Numbers of at least `low`, separated by commas. UserError names the flag."""
    try:
        values = [kind(part) for part in text.split(",")]
    except ValueError:
        values = []
    if not values or not all(low <= value < float("inf") for value in values):
        raise UserError(f"{flag} is {text!r}; give numbers of at least {low}, separated by commas")
    return values


def parse_draft_tokens(text: str) -> int | str:
    """`--draft-tokens` as typed: a whole number, or "auto"."""
    if text == AUTO or text.lstrip("-").isdigit():
        return text if text == AUTO else int(text)
    raise UserError(f"--draft-tokens is {text!r}; give a whole number or {AUTO}")


def parse_early_stopping(text: str | None) -> bool | str | None:
    """`--early-stopping` as typed: true, false or never."""
    if text is None or text == "never":
        return text
    if text.lower() not in ("true", "false"):
        raise UserError(f"--early-stopping is {text!r}; give true, false or never")
    return text.lower() == "true"


def parse_big_little(text: str | None) -> tuple[float, float] | None:
    """`--big-little` as typed: FALLBACK,ROLLBACK."""
    if text is None:
        return None
    try:
        fallback, rollback = map(float, text.split(","))
    except ValueError:
        raise UserError(f"--big-little is {text!r}; give FALLBACK,ROLLBACK, such as 0.6,4") from None
    return fallback, rollback
