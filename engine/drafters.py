"""A drafter by name or path."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from foredraft.engine.decode import Drafter
from foredraft.engine.draft_device import DeviceLookup, DeviceNgram
from foredraft.engine.draft_lookup import HISTORY, LookupDrafter
from foredraft.engine.draft_models import open_drafter
from foredraft.engine.draft_ngram import NgramDrafter, open_table
from foredraft.engine.draft_none import NoDrafter
from foredraft.engine.draft_self import SelfDrafter
from foredraft.engine.t5 import T5
from foredraft.engine.t5_cuda import T5Cuda
from foredraft.errors import UserError

EMBEDDED_NGRAM = Path(__file__).resolve().parent.parent / "assets" / "ngram" / "cnndm.ngram"


def make_drafter(spec: str | Path | Drafter | None, model: T5 | T5Cuda, target_folder: Path, tokenizer: Any,
                 device: str = "cpu") -> Drafter:
    """None or "none", "lookup", "ngram" (the embedded table), "ngram:PATH", "self:SKIP" (skip.py), the folder of a trained
    drafter, or a Drafter as it is; on the CPU or a device. `model`: the target.

    "lookup+ngram" and "lookup+ngram:PATH" take, id by id, whichever promises more; "lookup+history" also copies from the
    outputs of earlier requests, and so does "lookup+history+ngram".
    """
    if spec is None or spec == "none":
        return NoDrafter()
    if not isinstance(spec, str | Path):
        return spec
    target = model.weights
    kind, _, path = str(spec).partition(":")
    if device != "cpu" and kind.startswith("lookup+"):
        raise UserError(f"drafter {str(spec)!r}: combined drafters run on the CPU only so far; on device {device!r} use "
                        "lookup, ngram or none")
    if kind in ("lookup", "lookup+history") and not path:
        if device != "cpu":
            return DeviceLookup(device)
        return LookupDrafter(history=HISTORY if kind != "lookup" else 0)
    if kind == "ngram":
        drafter = NgramDrafter.open(path or EMBEDDED_NGRAM, vocab_size=target.config.vocab_size, tokenizer=tokenizer)
        return drafter if device == "cpu" else DeviceNgram(drafter.table, device, drafter.cost)
    if kind in ("lookup+ngram", "lookup+history+ngram"):
        table = open_table(path or EMBEDDED_NGRAM, target.config.vocab_size, tokenizer)
        return LookupDrafter(table=table, history=HISTORY if "history" in kind else 0)
    if kind == "self" and path:
        return SelfDrafter.open(path, model, target_folder)
    if Path(spec).is_dir():
        if device != "cpu":
            raise UserError(f"drafter {str(spec)!r}: trained drafters run on the CPU only so far; on device {device!r} use "
                            "lookup, ngram or none")
        return open_drafter(Path(spec), target, target_folder, tokenizer)
    raise UserError(f"drafter {str(spec)!r} is not known; use lookup, ngram, ngram:PATH, lookup+ngram, lookup+history, "
                    "self:SKIP, none or the folder of a trained drafter")
