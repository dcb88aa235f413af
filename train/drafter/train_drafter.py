"""Training of a drafter, with or without its target's help, on transformers' Trainer."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from transformers import PrinterCallback, Trainer, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from foredraft.engine.drafters.registry import kind_of, model_class
from foredraft.engine.models.spec import ModelConfig
from foredraft.errors import UserError
from foredraft.train.data.drafter_data import Articles, DrafterDataset, collate_drafter
from foredraft.train.data.pair_batches import LengthGroups
from foredraft.train.data.pairs import IGNORE
from foredraft.train.drafter.distillation_methods import DistillationConfig, step_inputs, step_loss, token_counts
from foredraft.train.drafter.student_samples import drafter_of, mixed_samples, student_samples
from foredraft.train.drafter.teacher import TopLogits, cache_top_logits
from foredraft.train.drafter.training_alpha import teacher_forced_alpha
from foredraft.train.drafter.training_context import TrainingContext
from foredraft.train.history import describe_run, record_run
from foredraft.train.trainer import LogAndStop, TrainerMixin, checkpoint_step, fuse_gelu

# Weight of the regression on the target's features, where a drafter predicts them, beside the terms of the method.
FEATURE_LOSS = 0.1


@dataclass(frozen=True)
class DrafterTrainingConfig:
    """Everything that decides a drafter's weights, besides its data and its target."""

    drafter: str = "lstm"
    method: DistillationConfig = field(default_factory=DistillationConfig)
    init: str | None = None  # a trained drafter or T5 checkpoint to start from; None: made from the target
    sizes: tuple[tuple[str, object], ...] = ()  # entries of the drafter's config
    steps: int = 2000
    warmup_steps: int = 50
    decay_steps: int = 500
    batch_size: int = 16  # articles an update, over all processes and accumulation steps
    accumulation: int = 1
    learning_rate: float = 1e-3
    max_target: int = 128
    sample_tokens: int = 128  # longest sample of the drafter's own
    seed: int = 0
    bf16: bool = False

    @property
    def is_baseline(self) -> bool:
        return self.method.kd_loss == 0


class Student(torch.nn.Module):
    """A drafter's module as the Trainer takes it: without a `config`, which the Trainer would write into."""

    def __init__(self, drafter: torch.nn.Module):
        super().__init__()
        self.drafter = drafter

    def forward(self, *inputs, **options):
        return self.drafter(*inputs, **options)


