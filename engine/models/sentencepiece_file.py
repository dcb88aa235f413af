"""Reads spiece.model, the SentencePiece model (Kudo and Richardson 2018) of T5 checkpoints.

The file is a protocol buffer. Only the pieces, the unknown piece's token and the normaliser's character map are read.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from foredraft.errors import UserError

# TrainerSpec.ModelType in sentencepiece_model.proto.
UNIGRAM = 1
# ModelProto.SentencePiece.Type in sentencepiece_model.proto.
CONTROL, USER_DEFINED = 3, 4


@dataclass
class SentencePieceModel:
    """The contents of a model file.

    pieces: text, score and type of each token. unknown: the unknown piece's token. kind: TrainerSpec.ModelType.
    charsmap: the normaliser's character map, for tokenizers' Precompiled; may be empty.
    """

    pieces: list[tuple[str, float, int]] = field(default_factory=list)
    unknown: int = 0
    kind: int = UNIGRAM
    charsmap: bytes = b""


def read_sentencepiece(path: Path) -> SentencePieceModel:
    """Read a model file. UserError: it is not readable, or its model is not a unigram model."""
    model = SentencePieceModel()
    try:
        # field numbers of ModelProto: 1 pieces, 2 trainer_spec (3 model_type, 40 unk_id), 3 normalizer_spec (2 charsmap)
        for number, value in _fields(path.read_bytes()):
            if number == 1:
                model.pieces.append(_piece(value))
            elif number == 2:
                spec = dict(_fields(value))
                model.kind, model.unknown = spec.get(3, UNIGRAM), spec.get(40, 0)
            elif number == 3:
                model.charsmap = _charsmap(dict(_fields(value)).get(2, b""))
    except (IndexError, TypeError, ValueError, struct.error) as error:
        raise UserError(f"{path}: not a readable SentencePiece model ({error}); copy or download it again") from None
    if not model.pieces or not 0 <= model.unknown < len(model.pieces):
        raise UserError(f"{path}: not a readable SentencePiece model ({len(model.pieces)} pieces); copy or download "
                        "it again")
    if model.kind != UNIGRAM:
        raise UserError(f"{path}: a SentencePiece model of type {model.kind}; T5 has a unigram model: add tokenizer.json")
    return model


def _charsmap(data: bytes) -> bytes:
    """ValueError: the map does not hold as much as its first four bytes say, which tokenizers would allocate."""
    if data and not (len(data) >= 4 and int.from_bytes(data[:4], "little") <= len(data) - 4):
        raise ValueError("a cut character map")
    return data


def _piece(data: bytes) -> tuple[str, float, int]:
    found = dict(_fields(data))
    return found[1].decode(), struct.unpack("<f", found[2])[0] if 2 in found else 0.0, found.get(3, 1)


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Number and value of each field of a message. ValueError: a group, which proto3 no longer has, or a cut message."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        number, wire = key >> 3, key & 7
        if wire == 0:
            value, at = _varint(data, at)
            yield number, value
            continue
        if wire == 2:
            size, at = _varint(data, at)
        elif wire in (1, 5):
            size = 8 if wire == 1 else 4
        else:
            raise ValueError(f"field {number} has wire type {wire}")
        if at + size > len(data):
            raise ValueError("it ends early")
        yield number, data[at : at + size]
        at += size


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at
