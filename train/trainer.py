"""What all training runs share: the learning rate schedule, atomic checkpoints, the log, and a clean stop on a signal.

The schedule is warm-up, stable, decay (Hu et al. 2024, "MiniCPM", section 4), a pure function of the step. So a resumed run
may be given another number of steps, and continues the stable phase.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from transformers import TrainerCallback
from transformers.activations import NewGELUActivation
from transformers.trainer import TRAINER_STATE_NAME

from foredraft.atomic_write import why_full
from foredraft.errors import UserError


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Whatever is written in the block belongs to `path`. UserError: the disk is full."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        if (reason := why_full(error)) is None:
            raise
        raise UserError(f"{path}: {reason}; free some space and run the command again") from None


def learning_rate_factor(step: int, warmup: int, steps: int, decay: int) -> float:
    """Linear warm-up, then 1, then linear decay to 0 over the last `decay` of `steps`; `step` counts finished updates."""
    rising = min(1.0, (step + 1) / max(warmup, 1))
    falling = min(1.0, max(steps - step, 0) / max(decay, 1))
    return min(rising, falling)


class TrainerMixin:
    """Mixin for a transformers Trainer: the schedule of `config` (steps, warmup_steps, decay_steps), atomic checkpoints."""

    def __init__(self, config, **arguments):
        super().__init__(**arguments)
        self.config = config

    def create_scheduler(self, num_training_steps, optimizer=None):
        """The warm-up, stable, decay schedule."""
        config = self.config

        def factor(step: int) -> float:
            return learning_rate_factor(step, config.warmup_steps, config.steps, config.decay_steps)

        self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer or self.optimizer, factor)
        return self.lr_scheduler

    def _save_checkpoint(self, model, trial):
        # every process of a distributed run writes its random state, so all of them write to the partial folder
        final, partial = Path(self.args.output_dir), Path(self.args.output_dir) / ".partial"
        name, main = f"checkpoint-{self.state.global_step}", self.is_world_process_zero()
        if main:
            shutil.rmtree(partial, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        self.args.output_dir = str(partial)
        try:
            with naming(final / name):
                super()._save_checkpoint(model, trial)
        finally:
            self.args.output_dir = str(final)
        self.accelerator.wait_for_everyone()
        best = self.state.best_global_step
        self.state.best_model_checkpoint = str(final / f"checkpoint-{best}") if best else None
        if main:
            with naming(final / name):
                self.state.save_to_json(str(partial / name / TRAINER_STATE_NAME))
            shutil.rmtree(final / name, ignore_errors=True)
            os.replace(partial / name, final / name)
            partial.rmdir()
            steps = sorted(int(path.name.split("-")[1]) for path in final.glob("checkpoint-*"))
            for step in steps[: -self.args.save_total_limit]:
                if step != best:
                    shutil.rmtree(final / f"checkpoint-{step}")
        self.accelerator.wait_for_everyone()


class LogAndStop(TrainerCallback):
    """Appends log entries to a file; on SIGINT or SIGTERM saves a checkpoint after the step and stops."""

    def __init__(self, log: Path):
        self.log, self.stopping, self.previous = log, False, {}

    def on_train_begin(self, args, state, control, **kwargs):
        """Install the signal handlers."""
        # the state of a checkpoint contains the intervals of the earlier run
        state.logging_steps, state.eval_steps, state.save_steps = args.logging_steps, args.eval_steps, args.save_steps
        for number in (signal.SIGINT, signal.SIGTERM):
            self.previous[number] = signal.signal(number, self._stop)

    def _stop(self, number, frame):
        self.stopping = True

    def on_step_end(self, args, state, control, **kwargs):
        """Stop all processes after the same step."""
        if torch.distributed.is_initialized():
            stopping = torch.tensor(int(self.stopping), device=args.device)
            torch.distributed.all_reduce(stopping, torch.distributed.ReduceOp.MAX)
            self.stopping = bool(stopping)
        if self.stopping:
            control.should_save = control.should_training_stop = True

    def on_train_end(self, args, state, control, **kwargs):
        """Restore the signal handlers."""
        for number, handler in self.previous.items():
            signal.signal(number, handler)

    def on_log(self, args, state, control, logs=None, **kwargs):
        """Append an entry."""
        if not state.is_world_process_zero:
            return
        with naming(self.log), open(self.log, "a", encoding="utf-8") as file:
            file.write(json.dumps({"step": state.global_step, **(logs or {})}) + "\n")


def checkpoint_step(folder: str | Path | None) -> int:
    """The step of a checkpoint folder; 0 for None."""
    return int(Path(folder).name.rsplit("-", 1)[1]) if folder else 0


def fuse_gelu(model: torch.nn.Module) -> None:
    """Replace transformers' "gelu_new", the tanh approximation in seven elementwise passes, by torch's one pass."""
    for module in model.modules():
        if isinstance(getattr(module, "act", None), NewGELUActivation):
            module.act = torch.nn.GELU(approximate="tanh")
