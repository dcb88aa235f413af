"""Where the settings of a request come from: its own, those of the call, and the checkpoint's generation_config.json.

An earlier one of these three takes precedence, as in transformers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from difflib import get_close_matches
from numbers import Number
from pathlib import Path
from typing import Any, TypedDict

from foredraft.engine.params import MAX_NEW_TOKENS, SamplingParams
from foredraft.errors import UserError
from foredraft.json_file import read_object


class SamplingSettings(TypedDict, total=False):
    """The fields of SamplingParams as keyword arguments; None is not given."""

    max_new_tokens: int | None
    draft_tokens: int | str | None
    do_sample: bool | None
    temperature: float | None
    top_k: int | None
    top_p: float | None
    seed: int | None
    stop_strings: str | Sequence[str] | None
    max_length: int | None
    min_length: int | None
    min_new_tokens: int | None
    max_time: float | None
    eos_token_id: int | Sequence[int] | None
    decoder_start_token_id: int | None
    repetition_penalty: float | None
    encoder_repetition_penalty: float | None
    no_repeat_ngram_size: int | None
    encoder_no_repeat_ngram_size: int | None
    bad_words_ids: Sequence[Sequence[int]] | None
    suppress_tokens: Sequence[int] | None
    begin_suppress_tokens: Sequence[int] | None
    forced_bos_token_id: int | None
    forced_eos_token_id: int | Sequence[int] | None
    sequence_bias: Mapping[tuple[int, ...], float] | Sequence | None
    exponential_decay_length_penalty: tuple[int, float] | None
    remove_invalid_values: bool | None
    renormalize_logits: bool | None
    top_h: float | None
    min_p: float | None
    typical_p: float | None
    epsilon_cutoff: float | None
    eta_cutoff: float | None
    logits_processor: Callable | Sequence[Callable] | None
    prefix_allowed_tokens_fn: Callable | None
    choices: Sequence[str] | Sequence[Sequence[int]] | None
    regex: str | None
    json_schema: str | Mapping | None
    stopping_criteria: Callable | Sequence[Callable] | None
    num_beams: int | None
    length_penalty: float | None
    early_stopping: bool | str | None
    num_return_sequences: int | None
    logprobs: int | None
    output_scores: bool | None
    output_logits: bool | None


NAMES = tuple(field.name for field in fields(SamplingParams))
# Arguments of transformers' generate that are not supported, and the values with which they ask for nothing.
UNSUPPORTED: dict[str, tuple] = {
    "num_beam_groups": (1,), "diversity_penalty": (0,), "penalty_alpha": (0,), "dola_layers": (),
    "guidance_scale": (1,), "watermarking_config": (), "token_healing": (False,), "constraints": ([],),
    "force_words_ids": ([],), "output_attentions": (False,), "output_hidden_states": (False,), "assistant_model": (),
    "negative_prompt_ids": (), "negative_prompt_attention_mask": (), "custom_generate": (), "decoder_input_ids": (),
}
# Arguments of transformers' generate that say how to compute or to pad, not what: accepted, and without effect here.
WITHOUT_EFFECT = frozenset({
    "use_cache", "cache_implementation", "cache_config", "max_cache_len", "low_memory", "compile_config", "disable_compile",
    "prefill_chunk_size", "synced_gpus", "return_dict_in_generate", "is_assistant", "num_assistant_tokens",
    "num_assistant_tokens_schedule", "assistant_confidence_threshold", "prompt_lookup_num_tokens", "max_matching_ngram_size",
    "assistant_early_exit", "assistant_lookbehind", "target_lookbehind", "assistant_ensemble_weight", "use_mtp",
    "speculation_type", "continuous_batching_config", "pad_token_id", "bos_token_id"})
_MAX, _MIN = frozenset({"max_new_tokens", "max_length"}), frozenset({"min_new_tokens", "min_length"})
# Entries of a generation_config.json that are no settings.
_NO_SETTINGS = frozenset({"transformers_version", "max_seq_len", "id"})


def check_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that are not None. UserError: one is unknown, or not supported."""
    given = {name: value for name, value in settings.items() if value is not None}
    for name, value in given.items():
        if name in UNSUPPORTED:
            if not _asks_for_nothing(name, value):
                raise UserError(f"{name}={value!r} is not supported; leave it out")
        elif name not in NAMES and name not in WITHOUT_EFFECT:
            near = get_close_matches(name, NAMES, 1)
            advice = f"did you mean {near[0]!r}?" if near else "leave it out"
            raise UserError(f"there is no argument {name!r}; {advice}")
    return {name: value for name, value in given.items() if name in NAMES}


