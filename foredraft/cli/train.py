"""`foredraft train`"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated

import typer

from foredraft.errors import UserError

DRAFTERS = ("t5small", "t5shallow", "lstm", "cnn", "head", "ngram")


def flag(name: str, help: str, **options):
    """An option that may be typed with dashes or underscores."""
    dashed = name.replace("_", "-")
    return typer.Option(*dict.fromkeys((f"--{dashed}", f"--{name}")), help=help, **options)


def train(
    drafter: Annotated[str, typer.Option(help="t5small (encoder of its own), t5shallow, lstm, cnn, head or ngram.")],
    exp_name: Annotated[str | None, flag("exp_name", "Without --out, runs/EXP_NAME; default: the drafter.")] = None,
    data: Annotated[
        list[Path] | None,
        typer.Option(help="Pairs, .jsonl(.gz), or a folder with train and validation; default: $FOREDRAFT_DATA/cnndm."),
    ] = None,
    pseudo_dataset_path: Annotated[
        list[Path] | None, flag("pseudo_dataset_path", "What foredraft pseudo wrote; may be repeated.")
    ] = None,
    target: Annotated[Path | None, typer.Option(help="Folder of the target; default: embedded.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder, or the n-gram table's file.")] = None,
    loss: Annotated[float, typer.Option(help="Weight of cross-entropy on the human summaries.")] = 1.0,
    kd_loss: Annotated[float, flag("kd_loss", "Weight of the method's term; 0 is the baseline.")] = 1.0,
    kd_temp: Annotated[float, flag("kd_temp", "Temperature of both distributions in a divergence.")] = 8.0,
    distill_method: Annotated[
        str,
        typer.Option(
            "--distill-method", "--distill_method", "--distil-method", "--distil_method",
            help="Seq_KD, Supervised_KD, Imit_KD, f_Distill, on_policy_GKD or MiniLLM.",
        ),
    ] = "Seq_KD",
    divergence: Annotated[str, typer.Option(help="fkl, rkl, jsd or tvd: of Supervised_KD and f_Distill.")] = "fkl",
    beta: Annotated[float, typer.Option(help="Of jsd and on_policy_GKD: 0 is fkl, 1 is rkl.")] = 0.5,
    lmbda: Annotated[float | None, typer.Option(help="Share of steps on the drafter's own samples.")] = None,
    kd_data: Annotated[str | None, flag("kd_data", "Summaries of the method: gold, pseudo or mixed.")] = None,
    teacher_mix: Annotated[float, flag("teacher_mix", "MiniLLM: the target's share in the sampling.")] = 0.2,
    length_normalise: Annotated[
        bool, typer.Option("--length-normalise/--no-length-normalise", help="MiniLLM: rewards over tokens to come.")
    ] = True,
    teacher_logits: Annotated[
        int, flag("teacher_logits", "Keep this many of the target's logits on disk in place of the target.", min=0)
    ] = 0,
    ngram_n: Annotated[int, flag("ngram_n", "Longest n-gram, 1 to 8.")] = 4,
    steps: Annotated[int, typer.Option(min=1, help="Updates in all.")] = 2000,
    warmup_steps: Annotated[int, flag("warmup_steps", "Updates of linear warm-up.", min=0)] = 50,
    decay_steps: Annotated[int | None, flag("decay_steps", "Last updates, to zero; default: a quarter.", min=0)] = None,
    batch_size: Annotated[int, flag("batch_size", "Articles an update, over all processes.", min=1)] = 16,
    accumulation: Annotated[int, typer.Option(min=1, help="Parts that an update is computed in.")] = 1,
    lr: Annotated[float, typer.Option("--lr", "--learning-rate", "--learning_rate", min=0.0, help="AdamW.")] = 1e-3,
    seed: Annotated[int, typer.Option(help="Of weights, order and samples.")] = 0,
    init: Annotated[str | None, typer.Option(help="Drafter folder to start from; default: made from the target.")] = None,
    size: Annotated[
        list[str] | None, typer.Option(help="NAME=VALUE of the drafter's config, such as hidden_size=128; repeatable.")
    ] = None,
    bf16: Annotated[bool, typer.Option("--bf16", help="Multiply in bfloat16 (weights stay fp32).")] = False,
    limit: Annotated[int | None, typer.Option(min=1, help="The first articles only.")] = None,
    validation: Annotated[Path | None, typer.Option(help="Articles to measure alpha on, .jsonl(.gz).")] = None,
    eval_articles: Annotated[int, flag("eval_articles", "How many of them.", min=1)] = 64,
    eval_every: Annotated[int, flag("eval_every", "Updates between evaluations.", min=1)] = 200,
    save_every: Annotated[int, flag("save_every", "Updates between checkpoints; a multiple.", min=1)] = 200,
    keep: Annotated[int, typer.Option(min=1, help="Checkpoints to keep, beside the best.")] = 2,
    resume: Annotated[bool, typer.Option("--resume", help="Continue from the newest checkpoint.")] = False,
    max_source: Annotated[int | None, flag("max_source", "Source tokens; default: the target's.", min=8)] = None,
    max_target: Annotated[int, flag("max_target", "Summary tokens.", min=2)] = 128,
    sample_tokens: Annotated[int, flag("sample_tokens", "Longest sample of the drafter's own.", min=2)] = 128,
    cache: Annotated[Path, typer.Option(help="What runs share: encoder outputs, validation.")] = Path("runs/cache"),
    encoder_cache: Annotated[
        bool, typer.Option("--encoder-cache/--no-encoder-cache", help="Keep the target's encoder outputs on disk.")
    ] = True,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    tokenizer: Annotated[Path | None, typer.Option(help="ngram: tokenizer.json; default: the target's.")] = None,
    field: Annotated[str, typer.Option(help="ngram: name of the text in a line.")] = "highlights",
    smoothing: Annotated[str, typer.Option(help="ngram: kneser-ney, absolute, laplace or stupid-backoff.")] = "kneser-ney",
    discount: Annotated[float | None, typer.Option(help="ngram: taken from every count; default: estimated.")] = None,
    added: Annotated[float, typer.Option(help="ngram: Laplace's parameter.")] = 1.0,
    factor: Annotated[float, typer.Option(help="ngram: stupid back-off's factor.")] = 0.4,
    quantise: Annotated[bool, typer.Option("--quantise", "--quantize", help="ngram: probabilities in 16 bits.")] = False,
    min_count: Annotated[int, flag("min_count", "ngram: drop longer n-grams seen less often.", min=1)] = 1,
    max_size: Annotated[float | None, flag("max_size", "ngram: largest table in MB (10^6 bytes).", min=0.0)] = None,
    vocab_size: Annotated[int | None, flag("vocab_size", "ngram: the target's; default: its config's.", min=2)] = None,
) -> None:
    """Train a drafter for a target, by itself or with the target's help."""
    if drafter not in DRAFTERS:
        raise UserError(f"--drafter {drafter} is not known; use {', '.join(DRAFTERS)}")
    from foredraft import embedded
    from foredraft.engine.models.checkpoint import find_checkpoint

    if not data and os.environ.get("FOREDRAFT_DATA") and not (drafter == "ngram" and pseudo_dataset_path):
        data = [Path(os.environ["FOREDRAFT_DATA"]) / "cnndm"]
    place = out or Path("runs") / (exp_name or drafter)
    folder = find_checkpoint(target or embedded.TARGET)
    from foredraft.train.data.pairs import find_split

    if drafter == "ngram":
        data = [find_split(path, "train") if path.is_dir() else path for path in data or []]
        table = place if out else place / "table.ngram"
        _fit_ngram(data, pseudo_dataset_path, table, tokenizer or folder, ngram_n, field, smoothing, discount, min_count,
                   max_size, vocab_size, added=added, factor=factor, quantise=quantise)
        return
    from foredraft.train.data.drafter_data import read_drafter_data
    from foredraft.train.data.heldout import heldout_articles
    from foredraft.train.drafter.distillation_methods import DistillationConfig
    from foredraft.train.drafter.train_drafter import DrafterTrainingConfig, train_drafter
    from foredraft.train.drafter.training_context import TrainingContext

    method = DistillationConfig(loss, kd_loss, kd_temp, distill_method, divergence, beta, lmbda, kd_data, teacher_mix,
                          length_normalise, teacher_logits)
    if data and len(data) > 1:
        raise UserError(f"--data is given {len(data)} times; a {drafter} drafter takes one file or folder")
    pairs = data[0] if data else None
    if pairs is not None and pairs.is_dir():
        validation = validation or find_split(pairs, "validation")
        pairs = find_split(pairs, "train")
    if validation is None:
        raise UserError("no articles to measure alpha on; give --validation, or a folder with a validation split as --data")
    recipe = DrafterTrainingConfig(
        drafter=drafter, method=method, init=init, sizes=parse_sizes(size or []), steps=steps, warmup_steps=warmup_steps,
        decay_steps=steps // 4 if decay_steps is None else decay_steps, batch_size=batch_size, accumulation=accumulation,
        learning_rate=lr, max_target=max_target, sample_tokens=sample_tokens, seed=seed, bf16=bf16)
    kit = TrainingContext(folder, cache, device, encoder_cache)
    longest = max_source or kit.source_limit
    articles = read_drafter_data(pairs, pseudo_dataset_path, kit.tokenizer, longest, max_target, limit)
    held = heldout_articles(kit, validation, eval_articles, longest, max_target)
    figures = train_drafter(kit, articles, held, place, recipe, eval_every, save_every, keep=keep, resume=resume)
    if figures is None:
        typer.echo(f"foredraft: interrupted; the same command with --resume continues from {place}", err=True)
        raise typer.Exit(1)
    print(json.dumps({"out": str(place), **figures}))


