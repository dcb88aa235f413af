"""Checks of arguments: each returns the value as a plain Python one, or raises a UserError that names the argument."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping
from numbers import Integral, Real
from typing import Any

from foredraft.errors import UserError

# Whole numbers are stored as int64.
MOST = 2**63 - 1


def whole_number(name: str, value: Any, low: int, high: int = MOST) -> int:
    if isinstance(value, bool) or not isinstance(value, Integral) or not low <= value <= high:
        bound = f"between {low} and {high}" if high < MOST else f"of at least {low}"
        raise UserError(f"{name} is {value!r}; give a whole number {bound}")
    return int(value)


def number(name: str, value: Any, low: float, high: float, includes_low: bool) -> float:
    is_number = isinstance(value, Real) and not isinstance(value, bool)
    if not is_number or not low <= value <= high or math.isinf(value) or (value == low and not includes_low):
        bound = f" of at least {low}" if includes_low else f" above {low}" if low > -math.inf else ""
        raise UserError(f"{name} is {value!r}; give a number{bound}" + (f" and at most {high}" if high < math.inf else ""))
    return float(value)


def flag(name: str, value: Any) -> bool:
    # NumPy's bool is no Integral
    if type(value).__name__ not in ("bool", "bool_") and not (isinstance(value, Integral) and value in (0, 1)):
        raise UserError(f"{name} is {value!r}; give True or False")
    return bool(value)


def early_stopping(name: str, value: Any) -> bool | str:
    if isinstance(value, str) and value != "never":
        raise UserError(f"{name} is {value!r}; give True, False or 'never'")
    return value if isinstance(value, str) else flag(name, value)


def listed(name: str, value: Any, what: str = "a list") -> tuple:
    """The items of a list, set or array as Python values."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, (str, bytes, Mapping)) or not isinstance(value, Iterable):
        raise UserError(f"{name} is {value!r}; give {what}")
    return tuple(value)


def encodable(name: str, text: str) -> str:
    """A text without halves of surrogate pairs, which neither tokenizers nor grammars can read."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"{name} holds half of a surrogate pair, {text[error.start]!a}; remove it") from None
    return text


def texts(name: str, given: Any) -> tuple[str, ...]:
    """A text, or several, none of them empty."""
    found = (given,) if isinstance(given, str) else listed(name, given, "a text or a list of texts")
    for text in found:
        if not isinstance(text, str):
            raise UserError(f"{name} holds {text!r}; give texts")
        if not text:
            raise UserError(f"{name} holds an empty text; leave it out")
    return found


def token_ids(name: str, given: Any) -> tuple[int, ...]:
    """A token, or several."""
    if hasattr(given, "tolist"):
        given = given.tolist()
    if isinstance(given, Integral) and not isinstance(given, bool):
        given = (given,)
    tokens = listed(name, given, "a token id or a list of token ids")
    for token in tokens:
        if isinstance(token, bool) or not isinstance(token, Integral) or token < 0:
            raise UserError(f"{name} holds {token!r}; give token ids, whole numbers of at least 0")
    return tuple(map(int, tokens))


def token_sequence(name: str, given: Any) -> tuple[int, ...]:
    """At least one token, in a list."""
    tokens = () if isinstance(given, Integral) else token_ids(name, given)
    if not tokens:
        raise UserError(f"{name} holds {given!r}; give lists of at least one token id")
    return tokens


def token_sequences(name: str, given: Any) -> tuple[tuple[int, ...], ...]:
    return tuple(token_sequence(name, one) for one in listed(name, given))


def biases(name: str, given: Any) -> tuple[tuple[tuple[int, ...], float], ...]:
    """Token sequences and their biases: a mapping, or pairs."""
    found = []
    for pair in given.items() if isinstance(given, Mapping) else listed(name, given):
        try:
            sequence, bias = pair
            bias = float(bias)
        except (TypeError, ValueError):
            raise UserError(f"{name} holds {pair!r}; give pairs of a list of token ids and a number") from None
        if math.isnan(bias):
            raise UserError(f"{name} holds {pair!r}; give a bias that is a number")
        found.append((token_sequence(name, sequence), bias))
    return tuple(found)


def decay(name: str, given: Any) -> tuple[int, float]:
    try:
        start, factor = given
        return int(start), float(factor)
    except (TypeError, ValueError, OverflowError):
        raise UserError(f"{name} is {given!r}; give (start, factor), such as (20, 1.1)") from None


def functions(name: str, given: Any) -> tuple[Callable, ...]:
    """A function, or several. transformers' lists of functions can be called, but are lists."""
    found = (given,) if callable(given) and not isinstance(given, Iterable) else listed(name, given, "functions")
    if any(not callable(one) for one in found):
        raise UserError(f"{name} holds something that cannot be called; give functions")
    return found


def choices(name: str, given: Any) -> tuple[str | tuple[int, ...], ...]:
    """Texts or token sequences, at least one."""
    found = (given,) if isinstance(given, str) else listed(name, given)
    if not found:
        raise UserError(f"{name} is an empty list; give at least one")
    if any(isinstance(one, str) and not one for one in found):
        raise UserError(f"{name} holds an empty text; leave it out")
    return tuple(encodable(name, one) if isinstance(one, str) else token_sequence(name, one) for one in found)


def expression(name: str, given: Any) -> str:
    if not isinstance(given, str) or not given:
        raise UserError(f"{name} is {given!r}; give a regular expression as a text")
    return encodable(name, given)


def schema(name: str, given: Any) -> str:
    """A JSON schema as a text."""
    try:
        found = json.loads(given) if isinstance(given, str) else given
        if not isinstance(found, (Mapping, bool)):
            raise ValueError("not an object")
        return json.dumps(found)
    except (TypeError, ValueError, RecursionError) as error:
        raise UserError(f"{name} is not a JSON schema ({error}); give an object, or its text") from None
