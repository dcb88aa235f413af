"""How a target came to be: one entry a run, kept beside its weights, from which the model card is written."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, fields
from pathlib import Path

import torch
import transformers

from foredraft.atomic_write import write_atomic

NAME = "training.json"


def read_history(folder: str | Path) -> list[dict]:
    """The runs recorded in ``folder``, oldest first; empty if there are none."""
    path = Path(folder) / NAME
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []


def record_run(folder: str | Path, run: dict) -> None:
    """Append ``run`` to the folder's history; the file is replaced whole."""
    path = Path(folder) / NAME
    write_atomic(path, json.dumps([*read_history(folder), run], indent=1) + "\n")


def describe_run(config, data: list[dict], first_step: int, last_step: int, seconds: float) -> dict:
    """One entry: config, data files (name, pairs, fingerprint), the steps ``(first, last]`` done and the time taken."""
    return {
        "recipe": asdict(config),
        "data": data,
        "first_step": first_step,
        "last_step": last_step,
        "seconds": round(seconds),
        "machine": machine(),
    }


def command(run: dict, recipe_type) -> str:
    """The ``foredraft train-target`` line of a recorded run; only options that differ from their defaults appear."""
    words = ["foredraft train-target --data DATA --tokenizer TOKENIZER --out OUT"]
    for field in fields(recipe_type):
        value, option = run["recipe"][field.name], f"--{field.name.replace('_', '-')}"
        if value is True:
            words.append(option)
        elif value != field.default:
            words.append(f"{option} {value}")
    if run["first_step"]:
        words.append("--resume")
    return " ".join(words)


def machine() -> dict[str, str | int]:
    """What computed: device name, CPU cores, threads and library versions."""
    return {
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else _processor(),
        "cores": os.cpu_count() or 0,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return "CPU"
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else "CPU"
