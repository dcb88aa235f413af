"""The lines of an ARPA file, as SRILM, KenLM, IRSTLM and OpenGrm write them.

They differ in white space, padded counts, line ends, blank lines, comments before `\\data\\`, and in whether the longest
n-grams have a back-off. Every n-gram must occur once, with a finite log10 probability of at most 0 and a finite back-off,
and every order must have as many n-grams as the header says.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from pathlib import Path

from foredraft.errors import UserError
from foredraft.ngram_native.counts import MAX_ORDER

_COUNT = re.compile(rb"ngram\s+(\d{1,2})\s*=\s*(\d{1,15})")
_SECTION = re.compile(rb"\\(\d{1,2})-grams:")
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
# back-offs are stored as float32
_LARGEST_BACKOFF = 38
# characters of a word that a message shows
_SHOWN = 40


@dataclass
class ArpaLines:
    """The n-grams of an ARPA file. Entry k - 1 of each list belongs to order k.

    grams: per order the n-grams' tokens, in the file's order. logs: their log10 probabilities. backoffs: their log10
    back-offs, 0 where a line has none.
    """

    grams: list[list[tuple[int, ...]]] = field(default_factory=list)
    logs: list[list[float]] = field(default_factory=list)
    backoffs: list[list[float]] = field(default_factory=list)


def parse(path: Path, token_of: dict[bytes, int]) -> ArpaLines:
    """Read a file whose words are the keys of `token_of`. UserError names the line that cannot be read."""
    if not path.is_file():
        raise UserError(f"{path}: no such ARPA file")
    found, sizes, number, in_data, ended = ArpaLines(), {}, 0, False, False
    seen: set[tuple[int, ...]] = set()
    with open(path, "rb") as lines:
        for number, line in enumerate(lines, 1):
            line = line.strip().removeprefix(_BYTE_ORDER_MARK if number == 1 else b"")
            if number == 1 and line.startswith(b"qARPA"):
                raise UserError(f"{path}: a quantised ARPA file of IRSTLM; write it as text without quantisation")
            if not in_data:
                in_data = line == b"\\data\\"
                continue
            if line == b"\\end\\":
                ended = True
                break
            try:
                if section := _SECTION.fullmatch(line):
                    _begin(found, int(section[1]))
                    seen.clear()
                elif not found.grams:
                    _read_count(line, sizes)
                elif line:
                    _read_gram(line, found, token_of, seen)
            except UserError as error:
                raise UserError(f"{path}, line {number}: {error}") from None
    sizes = {order: size for order, size in sizes.items() if size}
    while found.grams and not found.grams[-1]:
        for lists in (found.grams, found.logs, found.backoffs):
            lists.pop()
    counted = {order: len(grams) for order, grams in enumerate(found.grams, 1) if grams}
    if not ended or not counted or counted != sizes:
        raise UserError(f"{path}: truncated, or not an ARPA file ({counted} of {sizes} n-grams"
                        f"{'' if ended else f', no end mark after line {number}'}); make it again")
    return found


def _begin(found: ArpaLines, order: int) -> None:
    if order != len(found.grams) + 1 or order > MAX_ORDER:
        raise UserError(f"\\{order}-grams: is out of order; orders 1 to {MAX_ORDER} must follow each other")
    for lists in (found.grams, found.logs, found.backoffs):
        lists.append([])


def _read_count(line: bytes, sizes: dict[int, int]) -> None:
    if not line:
        return
    if (count := _COUNT.fullmatch(line)) is None:
        raise UserError(f"{_shown(line)} is no count of n-grams; give 'ngram ORDER=NUMBER'")
    order, size = int(count[1]), int(count[2])
    if sizes.setdefault(order, size) != size:
        raise UserError(f"the number of {order}-grams is {size} here and {sizes[order]} before; keep one")


def _read_gram(line: bytes, found: ArpaLines, token_of: dict[bytes, int], seen: set[tuple[int, ...]]) -> None:
    fields, order = line.split(), len(found.grams)
    if len(fields) not in (order + 1, order + 2):
        raise UserError(f"{len(fields)} fields; a probability, {order} words and an optional back-off were expected")
    log = _number(fields[0], "log10 probability")
    if log > 0:
        raise UserError(f"the log10 probability {log:g} is above 0; correct the file")
    backoff = _number(fields[-1], "back-off") if len(fields) == order + 2 else 0.0
    if backoff > _LARGEST_BACKOFF:
        raise UserError(f"the log10 back-off {backoff:g} is above {_LARGEST_BACKOFF}; correct the file")
    try:
        gram = tuple([token_of[word] for word in fields[1 : order + 1]])
    except KeyError as error:
        raise UserError(f"{_shown(error.args[0])} is not in the vocabulary; pass the tokenizer that the file was made "
                        "with") from None
    if gram in seen:
        raise UserError(f"{_shown(b' '.join(fields[1 : order + 1]))} occurs twice; keep one of the lines")
    seen.add(gram)
    found.grams[-1].append(gram)
    found.logs[-1].append(log)
    found.backoffs[-1].append(backoff)


def _number(text: bytes, what: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise UserError(f"a {what} that cannot be read: {_shown(text)}") from None
    if not math.isfinite(value):
        raise UserError(f"the {what} is {_shown(text)}, which is no probability; write -99 for one of 0")
    return value


def _shown(text: bytes) -> str:
    """A word in a message."""
    shown = text.decode("utf-8", "replace")
    return repr(shown if len(shown) <= _SHOWN else shown[:_SHOWN] + "...")
