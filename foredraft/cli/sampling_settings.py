"""Options of `generate` and `summarize` that become fields of SamplingParams, including `--set`."""

from __future__ import annotations

import json
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from foredraft.engine.arguments import NAMES
from foredraft.engine.params import SamplingParams
from foredraft.errors import UserError

# Fields that have an option; --set refuses them.
OPTIONS = {
    "max_new_tokens": "--max-new-tokens", "max_length": "--max-new-tokens", "draft_tokens": "--draft-tokens",
    "do_sample": "--temperature", "temperature": "--temperature", "top_k": "--top-k", "top_p": "--top-p", "seed": "--seed",
    "min_new_tokens": "--min-new-tokens", "repetition_penalty": "--repetition-penalty",
    "no_repeat_ngram_size": "--no-repeat-ngram-size", "num_beams": "--num-beams", "length_penalty": "--length-penalty",
    "early_stopping": "--early-stopping", "choices": "--choices", "regex": "--regex",
    "json_schema": "--json-schema"}
# Fields whose values are functions, or whose results the commands do not print.
PYTHON_ONLY = ("logits_processor", "prefix_allowed_tokens_fn", "stopping_criteria", "logprobs", "output_scores",
               "output_logits", "num_return_sequences")


def parse_settings(json_schema: Path | None, assignments: list[str] | None, **options: Any) -> dict[str, Any]:
    """Collect the given settings, by field of SamplingParams.

    Parameters
    ----------
    json_schema : Path or None
        The file of `--json-schema`.
    assignments : list of str or None
        The values of `--set`: NAME=VALUE, where VALUE is JSON or else a text.
    **options
        Values of options, by field; None is not given.

    Returns
    -------
    dict

    Raises
    ------
    UserError
        A setting is wrong; the message names its option.
    """
    found = {}
    for name, value in options.items():
        if value is not None:
            found[name] = _checked(OPTIONS[name], name, value)
    if json_schema is not None:
        if not json_schema.is_file():
            raise UserError(f"--json-schema {json_schema}: no such file; give a file with a JSON schema")
        try:
            text = json_schema.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise UserError(f"--json-schema {json_schema}: not UTF-8 at byte {error.start}; convert it to UTF-8") from None
        found["json_schema"] = _checked(f"--json-schema {json_schema}", "json_schema", text)
    for assignment in assignments or []:
        name, mark, value = assignment.partition("=")
        name = name.strip().replace("-", "_")
        _check_name(assignment, name if mark else "")
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            pass  # the value stays a text
        if value is not None:
            found[name] = _checked(f"--set {assignment}", name, value)
    return found


def _check_name(assignment: str, name: str) -> None:
    if not name:
        raise UserError(f"--set is {assignment!r}; give NAME=VALUE, such as min_p=0.1")
    if name in OPTIONS:
        raise UserError(f"--set {name}: has an option of its own; give {OPTIONS[name]}")
    if name in PYTHON_ONLY:
        raise UserError(f"--set {name}: is supported in Python only; leave it out")
    if name not in NAMES:
        near = get_close_matches(name, NAMES, 1)
        mend = f"did you mean {near[0]}?" if near else "leave it out"
        raise UserError(f"--set {name}: there is no such setting; {mend}")


def _checked(option: str, name: str, value: Any) -> Any:
    """The value as SamplingParams keeps it."""
    try:
        # SamplingParams refuses a min_new_tokens above max_new_tokens, which is not known here
        return getattr(SamplingParams(**{"max_new_tokens": 100_000, name: value}), name)
    except UserError as error:
        raise UserError(f"{option}: {error}") from None
