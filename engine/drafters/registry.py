"""A drafter by name or path."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from foredraft import embedded
from foredraft.engine.drafters.auto import AutoDrafter
from foredraft.engine.drafters.cascade import CascadeDrafter
from foredraft.engine.drafters.cuda.lookup_cuda import LookupDrafterCuda, NgramDrafterCuda
from foredraft.engine.drafters.layer_skip import SelfDrafter
from foredraft.engine.drafters.lookup import HISTORY, LookupDrafter
from foredraft.engine.drafters.ngram import NgramDrafter, open_table
from foredraft.engine.drafters.none import NoDrafter
from foredraft.engine.drafters.trained import open_drafter
from foredraft.engine.drafters.tree import TreeDrafter
from foredraft.engine.models.t5 import T5
from foredraft.engine.models.t5_cuda import T5Cuda
from foredraft.engine.params import AUTO
from foredraft.engine.protocols import Drafter
from foredraft.errors import UserError


def make_drafter(spec: str | Path | Drafter | None, model: T5 | T5Cuda, target_folder: Path, tokenizer: Any,
                 device: str = "cpu") -> Drafter:
    """None or "none", "lookup", "ngram" (the embedded table), "ngram:PATH", "lstm" (trained for the embedded target),
    "self:SKIP" (skip.py), the folder of a trained drafter, or a Drafter as it is; on the CPU or a device.

    model: the target.

    "lookup+ngram" and "lookup+ngram:PATH" take, id by id, whichever promises more; "lookup+history" also copies from the
    outputs of earlier requests, and so does "lookup+history+ngram".

    "tree:SHAPE:NAME" has lookup, or a trained LSTM or CNN, named by any of these draft trees (tree.py, draft_tree.py).

    "cascade:A,B,..." asks drafters named by any of these in turn (draft_cascade.py); "staged:A,PATH" has A draft for the T5
    drafter in the folder PATH (draft_staged.py). "auto" chooses by what is decoded, among a copy (with the
    embedded table) and the embedded LSTM, if it was trained for this target, or the trained drafters of "auto:PATH,PATH"
    (draft_auto.py); on a device it is "lookup".
    """
    if spec is None or spec == "none":
        return NoDrafter()
    if not isinstance(spec, str | Path):
        return spec
    kind, _, path = str(spec).partition(":")
    if kind in ("cascade", "staged"):
        return _made_of(str(spec), path.split(","), model, target_folder, tokenizer, device)
    if kind == AUTO:
        return _auto(path, model, target_folder, tokenizer, device)
    if kind == "tree":
        return _tree(str(spec), model, target_folder, tokenizer, device)
    if device != "cpu" and kind.startswith("lookup+history"):
        raise UserError(f"drafter {str(spec)!r}: a history is kept on the CPU only; on device {device!r} use "
                        "lookup, lookup+ngram, ngram, none or the folder of a trained drafter")
    target = model.weights
    if kind in ("lookup", "lookup+history") and not path:
        if device != "cpu":
            return LookupDrafterCuda(device)
        return LookupDrafter(history=HISTORY if kind != "lookup" else 0)
    if kind == "ngram":
        drafter = NgramDrafter.open(path or embedded.NGRAM, vocab_size=target.config.vocab_size, tokenizer=tokenizer)
        return drafter if device == "cpu" else NgramDrafterCuda(drafter.table, device, drafter.cost)
    if kind in ("lookup+ngram", "lookup+history+ngram"):
        table = open_table(path or embedded.NGRAM, target.config.vocab_size, tokenizer)
        if device != "cpu":
            return LookupDrafterCuda(device, table=table)
        return LookupDrafter(table=table, history=HISTORY if "history" in kind else 0)
    if kind == "self" and path:
        return SelfDrafter.open(path, model, target_folder)
    if spec == "lstm" or Path(spec).is_dir():
        return open_drafter(embedded.LSTM if spec == "lstm" else Path(spec), target, target_folder, tokenizer)
    raise UserError(f"drafter {str(spec)!r} is not known; use lookup, ngram, ngram:PATH, lookup+ngram, lookup+history, "
                    "lstm, self:SKIP, auto, none, the folder of a trained drafter, tree:SHAPE:NAME, cascade:A,B or "
                    "staged:A,PATH")


def _auto(paths: str, model: T5 | T5Cuda, target_folder: Path, tokenizer: Any, device: str) -> Drafter:
    """What there is for this target: the embedded table and LSTM for that which they were made for."""
    if device != "cpu":
        return LookupDrafterCuda(device)
    table = None
    try:
        trained = [open_drafter(embedded.LSTM, model.weights, target_folder, tokenizer)]
        table = open_table(embedded.NGRAM, model.weights.config.vocab_size, tokenizer)
    except UserError:
        # they were made for another target
        trained = []
    if paths:
        trained = [make_drafter(path, model, target_folder, tokenizer) for path in paths.split(",")]
    return AutoDrafter(LookupDrafter(table=table), trained)


def _tree(spec: str, model: T5 | T5Cuda, target_folder: Path, tokenizer: Any, device: str) -> TreeDrafter:
    """A drafter of trees."""
    _, shape, name = (spec.split(":", 2) + ["", ""])[:3]
    if device != "cpu":
        raise UserError(f"drafter {spec!r}: trees are drafted on the CPU only so far; on device {device!r} use "
                        f"{name or 'lookup'}")
    if not name:
        raise UserError(f"drafter {spec!r}: name a shape and a drafter, as in tree:2x1x1:lstm")
    return TreeDrafter(make_drafter(name, model, target_folder, tokenizer), *TreeDrafter.parse_shape(shape))


def _made_of(spec: str, parts: list[str], model: T5 | T5Cuda, target_folder: Path, tokenizer: Any, device: str) -> Drafter:
    """A cascade, or a drafter that another drafts for."""
    from foredraft.engine.drafters.neural.t5_drafter import T5Drafter
    from foredraft.engine.drafters.staged import StagedDrafter

    if device != "cpu":
        raise UserError(f"drafter {spec!r}: cascades and staged drafts run on the CPU only so far; on device {device!r} use "
                        "lookup, lookup+ngram, ngram, none or the folder of a trained drafter")
    drafters = [make_drafter(part, model, target_folder, tokenizer) for part in parts]
    if len(drafters) < 2 or any(drafter.name == "none" for drafter in drafters):
        raise UserError(f"drafter {spec!r}: name two or more drafters with commas between, as in cascade:lookup,PATH")
    if any(drafter.capabilities.tree_drafts for drafter in drafters):
        raise UserError(f"drafter {spec!r}: cascades and staged drafts are made of chains; use the tree's drafter itself")
    if spec.startswith("cascade"):
        return CascadeDrafter(drafters)
    if len(drafters) > 2 or not isinstance(drafters[1], T5Drafter):
        raise UserError(f"drafter {spec!r}: name a drafter and the folder of the T5 that it drafts for; others read their "
                        "ids one by one and gain nothing")
    return StagedDrafter(drafters[1], drafters[0])
