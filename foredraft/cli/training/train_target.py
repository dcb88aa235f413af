"""`foredraft train-target`, `target-card` and `family`: the target model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from foredraft.cli import options
from foredraft.cli.extras import check_training
from foredraft.cli.output import interrupted, print_figures
from foredraft.outputs import check_file, check_folder


def train_target(
    data: Annotated[
        Path, typer.Option(help="Pair file (.jsonl, .jsonl.gz, .npz) or a folder with train and validation.")
    ],
    out: Annotated[Path, typer.Option(help="Folder for checkpoints, the log and the finished target.")],
    tokenizer: Annotated[Path, typer.Option(help="tokenizer.json of the T5 vocabulary, or a folder that holds it.")],
    validation: Annotated[Path | None, typer.Option(help="Pair file to evaluate on, when --data is a file.")] = None,
    init: Annotated[str, typer.Option(help="copy, random, or a checkpoint folder to start from.")] = "copy",
    steps: options.Steps = 5000,
    warmup_steps: options.WarmupSteps = 100,
    decay_steps: Annotated[int, typer.Option(min=0, help="Last updates, with linear decay to 0.")] = 1000,
    batch_size: Annotated[int, typer.Option(min=1, help="Examples an update.")] = 16,
    learning_rate: Annotated[float, typer.Option(min=0.0, help="Learning rate of AdamW in the stable phase.")] = 4e-4,
    embedding_scale: Annotated[float, typer.Option(min=0.0, help="Factor on the learning rate for the embeddings.")] = 1.0,
    unlikelihood: Annotated[float, typer.Option(min=0.0, help="Weight of token-level unlikelihood.")] = 0.0,
    sequence_unlikelihood: Annotated[
        float, typer.Option(min=0.0, help="Weight of sequence-level unlikelihood of repeated 4-grams.")
    ] = 0.0,
    sequence_every: Annotated[int, typer.Option(min=1, help="Updates between sequence-level terms.")] = 8,
    span_every: Annotated[int, typer.Option(min=0, help="One example in this many is to copy a span; 0 is none.")] = 16,
    extracts: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Share of the summaries replaced by the article's own sentences.")
    ] = 0.0,
    max_source: Annotated[int, typer.Option(min=8, help="Source tokens, the end token included.")] = 256,
    max_target: Annotated[int, typer.Option(min=8, help="Summary tokens, the end token included.")] = 104,
    width: Annotated[int, typer.Option(min=64, help="Model width of a new target.")] = 256,
    layers: Annotated[int, typer.Option(min=1, help="Encoder layers of a new target.")] = 3,
    decoder_layers: Annotated[int, typer.Option(min=0, help="Decoder layers of a new target; 0 is as many.")] = 0,
    heads: Annotated[int, typer.Option(min=1, help="Attention heads, 64 wide, of a new target.")] = 4,
    feed_forward: Annotated[int, typer.Option(min=1, help="Feed-forward width of a new target.")] = 640,
    dropout: Annotated[float, typer.Option(min=0.0, max=0.9, help="Dropout of a new target.")] = 0.0,
    lowercase: Annotated[bool, typer.Option("--lowercase", help="Let the tokenizer lower-case its input.")] = False,
    bf16: options.Bf16 = False,
    seed: options.TrainingSeed = 0,
    evaluate_every: Annotated[int, typer.Option(min=1, help="Updates between evaluations.")] = 500,
    evaluate_examples: Annotated[int, typer.Option(min=1, help="Validation pairs of an evaluation.")] = 64,
    save_every: Annotated[int, typer.Option(min=1, help="Updates between checkpoints.")] = 500,
    keep: Annotated[int, typer.Option(min=1, help="Checkpoints kept.")] = 3,
    limit: options.Limit = None,
    resume: options.Resume = False,
) -> None:
    """Train a T5 target on article/summary pairs."""
    check_training()
    from foredraft.train.run_folder import only_trainer
    from foredraft.train.target import train_target as target

    check_folder(out, [data, tokenizer, validation, Path(init)])
    recipe = target.TargetTrainingConfig(
        init=init,
        steps=steps,
        warmup_steps=warmup_steps,
        decay_steps=decay_steps,
        batch_size=batch_size,
        learning_rate=learning_rate,
        embedding_scale=embedding_scale,
        unlikelihood=unlikelihood,
        sequence_unlikelihood=sequence_unlikelihood,
        sequence_every=sequence_every,
        span_every=span_every,
        extracts=extracts,
        max_source=max_source,
        max_target=max_target,
        width=width,
        layers=layers,
        decoder_layers=decoder_layers,
        heads=heads,
        feed_forward=feed_forward,
        dropout=dropout,
        seed=seed,
        bf16=bf16,
        lowercase=lowercase,
    )
    with only_trainer(out):
        finished = target.train_target(
            data,
            out,
            tokenizer,
            recipe,
            validation=validation,
            evaluate_every=evaluate_every,
            evaluate_examples=evaluate_examples,
            save_every=save_every,
            keep=keep,
            resume=resume,
            limit=limit,
        )
    if not finished:
        interrupted(f"run the same command with --resume to continue from {out}")


def target_card(
    target: Annotated[Path, typer.Option(help="Folder of the finished target; its README.md is rewritten.")],
    data: Annotated[Path, typer.Option(help="Test pairs, .jsonl or .jsonl.gz.")],
    limit: Annotated[int, typer.Option(min=2, help="Use only the first pairs.")] = 500,
    texts: Annotated[Path | None, typer.Option(help="Folder of .txt files for the samples.")] = None,
    samples: Annotated[int, typer.Option(min=0, help="How many samples are shown.")] = 3,
    overwrite: options.Overwrite = False,
    as_json: options.Json = False,
) -> None:
    """Measure a target and write its model card."""
    check_training()
    from foredraft.train.target.model_card import FIGURES, write_card

    # a card that foredraft wrote has its figures beside it
    check_file(target / "README.md", [], lambda card: card.with_name(FIGURES).is_file(), "card of foredraft target-card",
               overwrite)
    files = sorted(texts.glob("*.txt"))[:samples] if texts else []
    print_figures(write_card(target, data, limit, files), as_json)


def family(
    data: Annotated[Path, typer.Option(help="Folder with the splits train, validation and test.")],
    tokenizer: Annotated[Path, typer.Option(help="tokenizer.json of the T5 vocabulary, or a folder that holds it.")],
    work: Annotated[Path, typer.Option(help="Folder for checkpoints and the log.")],
    out: Annotated[Path, typer.Option(help="Folder of target/ and ngram/, which are written; its texts/ give the samples.")],
    resume: options.Resume = False,
    as_json: options.Json = False,
) -> None:
    """Rebuild the embedded reference family: target, model card, n-gram table. Takes hours on a CPU."""
    check_training()
    from foredraft.train.family import build_family
    from foredraft.train.run_folder import only_trainer

    for folder in (work, out):
        check_folder(folder, [data, tokenizer])
    with only_trainer(work):
        figures = build_family(data, tokenizer, work, out, resume=resume)
    if figures is None:
        interrupted(f"run the same command with --resume to continue from {work}")
    print_figures(figures, as_json)
