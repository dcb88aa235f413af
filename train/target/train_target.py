"""The training of a T5 target on article/summary pairs, from scratch or a checkpoint, by transformers' Seq2SeqTrainer."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from transformers import Seq2SeqTrainer, Seq2SeqTrainingArguments, T5Config, T5ForConditionalGeneration

from foredraft.errors import UserError
from foredraft.train.data.extracts import mix_extracts
from foredraft.train.data.pair_batches import LengthGroups, PairDataset, collate
from foredraft.train.data.pairs import find_split, fingerprint, load_pairs
from foredraft.train.history import describe_run, record_run
from foredraft.train.run_folder import begin_run, flags_of, refuse_used
from foredraft.train.target.copy_init import copy_init
from foredraft.train.target.export import export_target, read_tokenizer
from foredraft.train.target.target_losses import repetition_loss, target_loss
from foredraft.train.target.target_metrics import span_accuracy, summary_figures
from foredraft.train.trainer import LogAndStop, TrainerMixin, checkpoint_step, fuse_gelu


@dataclass(frozen=True)
class TargetTrainingConfig:
    """Everything that determines a target's weights, besides its data.

    Attributes
    ----------
    init
        "copy" (copy_init), "random", or the folder of a checkpoint.
    steps, warmup_steps, decay_steps
        Updates in all, and those of warm-up and decay (trainer.learning_rate_factor).
    batch_size, learning_rate
        Pairs of an update, and the peak learning rate of AdamW.
    embedding_scale
        Learning rate of the embeddings relative to that of the other weights.
    unlikelihood, sequence_unlikelihood, sequence_every
        Weights of token-level and sequence-level unlikelihood, and updates between two of the latter (target_losses).
    span_every
        One example in so many copies a span of its source (pair_batches); 0 is none.
    extracts
        Share of the summaries that are replaced by extracts of the article.
    max_source, max_target
        Longest source and summary in tokens.
    width, layers, decoder_layers, heads, feed_forward, dropout
        Geometry of a fresh model: C, L of the encoder and of the decoder (0: as many), H, the inner width of feed-forward
        layers, dropout rate.
    seed
        Of weights and order.
    bf16
        Multiply in bfloat16; weights stay float32.
    lowercase
        The tokenizer lower-cases its input.
    """

    init: str = "copy"
    steps: int = 5000
    warmup_steps: int = 100
    decay_steps: int = 1000
    batch_size: int = 16
    learning_rate: float = 4e-4
    embedding_scale: float = 1.0
    unlikelihood: float = 0.0
    sequence_unlikelihood: float = 0.0
    sequence_every: int = 8
    span_every: int = 16
    extracts: float = 0.0
    max_source: int = 256
    max_target: int = 104
    width: int = 256
    layers: int = 3
    decoder_layers: int = 0
    heads: int = 4
    feed_forward: int = 640
    dropout: float = 0.0
    seed: int = 0
    bf16: bool = False
    lowercase: bool = False


def new_target(config: TargetTrainingConfig) -> T5ForConditionalGeneration:
    """A model in float32: fresh with copy or random initialisation, or a checkpoint."""
    model = _initial(config)
    # T5 has no limit of positions; the entry records the length of the sources in training
    model.config.n_positions = config.max_source
    fuse_gelu(model)
    return model


def _initial(config: TargetTrainingConfig) -> T5ForConditionalGeneration:
    if config.init not in ("copy", "random"):
        if not (Path(config.init) / "config.json").is_file():
            raise UserError(f"--init {config.init}: neither 'copy', 'random' nor the folder of a checkpoint")
        return T5ForConditionalGeneration.from_pretrained(config.init, dtype=torch.float32)
    torch.manual_seed(config.seed)
    model = T5ForConditionalGeneration(T5Config(
        vocab_size=32128,
        d_model=config.width,
        d_kv=64,
        d_ff=config.feed_forward,
        num_layers=config.layers,
        num_decoder_layers=config.decoder_layers or config.layers,
        num_heads=config.heads,
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=True,
        dropout_rate=config.dropout,
        decoder_start_token_id=0,
    ))
    if config.init == "copy":
        copy_init(model, config.seed)
    return model


class TargetTrainer(TrainerMixin, Seq2SeqTrainer):
    """Seq2SeqTrainer with the losses, sampler and metrics of a target."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """Likelihood and unlikelihood; evaluation uses likelihood alone."""
        config = self.config
        loss = target_loss(model, inputs, config.bf16, config.unlikelihood if model.training else 0.0)
        if model.training and config.sequence_unlikelihood and self.state.global_step % config.sequence_every == 0:
            penalty = repetition_loss(model, inputs, config.max_target, config.bf16)
            loss = loss + config.sequence_unlikelihood * penalty
        return (loss, {"loss": loss}) if return_outputs else loss

    def create_optimizer(self, model=None):
        """AdamW without weight decay, with a learning rate of its own for the embeddings."""
        model = model or self.model
        embedding = model.get_input_embeddings().weight
        rest = [parameter for parameter in model.parameters() if parameter is not embedding]
        rate = self.args.learning_rate
        groups = [{"params": rest}, {"params": [embedding], "lr": rate * self.config.embedding_scale}]
        self.optimizer = torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.98), eps=1e-8, weight_decay=0.0, fused=True)
        return self.optimizer

    def _get_train_sampler(self, train_dataset=None):
        pairs = (train_dataset or self.train_dataset).pairs
        return LengthGroups(np.diff(pairs.target_starts), self.config.batch_size, self.config.seed)

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix="eval", **kwargs):
        """The Trainer's metrics and the accuracy of copying spans."""
        # evaluation must not change the random numbers of the following dropout
        with torch.random.fork_rng():
            metrics = super().evaluate(eval_dataset, ignore_keys, metric_key_prefix, **kwargs)
        extra = {f"{metric_key_prefix}_span_top1": round(span_accuracy(self.model, self.eval_dataset.pairs, 64), 4)}
        self.log(extra)
        return {**metrics, **extra}