class DistillationTrainer(TrainerMixin, Trainer):
    """Trainer of a drafter's module: prepares a step's summaries, asks the teacher, keeps the best checkpoint by alpha."""

    # compute_loss divides by the places of the whole update
    loss_is_scaled_for_ga = True

    def __init__(self, config: DrafterTrainingConfig, context: TrainingContext, articles: Articles, heldout: dict[float, Articles],
                 top: TopLogits | None, **arguments):
        super().__init__(config, **arguments)
        self.context, self.articles, self.heldout, self.top = context, articles, heldout, top
        self.encodings, self.evaluation_seconds = context.encoded(articles), 0.0

    @property
    def drafter(self) -> torch.nn.Module:
        return self.accelerator.unwrap_model(self.model).drafter

    def create_optimizer(self, model=None):
        parameters = [parameter for parameter in (model or self.model).parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(parameters, lr=self.args.learning_rate, betas=(0.9, 0.98), weight_decay=0.0,
                                           fused=True)
        return self.optimizer

    def _get_train_sampler(self, train_dataset=None):
        return LengthGroups(self.articles.lengths(), self.config.batch_size, self.config.seed)

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        """The batches of an update, with the drafter's own samples where the method wants them, and the places of all
        processes that share in each of the two terms."""
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        step = self.state.global_step
        sampled = self.config.method.is_on_policy(self.config.seed, step, self.config.steps)
        drafter = drafter_of(self.drafter, self.context.weights) if sampled else None
        prepared = [self._prepare(batch, drafter, (step * 1000 + number) * 1000 + self.args.process_index)
                    for number, batch in enumerate(batches)]
        counts = torch.tensor([token_counts(inputs) for inputs in prepared], dtype=torch.float64).reshape(-1, 2).sum(0)
        if self.args.world_size > 1:
            counts = self.accelerator.gather(counts.to(device)[None]).sum(0).cpu()
        return prepared, counts

    def _prepare(self, batch: dict, drafter, noise: int) -> dict:
        rows, longest = batch["article"].tolist(), batch["source_ids"].shape[1]
        if self.encodings is not None:
            batch["encoder_output"] = self.encodings.batch(rows, longest)
        else:
            batch["encoder_output"] = self.context.teacher.encode(
                batch["source_ids"].to(self.context.device), batch["source_mask"].to(self.context.device)).cpu()
        samples = self._samples(batch, drafter, noise) if drafter is not None else None
        return step_inputs(self.config.method, batch, samples, self.context.engine.start_token)

    def _samples(self, batch: dict, drafter, noise: int) -> list[np.ndarray]:
        lengths = batch["source_mask"].sum(1).tolist()
        sources = [ids[:length].cpu() for ids, length in zip(batch["source_ids"], lengths, strict=True)]
        encoded = [output[:length].cpu() for output, length in zip(batch["encoder_output"], lengths, strict=True)]
        method, seed = self.config.method, self.config.seed * 2**32 + noise
        if method.form == "policy":
            return mixed_samples(drafter, self.context.engine, sources, encoded, self.config.sample_tokens, seed,
                                 method.teacher_mix)
        return student_samples(drafter, self.context.engine, sources, encoded, self.config.sample_tokens, seed)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        row, labels = inputs["row"], inputs["labels"]
        scored = labels != IGNORE
        encoded, mask = inputs["encoder_output"][row], inputs["source_mask"][row]
        read = (inputs["input_ids"], encoded, mask, inputs["source_ids"][row])
        hidden = apart = None
        if self.drafter.reads_features:
            hidden = self.context.teacher.hidden(*read[:3])
            logits, apart = model(*read, scored=scored, features=hidden)
        else:
            logits = model(*read, scored=scored)

        def ask(rows: int):
            if self.top is not None:
                ids, log_p = self.top.rows(inputs["article"].tolist())
                return ids.to(logits.device), log_p.to(logits.device)
            if hidden is not None:
                return self.context.teacher.score(hidden[-rows:][scored[-rows:]])
            return self.context.teacher.logits(inputs["input_ids"][-rows:], encoded[-rows:], mask[-rows:], scored[-rows:])

        counts = tuple(num_items_in_batch.tolist())
        loss = step_loss(self.config.method, inputs, logits, ask, counts)
        if apart is not None:
            loss = loss + FEATURE_LOSS * apart.sum() / max(sum(counts), 1)
        # gradients are averaged over processes, and this is a sum over them
        return loss * self.args.world_size

    @torch.no_grad()
    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix="eval"):
        """alpha on the target's own output, at each temperature of `heldout`; their mean decides which checkpoint is kept."""
        model = self.drafter
        training, began = model.training, time.perf_counter()
        model.eval()
        metrics = {f"{metric_key_prefix}_alpha_T{temperature:g}": teacher_forced_alpha(model, self.context, articles, temperature)
                   for temperature, articles in self.heldout.items()}
        model.train(training)
        metrics[f"{metric_key_prefix}_alpha"] = sum(metrics.values()) / len(metrics)
        metrics = {name: round(value, 5) for name, value in metrics.items()}
        seconds = time.perf_counter() - began
        self.evaluation_seconds += seconds
        metrics[f"{metric_key_prefix}_seconds"] = round(seconds, 2)
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _save(self, output_dir=None, state_dict=None):
        self.drafter.save(output_dir or self.args.output_dir)

    def _load_from_checkpoint(self, resume_from_checkpoint, model=None):
        self._read(resume_from_checkpoint)

    def _load_best_model(self):
        self._read(self.state.best_model_checkpoint)

    def _read(self, folder) -> None:
        self.drafter.load_state_dict(type(self.drafter).load(folder, self.context.folder).state_dict())


