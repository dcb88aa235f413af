"""The folder of a training run: one run, begun once, resumed only with the settings that it was begun with."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from transformers.trainer_utils import get_last_checkpoint

from foredraft.atomic_write import write_atomic
from foredraft.errors import UserError
from foredraft.json_file import read_object
from foredraft.output_lock import only_writer
from foredraft.train.trainer import checkpoint_step

SETTINGS = "settings.json"
# what the process that trains in the folder locks
RUN = "run"
# A resumed run may be given more updates: the learning rate is constant until the decay begins (trainer.py).
MAY_CHANGE = ("--steps", "--decay-steps")
FLAGS = {"learning_rate": "--lr", "sizes": "--size"}


def flags_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """{flag: value} of a configuration's fields, those of nested configurations included."""
    flags: dict[str, Any] = {}
    for name, value in config.items():
        flags |= flags_of(value) if isinstance(value, Mapping) else {FLAGS.get(name, f"--{name.replace('_', '-')}"): value}
    return json.loads(json.dumps(flags))


def only_trainer(out: Path) -> AbstractContextManager[None]:
    """Lock a run's folder inside the block. UserError: another run has it. The processes of one run have one lock."""
    return only_writer(out / RUN, shown=out) if os.environ.get("RANK", "0") == "0" else nullcontext()


def begin_run(out: Path, settings: Mapping[str, Any], steps: int, resume: bool, check: bool = True) -> str | None:
    """Begin a run in `out`, or find the checkpoint to resume from.

    Parameters
    ----------
    out
        Folder of the run.
    settings
        {flag: value} of everything that determines the weights; stored in `out` when the run begins.
    steps
        Updates in all.
    resume
        Whether to resume.
    check
        Whether a resumed run must have the settings that it was begun with; a further phase has others.

    Returns
    -------
    str or None
        The newest checkpoint; None for a new run.

    Raises
    ------
    UserError
        Without `resume`: the folder is in use. With it: there is no checkpoint, a setting differs, or more updates are done.
    """
    path = out / SETTINGS
    if not resume:
        refuse_used(out)
        write_atomic(path, json.dumps(settings, indent=1) + "\n")
        return None
    checkpoint = get_last_checkpoint(str(out)) if out.is_dir() else None
    if checkpoint is None:
        raise UserError(f"{out}: contains no checkpoint-N to resume from; start without --resume")
    if check and path.is_file():
        begun = read_object(path, "give another --out")
        for flag, value in settings.items():
            if flag not in MAY_CHANGE and begun.get(flag) != value:
                raise UserError(f"{out}: was begun with {flag} {begun.get(flag)}, this run has {flag} {value}; use the "
                                "earlier settings, or give another --out")
    if check and (done := checkpoint_step(checkpoint)) > steps:
        raise UserError(f"{out}: {done} updates are done, --steps is {steps}; give at least {done}, or another --out")
    return checkpoint


def refuse_used(out: Path) -> None:
    """UserError if a new run in this folder would replace a model or mix with another run."""
    out = Path(out)
    if out.exists() and not out.is_dir():
        raise UserError(f"{out}: is a file; give a folder as --out")
    found = [path.name for pattern in ("checkpoint-*", "config.json", "*.safetensors", "*.bin", "training.json")
             for path in out.glob(pattern)]
    if found:
        raise UserError(f"{out}: contains a model or another run ({found[0]}); give another --out, or --resume to continue "
                        "an interrupted run")
