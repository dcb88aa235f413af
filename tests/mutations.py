"""Damage to a file's bytes, from a seeded generator."""

from __future__ import annotations

import hashlib
import json
import random
import re
import struct

ODD_VALUES = [None, True, -1, 0, 1, 2**31, 2**63, 10**30, 1e309, -1e309, float("nan"), 0.5, "", "x", "\ud800", [], [[]], {},
              {"a": {}}, ["x"], [1, 2], "9" * 5000]
ODD_NUMBERS = [b"-1", b"0", b"1e999", b"nan", b"99999999999999999999", b"", b"0x10", b"1_0", b"-0.0", b"\xff"]


def mutate(data: bytes, rng: random.Random, signed: bool) -> bytes:
    """One to three mutations of a file."""
    for _ in range(rng.randint(1, 3)):
        kinds = [_flip, _cut, _double, _insert, _overwrite, _truncate, _number, _value]
        data = (rng.choice([_header, *kinds]) if signed else rng.choice(kinds))(data, rng)
    return data


def _span(data: bytes, rng: random.Random) -> tuple[int, int]:
    begin = rng.randrange(len(data) + 1)
    return begin, min(len(data), begin + rng.choice([1, 2, 8, 64, 1000]))


def _flip(data: bytes, rng: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.choice([1, 2, 8])):
        if changed:
            changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _cut(data: bytes, rng: random.Random) -> bytes:
    begin, end = _span(data, rng)
    return data[:begin] + data[end:]


def _double(data: bytes, rng: random.Random) -> bytes:
    begin, end = _span(data, rng)
    return data[:end] + data[begin:]


def _insert(data: bytes, rng: random.Random) -> bytes:
    begin, _ = _span(data, rng)
    return data[:begin] + rng.randbytes(rng.choice([1, 4, 100])) + data[begin:]


def _overwrite(data: bytes, rng: random.Random) -> bytes:
    begin, end = _span(data, rng)
    return data[:begin] + bytes([rng.choice([0, 255, 127, 128])]) * (end - begin) + data[end:]


def _truncate(data: bytes, rng: random.Random) -> bytes:
    return data[: rng.randrange(len(data) + 1)]


def _number(data: bytes, rng: random.Random) -> bytes:
    found = list(re.finditer(rb"-?\d+(\.\d+)?", data[:200_000]))
    if not found:
        return data
    match = rng.choice(found)
    return data[: match.start()] + rng.choice(ODD_NUMBERS) + data[match.end() :]


def _value(data: bytes, rng: random.Random) -> bytes:
    """Another value somewhere in a JSON text, or in the line of a JSON Lines file."""
    lines = data.split(b"\n")
    at = rng.randrange(len(lines))
    for text, join in ((data, lambda new: new),
                       (lines[at], lambda new: b"\n".join([*lines[:at], new, *lines[at + 1 :]]))):
        try:
            return join(_odd(json.loads(text), rng))
        except (ValueError, RecursionError):
            continue
    return data


def _odd(value: object, rng: random.Random) -> bytes:
    """JSON with one odd value, or nested very deeply."""
    places: list[tuple] = []

    def walk(one: object) -> None:
        for key, inner in one.items() if isinstance(one, dict) else enumerate(one) if isinstance(one, list) else ():
            places.append((one, key))
            walk(inner)

    walk(value)
    if not places or rng.random() < 0.02:
        # deeper than the parser goes
        return b"[" * 100_000
    holder, key = rng.choice(places)
    if rng.random() < 0.2:
        del holder[key]
    else:
        holder[key] = rng.choice(ODD_VALUES)
    return json.dumps(value).encode("utf-8", "surrogatepass")


def _header(data: bytes, rng: random.Random) -> bytes:
    """A mutation of the JSON header, whose checksum is made to match."""
    prefix = struct.Struct("<8sII32s")
    if len(data) < prefix.size:
        return data
    magic, version, size, _ = prefix.unpack(data[: prefix.size])
    text = data[prefix.size : prefix.size + size]
    try:
        new = _odd(json.loads(text), rng)
    except (ValueError, RecursionError):
        return data
    start, new_start = (-(-(prefix.size + length) // 64) * 64 for length in (size, len(new)))
    head = prefix.pack(magic, version, len(new), hashlib.sha256(new).digest()) + new
    return head.ljust(new_start, b"\0") + data[start:]