def parse_sizes(items: list[str]) -> tuple[tuple[str, object], ...]:
    """NAME=VALUE, where a value is a number or a list of numbers with commas between."""
    sizes = []
    for item in items:
        name, equals, text = item.partition("=")
        try:
            numbers = [int(part) for part in text.split(",")]
        except ValueError:
            numbers = []
        if not equals or not numbers:
            raise UserError(f"--size {item}: give NAME=NUMBER, or NAME=NUMBER,NUMBER,...")
        sizes.append((name, tuple(numbers) if "," in text or name in ("layers", "dilations") else numbers[0]))
    return tuple(sizes)


def _fit_ngram(data, pseudo, table, tokenizer, order, field, smoothing, discount, min_count, max_size, vocab_size,
               **options) -> None:
    from foredraft.train.drafter.fit_ngram import fit_ngram

    fitted = fit_ngram(
        [*(data or []), *(pseudo or [])], table, tokenizer, order=order, field=field, smoothing=smoothing,
        discount=discount, min_count=min_count,
        max_bytes=None if max_size is None else int(max_size * 1e6), vocab_size=vocab_size, **options)
    sizes = ", ".join(f"{size} of {order}" for order, size in enumerate(fitted.table.sizes[1:], 2))
    print(f"{table}: {table.stat().st_size / 1e6:.2f} MB from {fitted.texts} texts, {fitted.tokens} ids; n-grams: {sizes}")