def _with_extracts(pairs: Path, cache: Path, tokenizer, config: TargetTrainingConfig) -> Path:
    """The pair file with a share of its summaries replaced by extracts, created once in the folder `cache`."""
    if pairs.suffix == ".npz":
        raise UserError(f"{pairs}: contains tokens, but --extracts needs text; give a .jsonl or .jsonl.gz")
    name = fingerprint(pairs, tokenizer, config.max_source, config.max_target)[:16]
    mixed = cache / f"extracts-{config.extracts:g}-{config.seed}-{name}.jsonl.gz"
    if not mixed.is_file():
        mix_extracts(pairs, mixed, tokenizer, config.extracts, config.max_source, config.max_target, config.seed)
    return mixed


def train_target(
    data: str | Path,
    out: str | Path,
    tokenizer_path: str | Path,
    config: TargetTrainingConfig,
    validation: str | Path | None = None,
    evaluate_every: int = 500,
    evaluate_examples: int = 64,
    log_every: int = 50,
    save_every: int = 500,
    keep: int = 3,
    resume: bool = False,
    limit: int | None = None,
    is_phase: bool = False,
) -> bool:
    """Train a target and export it.

    Parameters
    ----------
    data
        A pair file, or a folder with the splits train and validation.
    out
        Folder of checkpoints and of the exported target.
    tokenizer_path
        tokenizer.json of the T5 vocabulary, or its folder.
    config
        What determines the weights.
    validation
        A pair file; by default the validation split of `data`.
    evaluate_every, log_every, save_every
        Updates between evaluations, log entries and checkpoints.
    evaluate_examples
        Pairs of an evaluation.
    keep
        Checkpoints to keep.
    resume
        Continue from the newest checkpoint in `out`.
    limit
        Train on the first pairs only.
    is_phase
        The folder may contain checkpoints of another phase, with other settings.

    Returns
    -------
    bool
        False after SIGINT or SIGTERM, which leave a checkpoint.

    Raises
    ------
    UserError
        The data is invalid or missing, or `out` is not the folder of this run (run_folder.begin_run).
    """
    out = Path(out)
    if not resume:
        refuse_used(out)
    tokenizer = read_tokenizer(tokenizer_path, config.lowercase)
    folder = Path(data).is_dir()
    train_file = find_split(data, "train") if folder else Path(data)
    validation = validation or (find_split(data, "validation") if folder else None)
    if validation is None:
        raise UserError("--data is a single file; give a second one with --validation")
    limits = config.max_source, config.max_target
    mixed = _with_extracts(train_file, out / "cache", tokenizer, config) if config.extracts else train_file
    train = load_pairs(mixed, tokenizer, *limits, cache=out / "cache")
    heldout = load_pairs(validation, tokenizer, *limits, cache=out / "cache").head(evaluate_examples)
    if limit is not None:
        train = train.head(limit)
    checkpoint = begin_run(out, {"--data": train.fingerprint} | flags_of(asdict(config)), config.steps, resume, not is_phase)
    model = new_target(config)
    arguments = Seq2SeqTrainingArguments(
        output_dir=str(out),
        max_steps=config.steps,
        per_device_train_batch_size=config.batch_size,
        per_device_eval_batch_size=32,
        learning_rate=config.learning_rate,
        max_grad_norm=1.0,
        seed=config.seed,
        data_seed=config.seed,
        eval_strategy="steps",
        eval_steps=evaluate_every,
        save_strategy="steps",
        save_steps=save_every,
        save_total_limit=keep,
        logging_steps=log_every,
        predict_with_generate=True,
        generation_max_length=config.max_target + 1,
        remove_unused_columns=False,
        dataloader_pin_memory=torch.cuda.is_available(),
        report_to="none",
    )
    trainer = TargetTrainer(
        config,
        model=model,
        args=arguments,
        data_collator=collate,
        train_dataset=PairDataset(train, config.span_every, config.seed),
        eval_dataset=PairDataset(heldout),
        compute_metrics=lambda prediction: summary_figures(prediction.predictions, prediction.label_ids, tokenizer),
        callbacks=[callback := LogAndStop(out / "log.jsonl")],
    )
    first_step = checkpoint_step(checkpoint)
    if first_step >= config.steps:
        # the run had finished, but may have been stopped before the export
        export_target(T5ForConditionalGeneration.from_pretrained(checkpoint), tokenizer, out)
        return True
    started = time.monotonic()
    trainer.train(resume_from_checkpoint=checkpoint)
    data = [
        {"file": Path(path).name, "pairs": len(pairs), "fingerprint": pairs.fingerprint}
        for path, pairs in ((train_file, train), (validation, heldout))
    ]
    record_run(out, describe_run(config, data, first_step, trainer.state.global_step, time.monotonic() - started))
    if callback.stopping:
        return False
    export_target(model, tokenizer, out)
    return True
