"""The history of a checkpoint: one entry for each training run, stored beside the weights in training.json."""

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
    """The runs recorded in `folder`, oldest first; empty if there are none."""
    path = Path(folder) / NAME
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []


def record_run(folder: str | Path, run: dict) -> None:
    """Append a run to the folder's history, atomically."""
    path = Path(folder) / NAME
    write_atomic(path, json.dumps([*read_history(folder), run], indent=1) + "\n")


def describe_run(config, data: list[dict], first_step: int, last_step: int, seconds: float) -> dict:
    """The entry of a run: configuration, data files (name, pairs, fingerprint), steps (first, last], time and machine."""
    return {
        "recipe": asdict(config),
        "data": data,
        "first_step": first_step,
        "last_step": last_step,
        "seconds": round(seconds),
        "machine": machine(),
    }


def command(run: dict, recipe_type) -> str:
    """The `foredraft train-target` command of a recorded run, with the options that differ from their defaults."""
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
    """Device name, CPU cores, threads and library versions."""
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