def _asks_for_nothing(name: str, value: Any) -> bool:
    """Whether an argument that is not supported has a value without effect."""
    return isinstance(value, (Number, list)) and value in UNSUPPORTED[name]


def known_settings(config: Any) -> dict[str, Any]:
    """The settings in a GenerationConfig or a mapping. UserError: it is neither, or one is not supported."""
    if not isinstance(config, Mapping) and not hasattr(config, "to_dict"):
        raise UserError(f"generation_config is of type {type(config).__name__}; give a transformers.GenerationConfig or a "
                        "dict")
    entries = config if isinstance(config, Mapping) else config.to_dict()
    return check_settings({name: value for name, value in entries.items() if name in NAMES or name in UNSUPPORTED})


def override(weaker: Mapping[str, Any], stronger: Mapping[str, Any]) -> dict[str, Any]:
    """The union, in which `stronger` takes precedence.

    A limit of `stronger` replaces that of `weaker`, also if one of them counts new tokens and the other all tokens.
    """
    replaced = {name for names in (_MIN, _MAX) if not names.isdisjoint(stronger) for name in names}
    return {name: value for name, value in weaker.items() if name not in replaced} | dict(stronger)


def merge(given: Mapping[str, Any], defaults: Mapping[str, Any]) -> SamplingParams:
    """The settings of a request: those given, and defaults for the rest. UserError as SamplingParams.

    If a maximum is given, a larger minimum among the defaults is lowered to it.
    """
    merged = override(defaults, given)
    if _MIN.isdisjoint(given) and not _MAX.isdisjoint(given):
        least = {name: merged.pop(name) for name in _MIN & merged.keys()}
        shortest = SamplingParams(max_new_tokens=MAX_NEW_TOKENS, **least).min_new_tokens
        merged["min_new_tokens"] = min(shortest, SamplingParams(**given).max_new_tokens)
    return SamplingParams(**merged)


def checkpoint_settings(folder: Path) -> tuple[dict[str, Any], list[str]]:
    """The settings of a checkpoint, in generation_config.json or, if that is missing, in config.json.

    Returns
    -------
    settings : dict
        Fields of SamplingParams.
    warnings : list of str
        One for each entry that has no effect but should have one.

    Raises
    ------
    UserError
        A file is not JSON, or an entry has a value that is not possible.
    """
    path, config = folder / "generation_config.json", folder / "config.json"
    if not path.exists():
        return settings_of(read_object(config), config, False) if config.exists() else ({}, [])
    entries = read_object(path)
    if entries.get("_from_model_config") and config.exists():
        # transformers made it from config.json; if they differ, one was edited later, so the end tokens of both count
        both = [_listed(source.get("eos_token_id")) for source in (read_object(config), entries)]
        entries["eos_token_id"] = [*dict.fromkeys([*both[0], *both[1]])] or None
    return settings_of(entries, path, True)


def _listed(entry: Any) -> list:
    return entry if isinstance(entry, list) else [] if entry is None else [entry]


def task_entries(folder: Path, task: str) -> dict[str, Any]:
    """The entry of a task in `task_specific_params` of config.json, with its prefix. UserError: it is no object."""
    path = folder / "config.json"
    tasks = (read_object(path) if path.exists() else {}).get("task_specific_params") or {}
    entries = tasks.get(task) or {} if isinstance(tasks, dict) else None
    if not isinstance(entries, dict):
        raise UserError(f"{path}: task_specific_params holds no object for {task!r}; remove or correct the entry")
    return entries


def settings_of(entries: Mapping[str, Any], path: Path, is_own: bool) -> tuple[dict[str, Any], list[str]]:
    """As checkpoint_settings, of a file's entries. is_own: the file holds only settings, so unknown entries are reported."""
    settings, warnings = {}, []
    for name, value in entries.items():
        if name == "eos_token_id" and value is None:
            settings[name] = ()
        elif value is None:
            continue
        elif name in NAMES and name != "seed":
            settings[name] = value
        elif name in UNSUPPORTED:
            if not _asks_for_nothing(name, value):
                warnings.append(f"{path.name}: {name} is {value!r}, which is not supported; decoding goes on without it")
        elif is_own and name not in WITHOUT_EFFECT | _NO_SETTINGS and not name.startswith("_"):
            warnings.append(f"{path.name}: {name} is not known; decoding goes on without it")
    if entries.get("decoder_start_token_id") is None and isinstance(entries.get("bos_token_id"), int):
        settings["decoder_start_token_id"] = entries["bos_token_id"]
    try:
        SamplingParams(**settings)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    return settings, warnings
