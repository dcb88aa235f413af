"""`foredraft train`: a drafter for a target, by itself or distilled from the target."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from foredraft.cli import options
from foredraft.cli.extras import check_training
from foredraft.cli.output import interrupted, print_figures
from foredraft.engine.drafters.registry import trained_kinds
from foredraft.errors import UserError
from foredraft.outputs import check_exist, check_file, check_folder

DRAFTERS = (*trained_kinds(), "ngram")


def train(
    drafter: Annotated[str, typer.Option(help="t5small (with its own encoder), t5shallow, lstm, cnn, head or ngram.")],
    exp_name: Annotated[str | None, typer.Option(help="Without --out: write to runs/EXP_NAME; default: drafter.")] = None,
    data: Annotated[
        list[Path] | None,
        typer.Option(help="Pairs, .jsonl(.gz), or a folder with train and validation. Default: $FOREDRAFT_DATA/cnndm."),
    ] = None,
    pseudo_dataset_path: options.PseudoDatasetPath = None,
    target: options.Target = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the drafter, or file of the n-gram table.")] = None,
    loss: Annotated[float, typer.Option(help="Weight of cross-entropy on the human summaries.")] = 1.0,
    kd_loss: Annotated[float, typer.Option(help="Weight of the distillation term; 0 is the baseline.")] = 1.0,
    kd_temp: Annotated[float, typer.Option(help="Temperature of both distributions in a divergence.")] = 8.0,
    distill_method: Annotated[
        str, typer.Option("--distill-method", "--distil-method",
                          help="Seq_KD, Supervised_KD, Imit_KD, f_Distill, on_policy_GKD or MiniLLM."),
    ] = "Seq_KD",
    divergence: Annotated[str, typer.Option(help="Supervised_KD, f_Distill: fkl, rkl, jsd or tvd.")] = "fkl",
    beta: Annotated[float, typer.Option(help="jsd, on_policy_GKD: 0 is forward KL, 1 is reverse KL.")] = 0.5,
    lmbda: Annotated[float | None, typer.Option(help="Share of updates on samples of the drafter.")] = None,
    kd_data: Annotated[str | None, typer.Option(help="Summaries to distil on: gold, pseudo or mixed.")] = None,
    teacher_mix: Annotated[float, typer.Option(help="MiniLLM: the target's share in the sampling.")] = 0.2,
    length_normalise: Annotated[
        bool, typer.Option("--length-normalise/--no-length-normalise",
                           help="MiniLLM: divide rewards by the number of tokens that follow.")
    ] = True,
    teacher_logits: Annotated[
        int, typer.Option(min=0, help="Store this many of the target's logits on disk, in place of running the target.")
    ] = 0,
    ngram_n: Annotated[int, typer.Option(min=1, max=8, help="Longest n-gram.")] = 4,
    steps: options.Steps = 2000,
    warmup_steps: options.WarmupSteps = 50,
    decay_steps: Annotated[
        int | None, typer.Option(min=0, help="Last updates, with linear decay to 0. Default: a quarter of --steps.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Articles an update, over all processes.")] = 16,
    accumulation: Annotated[int, typer.Option(min=1, help="Parts that an update is computed in.")] = 1,
    lr: Annotated[float, typer.Option("--lr", "--learning-rate", min=0.0, help="Learning rate of AdamW.")] = 1e-3,
    seed: options.TrainingSeed = 0,
    init: Annotated[str | None, typer.Option(help="Drafter folder to start from. Default: derived from the target.")] = None,
    size: Annotated[
        list[str] | None, typer.Option(help="NAME=VALUE of the drafter's config, such as hidden_size=128; repeatable.")
    ] = None,
    bf16: options.Bf16 = False,
    limit: options.Limit = None,
    validation: Annotated[Path | None, typer.Option(help="Articles to measure alpha on, .jsonl(.gz).")] = None,
    eval_articles: Annotated[int, typer.Option(min=1, help="How many of them are used.")] = 64,
    eval_every: Annotated[int, typer.Option(min=1, help="Updates between evaluations.")] = 200,
    save_every: Annotated[
        int, typer.Option(min=1, help="Updates between checkpoints; a multiple of --eval-every.")] = 200,
    keep: Annotated[int, typer.Option(min=1, help="Checkpoints kept besides the best.")] = 2,
    resume: options.Resume = False,
    max_source: options.MaxSource = None,
    max_target: Annotated[int, typer.Option(min=2, help="Longest summary, in tokens.")] = 128,
    sample_tokens: Annotated[int, typer.Option(min=2, help="Longest sample of the drafter, in tokens.")] = 128,
    cache: Annotated[Path, typer.Option(help="Folder that runs share: encoder outputs, validation.")] = Path("runs/cache"),
    encoder_cache: Annotated[
        bool, typer.Option("--encoder-cache/--no-encoder-cache", help="Store the target's encoder outputs on disk.")
    ] = True,
    device: options.Device = "cpu",
    tokenizer: Annotated[Path | None, typer.Option(help="ngram: tokenizer.json. Default: the target's.")] = None,
    field: options.Field = "highlights",
    smoothing: options.Smoothing = "kneser-ney",
    discount: options.Discount = None,
    added: options.Added = 1.0,
    factor: options.Factor = 0.4,
    quantise: options.Quantise = False,
    min_count: options.MinCount = 1,
    max_size: options.MaxSize = None,
    vocab_size: options.VocabSize = None,
    as_json: options.Json = False,
) -> None:
    """Train a drafter for a target, by itself or distilled from the target."""
    if drafter not in DRAFTERS:
        raise UserError(f"--drafter {drafter} is not known; use {', '.join(DRAFTERS)}")
    from foredraft import embedded
    from foredraft.engine.load import check_device
    from foredraft.engine.models.hub import find_checkpoint
    from foredraft.train.data.pairs import find_split

    if not data and os.environ.get("FOREDRAFT_DATA") and not (drafter == "ngram" and pseudo_dataset_path):
        data = [Path(os.environ["FOREDRAFT_DATA"]) / "cnndm"]
    check_device(device)
    check_exist("--data", data or [])
    check_exist("--pseudo-dataset-path", pseudo_dataset_path or [])
    path = out or Path("runs") / (exp_name or drafter)
    checkpoint = find_checkpoint(target or embedded.TARGET)
    if drafter == "ngram":
        from foredraft.ngram_native import files
        from foredraft.ngram_native.table import KIND
        from foredraft.train.drafter.fit_ngram import fit_ngram

        texts = [find_split(one, "train") if one.is_dir() else one for one in data or []]
        table = path if out else path / "table.ngram"
        sources = [*texts, *(pseudo_dataset_path or [])]
        check_file(table, [*sources, tokenizer, checkpoint], lambda file: files.has_magic(file, KIND), "n-gram table")
        fitted = fit_ngram(
            sources, table, tokenizer or checkpoint, order=ngram_n, field=field,
            smoothing=smoothing, discount=discount, min_count=min_count, max_bytes=max_size and int(max_size * 1e6),
            vocab_size=vocab_size, added=added, factor=factor, quantise=quantise)
        print_figures({"out": str(table), "bytes": table.stat().st_size, "texts": fitted.texts, "tokens": fitted.tokens,
                       "ngrams": sum(fitted.table.sizes[1:])}, as_json)
        return
    check_training()
    from foredraft.train.data.drafter_data import read_drafter_data
    from foredraft.train.data.heldout import heldout_articles
    from foredraft.train.drafter.distillation_methods import DistillationConfig
    from foredraft.train.drafter.distillation_trainer import DrafterTrainingConfig
    from foredraft.train.drafter.train_drafter import train_drafter
    from foredraft.train.drafter.training_context import TrainingContext
    from foredraft.train.run_folder import only_trainer, refuse_used

    check_folder(path, [checkpoint, init, *(data or []), *(pseudo_dataset_path or [])])
    if not resume:
        refuse_used(path)
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
    config = DrafterTrainingConfig(
        drafter=drafter, method=method, init=init, sizes=parse_sizes(size or []), steps=steps, warmup_steps=warmup_steps,
        decay_steps=steps // 4 if decay_steps is None else decay_steps, batch_size=batch_size, accumulation=accumulation,
        learning_rate=lr, max_target=max_target, sample_tokens=sample_tokens, seed=seed, bf16=bf16)
    context = TrainingContext(checkpoint, cache, device, encoder_cache)
    longest = max_source or context.source_limit
    articles = read_drafter_data(pairs, pseudo_dataset_path, context.tokenizer, longest, max_target, limit)
    heldout = heldout_articles(context, validation, eval_articles, longest, max_target)
    with only_trainer(path):
        figures = train_drafter(context, articles, heldout, path, config, eval_every, save_every, keep=keep, resume=resume)
    if figures is None:
        interrupted(f"run the same command with --resume to continue from {path}")
    print_figures({"out": str(path), **figures}, as_json)


def parse_sizes(items: list[str]) -> tuple[tuple[str, object], ...]:
    """NAME=VALUE, where a value is a number or numbers separated by commas."""
    sizes = []
    for item in items:
        name, equals, text = item.partition("=")
        try:
            numbers = [int(part) for part in text.split(",")]
        except ValueError:
            numbers = []
        if not equals or not numbers or min(numbers) < (0 if name == "layers" else 1):
            raise UserError(f"--size {item}: give NAME=NUMBER, or NAME=NUMBER,NUMBER,..., of at least 1")
        sizes.append((name, tuple(numbers) if "," in text or name in ("layers", "dilations") else numbers[0]))
    return tuple(sizes)
