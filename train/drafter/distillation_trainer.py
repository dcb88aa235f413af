"""The Trainer that distils a target into a drafter, on transformers' Trainer, as TRL's GKDTrainer is for causal models."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import numpy as np
import torch
from transformers import Trainer

from foredraft.train.data.drafter_data import Articles
from foredraft.train.data.pair_batches import LengthGroups
from foredraft.train.data.pairs import IGNORE
from foredraft.train.drafter.distillation_methods import DistillationConfig, step_inputs, step_loss, token_counts
from foredraft.train.drafter.student_samples import drafter_of, mixed_samples, student_samples
from foredraft.train.drafter.teacher import TopLogits
from foredraft.train.drafter.training_alpha import teacher_forced_alpha
from foredraft.train.drafter.training_context import TrainingContext
from foredraft.train.trainer import TrainerMixin

# Weight of the regression on the target's features, for an EAGLE-style head, beside the terms of the method.
FEATURE_LOSS = 0.1


@dataclass(frozen=True)
class DrafterTrainingConfig:
    """Everything that determines a drafter's weights, besides its data and its target.

    Attributes
    ----------
    drafter
        Name of the drafter's kind.
    method
        Losses and method (distillation_methods).
    init
        Folder of a drafter or T5 checkpoint to start from; None initialises from the target.
    sizes
        Entries of the drafter's configuration that differ from the defaults.
    steps, warmup_steps, decay_steps
        Updates in all, and those of warm-up and decay (trainer.learning_rate_factor).
    batch_size
        Articles of an update, over all processes and accumulation steps.
    accumulation
        Batches into which an update is divided.
    learning_rate
        Peak learning rate of AdamW.
    max_target, sample_tokens
        Longest summary and longest sample of the drafter in tokens.
    seed
        Of weights, order and samples.
    bf16
        Multiply in bfloat16; weights stay float32.
    """

    drafter: str = "lstm"
    method: DistillationConfig = field(default_factory=DistillationConfig)
    init: str | None = None
    sizes: tuple[tuple[str, object], ...] = ()
    steps: int = 2000
    warmup_steps: int = 50
    decay_steps: int = 500
    batch_size: int = 16
    accumulation: int = 1
    learning_rate: float = 1e-3
    max_target: int = 128
    sample_tokens: int = 128
    seed: int = 0
    bf16: bool = False


class Student(torch.nn.Module):
    """Wraps a drafter's module, so that the Trainer does not see its `config`, into which it would write."""

    def __init__(self, drafter: torch.nn.Module):
        super().__init__()
        self.drafter = drafter

    def forward(self, *inputs, **options):
        """The drafter's logits."""
        return self.drafter(*inputs, **options)


class DistillationTrainer(TrainerMixin, Trainer):
    """Trainer of a Student: prepares the summaries of a step, queries the teacher, keeps the checkpoint with the best alpha.

    Parameters
    ----------
    config
        What determines the weights.
    context
        The target.
    articles
        Training data.
    heldout
        Temperature to articles with the target's output at that temperature, on which alpha is measured.
    top
        Cached logits of the teacher, used in place of the teacher.
    **arguments
        Those of transformers' Trainer.
    """

    # compute_loss divides by the tokens of the whole update
    loss_is_scaled_for_ga = True

    def __init__(self, config: DrafterTrainingConfig, context: TrainingContext, articles: Articles,
                 heldout: dict[float, Articles], top: TopLogits | None, **arguments):
        super().__init__(config, **arguments)
        self.context, self.articles, self.heldout, self.top = context, articles, heldout, top
        self.encodings, self.evaluation_seconds = context.encoded(articles), 0.0

    @property
    def drafter(self) -> torch.nn.Module:
        """The drafter's module."""
        return self.accelerator.unwrap_model(self.model).drafter

    def create_optimizer(self, model=None):
        """AdamW without weight decay."""
        parameters = [parameter for parameter in (model or self.model).parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(parameters, lr=self.args.learning_rate, betas=(0.9, 0.98), weight_decay=0.0,
                                           fused=True)
        return self.optimizer

    def _get_train_sampler(self, train_dataset=None):
        return LengthGroups(self.articles.lengths(), self.config.batch_size, self.config.seed)

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        """The batches of an update, with the drafter's samples in on-policy steps, and the scored tokens of both terms.

        The numbers of tokens are sums over all processes.
        """
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
        articles, longest = batch["article"].tolist(), batch["source_ids"].shape[1]
        if self.encodings is not None:
            batch["encoder_output"] = self.encodings.batch(articles, longest)
        else:
            batch["encoder_output"] = self.context.teacher.encode(
                batch["source_ids"].to(self.context.device), batch["source_mask"].to(self.context.device)).cpu()
        samples = self._samples(batch, drafter, noise) if drafter is not None else None
        return step_inputs(self.config.method, batch, samples, self.context.engine.start_token)

    def _samples(self, batch: dict, drafter, noise: int) -> list[np.ndarray]:
        lengths = batch["source_mask"].sum(1).tolist()
        sources = [tokens[:length].cpu() for tokens, length in zip(batch["source_ids"], lengths, strict=True)]
        encoded = [output[:length].cpu() for output, length in zip(batch["encoder_output"], lengths, strict=True)]
        method, seed = self.config.method, self.config.seed * 2**32 + noise
        if method.objective == "policy":
            return mixed_samples(drafter, self.context.engine, sources, encoded, self.config.sample_tokens, seed,
                                 method.teacher_mix)
        return student_samples(drafter, self.context.engine, sources, encoded, self.config.sample_tokens, seed)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """The loss of a batch (distillation_methods.step_loss), divided by the tokens of the update."""
        source, labels = inputs["source"], inputs["labels"]
        scored = labels != IGNORE
        encoded, mask = inputs["encoder_output"][source], inputs["source_mask"][source]
        read = (inputs["input_ids"], encoded, mask, inputs["source_ids"][source])
        hidden = feature_loss = None
        if self.drafter.reads_features:
            hidden = self.context.teacher.hidden(*read[:3])
            logits, feature_loss = model(*read, scored=scored, features=hidden)
        else:
            logits = model(*read, scored=scored)

        def query_teacher(n: int):
            if self.top is not None:
                tokens, log_p = self.top.batch(inputs["article"].tolist())
                return tokens.to(logits.device), log_p.to(logits.device)
            if hidden is not None:
                return self.context.teacher.score(hidden[-n:][scored[-n:]])
            return self.context.teacher.logits(inputs["input_ids"][-n:], encoded[-n:], mask[-n:], scored[-n:])

        counts = tuple(num_items_in_batch.tolist())
        loss = step_loss(self.config.method, inputs, logits, query_teacher, counts)
        if feature_loss is not None:
            loss = loss + FEATURE_LOSS * feature_loss.sum() / max(sum(counts), 1)
        # gradients are averaged over processes, but the loss is a sum over them
        return loss * self.args.world_size

    @torch.no_grad()
    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix="eval"):
        """alpha at each temperature of `heldout`, and their mean, which decides the checkpoint that is kept."""
        model = self.drafter
        training, began = model.training, time.perf_counter()
        model.eval()
        metrics = {
            f"{metric_key_prefix}_alpha_T{temperature:g}": teacher_forced_alpha(model, self.context, articles, temperature)
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