def new_drafter(config: DrafterTrainingConfig, target: str | Path) -> torch.nn.Module:
    """A drafter's module in fp32, made from the target's folder or read from `init`. A t5small has half of the target's
    encoder and decoder layers unless `sizes` say otherwise: with all of them it would be the target."""
    if config.init is not None:
        if not (Path(config.init) / "config.json").is_file():
            raise UserError(f"--init {config.init}: no config.json in it; give a drafter's folder, or leave it out")
        if (found := kind_of(config.init)) != config.drafter:
            raise UserError(f"--init {config.init}: holds a {found} drafter, not {config.drafter}; give its own kind")
        return model_class(config.drafter).load(config.init, target)
    torch.manual_seed(config.seed)
    sizes = dict(config.sizes)
    if config.drafter == "t5small":
        whole = ModelConfig.from_json(Path(target) / "config.json")
        half = {"num_layers": -(-whole.num_layers // 2), "num_decoder_layers": -(-whole.num_decoder_layers // 2)}
        sizes = half | sizes
    return model_class(config.drafter).from_target(target, **sizes)


def train_drafter(context: TrainingContext, articles: Articles, heldout: dict[float, Articles], out: str | Path, config: DrafterTrainingConfig,
                  evaluate_every: int = 200, save_every: int = 200, log_every: int = 20, keep: int = 2,
                  resume: bool = False, progress: bool = True) -> dict | None:
    """Train and write the best drafter, by alpha on `heldout` (temperature: articles with the target's own output there),
    to `out`; returns its figures, or None when SIGINT or SIGTERM came first, which leaves a checkpoint.

    `resume` continues from the newest checkpoint in `out`. With `torchrun`, every process calls this.
    """
    out = Path(out)
    checkpoint = get_last_checkpoint(str(out)) if resume and out.is_dir() else None
    if resume and checkpoint is None:
        raise UserError(f"{out}: no checkpoint-N to resume from; start without --resume")
    world = int(os.environ.get("WORLD_SIZE", "1"))
    each, rest = divmod(config.batch_size, world * config.accumulation)
    if rest or not each:
        raise UserError(f"--batch-size {config.batch_size} does not divide among {world} processes and "
                        f"--accumulation {config.accumulation}; give a multiple of {world * config.accumulation}")
    check_summaries(config.method, articles)
    if len(articles) < config.batch_size:
        raise UserError(f"{len(articles)} articles are fewer than --batch-size {config.batch_size}; give a smaller one")
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
    """UserError when articles lack a summary that the method reads."""
    if (method.loss or (method.kd_loss and method.data != "pseudo")) and any(gold is None for gold in articles.gold):
        raise UserError("human summaries are asked for; give --data, a pair file, or --loss 0 and --kd-data pseudo")
    if method.kd_loss and method.data != "gold" and not all(articles.own):
        raise UserError(f"{method.distill_method} reads the target's own summaries; give --pseudo-dataset-path (foredraft "
                        "pseudo makes one), or --kd-data gold")


def _top_logits(context: TrainingContext, articles: Articles, method: DistillationConfig) -> TopLogits | None:
    if not method.teacher_logits or not method.kd_loss or method.form == "labels":
        return None
    rows = articles.gold if method.data == "gold" else [own[0] if own else None for own in articles.own]
    if any(row is None for row in rows):
        raise UserError("--teacher-logits: some articles have no such summary; give --data or --pseudo-dataset-path")
    if method.data == "pseudo" and any(len(own) > 1 for own in articles.own):
        raise UserError("--teacher-logits keeps one summary of each article; give one pseudo-dataset of one sample each")
    return cache_top_logits(context.cache, context.teacher, context.hash, articles.sources, rows, method.teacher_logits, method.kd_temp,
                           context.engine.start_token)


def _fingerprint(articles: Articles) -> str:
    import hashlib

    return hashlib.sha256("".join(articles.ids).encode()).hexdigest()
