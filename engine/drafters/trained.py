"""The kinds of trained drafters: by the name a user types, and by the config.json of a folder."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

from foredraft.engine.drafters.neural.drafter_module import read_json
from foredraft.engine.models.t5_cuda_weights import T5WeightsCuda
from foredraft.engine.models.t5_weights import T5Weights
from foredraft.engine.protocols import Drafter
from foredraft.errors import UserError

# The name a user types: module, its torch class, its Drafter. t5small has an encoder of its own, the
# others read the target's output.
KINDS = {
    "lstm": ("neural.lstm", "LSTMModel", "LSTMDrafter"),
    "cnn": ("neural.cnn", "CNNModel", "CNNDrafter"),
    "head": ("neural.eagle_head", "EagleModel", "EagleDrafter"),
    "t5small": ("neural.t5_drafter", "T5Model", "T5Drafter"),
    "t5shallow": ("neural.t5_drafter", "ShallowT5Model", "ShallowT5Drafter"),
}
# Their Drafters on a device.
ON_DEVICES = {
    "lstm": ("cuda.recurrent_cuda", "LSTMDrafterCuda"),
    "cnn": ("cuda.recurrent_cuda", "CNNDrafterCuda"),
    "t5small": ("cuda.t5_drafter_cuda", "T5DrafterCuda"),
    "t5shallow": ("cuda.t5_drafter_cuda", "ShallowT5DrafterCuda"),
}


def model_class(kind: str) -> type:
    """The torch class of a kind: from_target, forward, save, load as engine/drafters/neural/drafter_module.py says."""
    if kind not in KINDS:
        raise UserError(f"drafter {kind!r} is not known; one of {', '.join(KINDS)}")
    return _named(kind, 1)


def _named(kind: str, which: int):
    return _imported(KINDS[kind][0], KINDS[kind][which])


def _imported(module: str, name: str):
    return getattr(import_module(f"foredraft.engine.drafters.{module}"), name)


def kind_of(folder: str | Path) -> str:
    """The kind of the trained drafter in a folder, by the model_type in its config.json."""
    found = read_json(Path(folder)).get("model_type")
    for kind in KINDS:
        if found == model_class(kind).model_type:
            return kind
    raise UserError(f"{folder}: model_type {found!r} is no drafter; give a T5 checkpoint or what `foredraft train` wrote")


def open_drafter(folder: Path, target: T5Weights | T5WeightsCuda, target_folder: Path, tokenizer: Any) -> Drafter:
    """The Drafter of any kind in a folder, for a target: its weights, its folder, its tokenizer or None; where the target's
    weights lie."""
    kind = kind_of(folder)
    on_cpu = isinstance(target, T5Weights)
    if not on_cpu and kind not in ON_DEVICES:
        raise UserError(f"{folder}: a {kind} drafts on the CPU only so far; on a device use {', '.join(ON_DEVICES)}")
    found = _named(kind, 2) if on_cpu else _imported(*ON_DEVICES[kind])
    return found.open(folder, target, target_folder, tokenizer)
