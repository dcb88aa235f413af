"""The training of a drafter, with or without distillation."""

from __future__ import annotations

import hashlib
import os
import time
from dataclasses import asdict
from pathlib import Path

import torch
from transformers import PrinterCallback, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from foredraft.engine.drafters.registry import kind_of, model_class
from foredraft.engine.models.spec import ModelConfig
from foredraft.errors import UserError
from foredraft.train.data.drafter_data import Articles, DrafterDataset, collate_drafter
from foredraft.train.drafter.distillation_methods import DistillationConfig
from foredraft.train.drafter.distillation_trainer import DistillationTrainer, DrafterTrainingConfig, Student
from foredraft.train.drafter.teacher import TopLogits, cache_top_logits
from foredraft.train.drafter.training_context import TrainingContext
from foredraft.train.history import describe_run, record_run
from foredraft.train.run_folder import begin_run, flags_of
from foredraft.train.trainer import LogAndStop, checkpoint_step, fuse_gelu


def new_drafter(config: DrafterTrainingConfig, target: str | Path) -> torch.nn.Module:
    """A drafter's module in float32.

    Parameters
    ----------
    config
        Its `init` is loaded, or a module is made from the target. A t5small has half of the target's encoder and decoder
        layers unless `sizes` says otherwise.
    target
        Folder of the target.

    Returns
    -------
    torch.nn.Module

    Raises
    ------
    UserError
        `init` is not a drafter of this kind.
    """
    if config.init is not None:
        if not (Path(config.init) / "config.json").is_file():
            raise UserError(f"--init {config.init}: contains no config.json; give a drafter's folder, or omit --init")
        if (found := kind_of(config.init)) != config.drafter:
            raise UserError(f"--init {config.init}: contains a {found} drafter, not {config.drafter}")
        return model_class(config.drafter).load(config.init, target)
    torch.manual_seed(config.seed)
    sizes = dict(config.sizes)
    if config.drafter == "t5small":
        full = ModelConfig.from_json(Path(target) / "config.json")
        half = {"num_layers": -(-full.num_layers // 2), "num_decoder_layers": -(-full.num_decoder_layers // 2)}
        sizes = half | sizes
    return model_class(config.drafter).from_target(target, **sizes)


def train_drafter(context: TrainingContext, articles: Articles, heldout: dict[float, Articles], out: str | Path,
                  config: DrafterTrainingConfig, evaluate_every: int = 200, save_every: int = 200, log_every: int = 20,
                  keep: int = 2, resume: bool = False, progress: bool = True) -> dict | None:
    """Train a drafter and write the checkpoint with the best alpha. Under `torchrun`, every process calls this.

    Parameters
    ----------
    context
        The target.
    articles
        Training data.
    heldout
        Temperature to articles with the target's output at that temperature, on which alpha is measured.
    out
        Folder of checkpoints and of the result.
    config
        What determines the weights.
    evaluate_every, save_every, log_every
        Updates between evaluations, checkpoints and log entries.
    keep
        Checkpoints to keep, besides the best.
    resume
        Continue from the newest checkpoint in `out`.
    progress
        Whether to show a progress bar.

    Returns
    -------
    dict or None
        `alpha`, `best_step`, `seconds`, `articles_a_second`; None after SIGINT or SIGTERM, which leave a checkpoint.

    Raises
    ------
    UserError
        The configuration does not fit the data or the number of processes, or `out` is not the folder of this run
        (run_folder.begin_run).
    """
    out = Path(out)
    world = int(os.environ.get("WORLD_SIZE", "1"))
    each, rest = divmod(config.batch_size, world * config.accumulation)
    if rest or not each:
        raise UserError(f"--batch-size {config.batch_size} cannot be divided among {world} processes and "
                        f"--accumulation {config.accumulation}; give a multiple of {world * config.accumulation}")
    check_summaries(config.method, articles)
    if len(articles) < config.batch_size:
        raise UserError(f"{len(articles)} articles are fewer than --batch-size {config.batch_size}; give a smaller one")
    settings = {"--target": context.hash, "--data": _fingerprint(articles)} | flags_of(asdict(config))
    if int(os.environ.get("RANK", "0")) == 0:
        checkpoint = begin_run(out, settings, config.steps, resume)
    else:
        checkpoint = get_last_checkpoint(str(out)) if resume else None
    if evaluate_every > config.steps or save_every % evaluate_every:
        evaluate_every = save_every = min(evaluate_every, config.steps)
    arguments = TrainingArguments(
        output_dir=str(out), max_steps=config.steps, per_device_train_batch_size=each,
        gradient_accumulation_steps=config.accumulation, learning_rate=config.learning_rate, max_grad_norm=1.0,
        seed=config.seed, data_seed=config.seed, eval_strategy="steps", eval_steps=evaluate_every, save_strategy="steps",
        save_steps=save_every, save_total_limit=keep, logging_steps=log_every, load_best_model_at_end=True,
        metric_for_best_model="alpha", greater_is_better=True, remove_unused_columns=False, bf16=config.bf16,
        use_cpu=context.device == "cpu", dataloader_drop_last=True, dataloader_pin_memory=context.device != "cpu",
        ddp_find_unused_parameters=False, report_to="none", disable_tqdm=not progress)
    with arguments.main_process_first(desc="encoding"):
        context.encoded(articles)
        for own in heldout.values():
            context.encoded(own)
        top = _top_logits(context, articles, config.method)
    model = new_drafter(config, context.folder)
    fuse_gelu(model)
    trainer = DistillationTrainer(
        config, context, articles, heldout, top, model=Student(model), args=arguments, data_collator=collate_drafter,
        train_dataset=DrafterDataset(articles, config.seed), eval_dataset=DrafterDataset(next(iter(heldout.values()))),
        callbacks=[callback := LogAndStop(out / "log.jsonl")])
    if not progress:
        trainer.remove_callback(PrinterCallback)
    first_step, began = checkpoint_step(checkpoint), time.monotonic()
    trainer.train(resume_from_checkpoint=checkpoint)
    if callback.stopping and trainer.state.global_step < config.steps:
        return None
    seconds = time.monotonic() - began
    read, training = (config.steps - first_step) * config.batch_size, seconds - trainer.evaluation_seconds
    figures = {"alpha": trainer.state.best_metric, "best_step": trainer.state.best_global_step, "seconds": round(seconds, 1),
               "articles_a_second": round(read / max(training, 1e-9), 2)}
    if trainer.is_world_process_zero():
        data = [{"file": "articles", "pairs": len(articles), "fingerprint": _fingerprint(articles)}]
        run = describe_run(config, data, first_step, trainer.state.global_step, seconds)
        model.save(out)
        record_run(out, run | {"target_hash": context.hash, "figures": figures})
    return figures


def check_summaries(method: DistillationConfig, articles: Articles) -> None:
    """Raise UserError if an article has no summary of the kind that the method reads."""
    if (method.loss or (method.kd_loss and method.data != "pseudo")) and any(gold is None for gold in articles.gold):
        raise UserError("human summaries are needed; give --data (a pair file), or --loss 0 and --kd-data pseudo")
    if method.kd_loss and method.data != "gold" and not all(articles.own):
        raise UserError(f"{method.distill_method} reads the target's own summaries; give --pseudo-dataset-path (foredraft "
                        "pseudo makes one), or --kd-data gold")


def _top_logits(context: TrainingContext, articles: Articles, method: DistillationConfig) -> TopLogits | None:
    if not method.teacher_logits or not method.kd_loss or method.objective == "labels":
        return None
    summaries = articles.gold if method.data == "gold" else [own[0] if own else None for own in articles.own]
    if any(summary is None for summary in summaries):
        raise UserError(f"--teacher-logits: some articles have no {method.data} summary; give --data or "
                        "--pseudo-dataset-path")
    if method.data == "pseudo" and any(len(own) > 1 for own in articles.own):
        raise UserError("--teacher-logits uses one summary of each article; give one pseudo-dataset with one sample each")
    return cache_top_logits(context.cache, context.teacher, context.hash, articles.sources, summaries, method.teacher_logits,
                           method.kd_temp, context.engine.start_token)


def _fingerprint(articles: Articles) -> str:
    return hashlib.sha256("".join(articles.ids).encode()).hexdigest()
