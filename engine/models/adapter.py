"""LoRA adapters (Hu et al. 2022) in PEFT's format. A tensor W is read as W + scale B A."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from foredraft.engine.models.checkpoint import StoredTensors, Tensors
from foredraft.engine.models.spec import FAMILIES, ModelConfig
from foredraft.errors import UserError
from foredraft.json_file import read_object

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
MERGE = "merge the adapter with PEFT's merge_and_unload() and save the model"
# PEFT names a tensor _PREFIX + MODULE + ".lora_A.weight", and a replaced weight of a LoRA module MODULE + _BASE + ".weight".
_PREFIX, _BASE = "base_model.model.", ".base_layer"
# Entries of adapter_config.json that are read here, that repeat what the tensors' names say, or that affect training only.
# PEFT ignores fan_in_fan_out for linear layers, and a T5 has no others.
_KNOWN = frozenset("""
    peft_type r lora_alpha use_rslora rank_pattern alpha_pattern init_lora_weights task_type auto_mapping peft_version
    base_model_name_or_path revision inference_mode target_modules exclude_modules lora_dropout fan_in_fan_out
    modules_to_save layers_to_transform layers_pattern megatron_core qalora_group_size eva_config runtime_config""".split())
# Initialisations that subtract from the base weights, so that the published base is not the base of the adapter.
_CHANGE_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")


class Adapter(StoredTensors):
    """The settings and tensors of an adapter.

    Parameters
    ----------
    path : Path
        A directory with adapter_config.json and adapter_model.safetensors.

    Raises
    ------
    UserError
        A file is missing or unreadable, or the adapter is not a LoRA or has an unsupported entry.
    """

    def __init__(self, path: Path):
        self.settings, file = _read_settings(path), path / WEIGHTS
        if not file.exists():
            found = "is missing, and adapter_model.bin is pickled" if file.with_suffix(".bin").exists() else "is missing"
            raise UserError(f"{path}: {WEIGHTS} {found}; save the adapter again with PEFT's save_pretrained()")
        super().__init__(path, [file])

    def scale(self, module: str) -> float:
        """alpha / r of a module, or alpha / sqrt(r) with rsLoRA. The first pattern that matches decides."""
        rank, alpha = (_by_pattern(self.settings.get(f"{name}_pattern") or {}, module, self.settings.get(key, 8))
                       for name, key in (("rank", "r"), ("alpha", "lora_alpha")))
        return alpha / (math.sqrt(rank) if self.settings.get("use_rslora") else rank)


class AdaptedTensors(Tensors):
    """The tensors of a model with an adapter merged into them.

    Parameters
    ----------
    base : Tensors
    adapter : Adapter
    config : ModelConfig
        Config of the base model.

    Raises
    ------
    UserError
        The adapter has a tensor for which this model has no weight.
    """

    def __init__(self, base: Tensors, adapter: Adapter, config: ModelConfig):
        super().__init__({}, base.path)
        family = FAMILIES[config.model_type]
        self.base, self.adapter, self.head = base, adapter, family.head
        # the table that a tied head reads
        self.embedding = base.tables(config)[0]
        # the embeddings are left out: PEFT adapts the encoder's, the decoder's and the shared table separately
        mergeable = {*base.names, family.head}.difference(family.embeddings)
        self.replaced, self.pairs = set(), set()
        for name in adapter.names:
            # a tensor without ".lora_" replaces the base weight: modules_to_save, or the weight of an adapted head
            module, _, part = name.removeprefix(_PREFIX).replace(_BASE, "").partition(".lora_")
            weight = f"{module}.weight" if part else module
            if not name.startswith(_PREFIX) or part not in ("", "A.weight", "B.weight") or weight not in mergeable:
                raise UserError(f"{adapter.path}: holds {name!r}, which cannot be merged into {base.path}; {MERGE}")
            (self.pairs if part else self.replaced).add(weight)

    @property
    def names(self) -> Collection[str]:
        return {*self.base.names, *self.replaced, *self.pairs}

    def raw(self, name: str) -> Tensor:
        module = name.removesuffix(".weight")
        own = next((own for own in (_PREFIX + name, f"{_PREFIX}{module}{_BASE}.weight") if own in self.adapter.names), None)
        if own is not None:
            weight = self.adapter.raw(own)
        else:
            weight = self.base.raw(self.embedding if name == self.head and name not in self.base.names else name)
        if name not in self.pairs:
            return weight
        a, b = (self.adapter.raw(f"{_PREFIX}{module}.lora_{part}.weight").float() for part in "AB")
        if a.ndim != 2 or b.ndim != 2 or (b.shape[0], a.shape[1]) != weight.shape or a.shape[0] != b.shape[1]:
            raise UserError(f"{self.adapter.path}: the adapter of {module} is {tuple(b.shape)} x {tuple(a.shape)}, the "
                            f"weight is {tuple(weight.shape)}; give the base model that the adapter was trained on")
        # summed in float32 and rounded once, as PEFT does
        return (weight + b @ a * self.adapter.scale(module)).to(weight.dtype)


@contextmanager
def open_checkpoint(path: Path, config: ModelConfig, adapter: Path | None = None) -> Iterator[Tensors]:
    """Open a checkpoint directory, with a LoRA adapter merged where one is given.

    Parameters
    ----------
    path : Path
    config : ModelConfig
        The checkpoint's.
    adapter : Path or None
        The adapter's directory.

    Yields
    ------
    Tensors

    Raises
    ------
    UserError
        A file is missing or unreadable, or a tensor does not belong to the model.
    """
    with StoredTensors(path) as stored:
        stored.check_names(config)
        if adapter is None:
            yield stored
            return
        with Adapter(adapter) as found:
            yield AdaptedTensors(stored, found, config)


def _read_settings(path: Path) -> dict[str, Any]:
    if not (path / CONFIG).exists():
        raise UserError(f"{path}: {CONFIG} is missing; give the folder of an adapter that PEFT saved")
    settings = read_object(path / CONFIG)
    if (kind := settings.get("peft_type")) != "LORA":
        raise UserError(f"{path / CONFIG}: peft_type {kind!r} is not supported, only 'LORA' is; {MERGE}")
    if str(settings.get("init_lora_weights")).lower().startswith(_CHANGE_BASE):
        raise UserError(f"{path / CONFIG}: init_lora_weights {settings['init_lora_weights']!r} changes the base weights, "
                        f"which is not supported; {MERGE}")
    for name, value in settings.items():
        if name not in _KNOWN and value not in (None, False, "", "none", [], {}):
            raise UserError(f"{path / CONFIG}: {name} {value!r} is not supported; {MERGE}")
    for name, patterns in (("r", "rank_pattern"), ("lora_alpha", "alpha_pattern")):
        _check_number(path, name, settings.get(name, 8), above=0 if name == "r" else None)
        if not isinstance(found := settings.get(patterns) or {}, dict):
            raise UserError(f"{path / CONFIG}: {patterns} {found!r} is not an object; write {{}} if there is none")
        for pattern, value in found.items():
            _check_number(path, f"{patterns}[{pattern!r}]", value, above=0 if name == "r" else None)
            try:
                re.compile(pattern)
            except re.error as error:
                raise UserError(f"{path / CONFIG}: {patterns} {pattern!r} is no regular expression: {error}") from None
    return settings


def _check_number(path: Path, name: str, value: Any, above: int | None) -> None:
    """UserError: no finite number, or not above `above`."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if not is_number or (above is not None and value <= above):
        wanted = "a number" if above is None else f"a number above {above}"
        raise UserError(f"{path / CONFIG}: {name} is {value!r}, which is not {wanted}; save the adapter again with PEFT")


def _by_pattern(patterns: dict[str, Any], module: str, default: Any) -> Any:
    for pattern, value in patterns.items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return default
