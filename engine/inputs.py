"""Checks of inputs: texts or token ids."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from foredraft.errors import UserError

# The share of a text's tokens that may be unknown without a warning.
MOST_UNKNOWN = 0.01


def check_inputs(inputs: Any) -> Iterable:
    """UserError: it is no list of inputs. Bytes and mappings are iterable, but not inputs."""
    if isinstance(inputs, (bytes, bytearray, Mapping)) or not isinstance(inputs, Iterable):
        raise UserError(f"the input is of type {type(inputs).__name__}; give a text, a list of texts, or a list of lists of "
                        "token ids")
    return inputs


def _half_pair(text: str) -> int | None:
    """Where a text has half of a surrogate pair, which no encoding can write."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return error.start
    return None


def tokens_of(name: str, item: Any, tokenizer: Any, vocabulary: int, path: Path) -> list[int]:
    """The tokens of one input; `name` is for messages. UserError: it has none, or some outside 0..vocabulary-1."""
    if isinstance(item, str):
        if not item.strip():
            raise UserError(f"{name} is empty; give some text")
        if not item.isascii() and (bad := _half_pair(item)) is not None:
            raise UserError(f"{name} has half of a surrogate pair, {item[bad]!a}, at character {bad}; remove it")
        if tokenizer is None:
            raise UserError(f"{path}: there is no tokenizer.json or spiece.model, so texts cannot be read; add one or pass "
                            "token ids")
        tokens = tokenizer.encode(item).ids
        if tokens and max(tokens) >= vocabulary:
            # a tokenizer may have more tokens than the model, such as sentinels that it was not trained with
            raise UserError(f"{name} holds {tokenizer.id_to_token(max(tokens))!r}, token {max(tokens)}, which the model "
                            f"lacks: its vocabulary has {vocabulary} tokens; leave it out")
        return tokens
    try:
        tokens = [operator.index(token) for token in check_inputs(item)]
    except (TypeError, ValueError):
        raise UserError(f"{name} is neither a text nor a list of token ids; give one of the two") from None
    if not tokens:
        raise UserError(f"{name} is empty; give at least one token id")
    if not all(0 <= token < vocabulary for token in tokens):
        raise UserError(f"{name} holds a token id outside 0..{vocabulary - 1}; use the model's own tokenizer")
    return tokens


def unknown_share(name: str, item: Any, tokens: list[int], tokenizer: Any) -> list[str]:
    """A warning if more than MOST_UNKNOWN of a text's tokens are <unk>."""
    unknown = tokenizer.token_to_id("<unk>") if isinstance(item, str) else None
    share = tokens.count(unknown) / len(tokens) if tokens and unknown is not None else 0
    if share <= MOST_UNKNOWN:
        return []
    return [f"{name}: {share:.0%} of its tokens are <unk>: the model's vocabulary lacks these characters"]


def cut_source(name: str, tokens: list[int], limit: int | None, end_token: int) -> tuple[list[int], list[str]]:
    """The first `limit` tokens of a source, and a warning if some were cut.

    The last one becomes the end token, unless the model has none (negative).
    """
    if limit is None or len(tokens) <= limit:
        return tokens, []
    kept = tokens[:limit] if end_token < 0 else [*tokens[: limit - 1], end_token]
    return kept, [f"{name} has {len(tokens)} tokens; the first {limit} were read, {len(tokens) - limit} were cut "
                  f"(the limit is {limit})"]
