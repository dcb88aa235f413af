"""A drafter by name or path."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from foredraft.engine.decode import Drafter
from foredraft.engine.draft_device import DeviceLookup, DeviceNgram
from foredraft.engine.draft_lookup import LookupDrafter
from foredraft.engine.draft_ngram import NgramDrafter
from foredraft.engine.draft_none import NoDrafter
from foredraft.errors import UserError

EMBEDDED_NGRAM = Path(__file__).resolve().parent.parent / "assets" / "ngram" / "cnndm.ngram"


def make_drafter(spec: str | Path | Drafter | None, vocab_size: int, tokenizer: Any, device: str = "cpu") -> Drafter:
    """None or "none", "lookup", "ngram" (the embedded table), "ngram:PATH", or a Drafter as it is; on cpu or a device."""
    if spec is None or spec == "none":
        return NoDrafter()
    if not isinstance(spec, str | Path):
        return spec
    kind, _, path = str(spec).partition(":")
    if kind == "lookup" and not path:
        return LookupDrafter() if device == "cpu" else DeviceLookup(device)
    if kind == "ngram":
        drafter = NgramDrafter.open(path or EMBEDDED_NGRAM, vocab_size=vocab_size, tokenizer=tokenizer)
        return drafter if device == "cpu" else DeviceNgram(drafter.table, device, drafter.min_probability)
    raise UserError(f"drafter {str(spec)!r} is not known; use lookup, ngram, ngram:PATH or none")
