"""Which sublayers of the target's decoder a self-speculative draft skips: as text, as a mask, and in a file.

"3,5sc,7f" skips layer 3, self- and cross-attention of layer 5, and the feed-forward of layer 7; layers count from 0. A skip
file is what `foredraft tune-skip` writes.
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from foredraft.atomic_write import write_atomic
from foredraft.engine.models.checkpoint import weights_hash
from foredraft.errors import UserError

# The sublayers of a decoder layer, in their order: self-attention, cross-attention, feed-forward.
SUBLAYERS = "scf"
# The acceptance rate that the exit threshold is tuned to, and where the threshold starts (Zhang et al. 2023, section 3.3).
GOAL, THRESHOLD = 0.9, 0.6


def parse_skip(text: str, layers: int) -> np.ndarray:
    """kept [L, 3] bool of a decoder of L layers. UserError: not a list of layers, or no such layer."""
    kept = np.ones((layers, len(SUBLAYERS)), np.bool_)
    for part in filter(None, text.replace(" ", "").split(",")):
        match = re.fullmatch(f"([0-9]{{1,9}})([{SUBLAYERS}]*)", part)
        if match is None:
            raise UserError(f"skipped layers {text!r}: {part!r} is not a layer's number with any of {', '.join(SUBLAYERS)} "
                            "(self-attention, cross-attention, feed-forward); write 3,5sc,7f")
        layer = int(match[1])
        if layer >= layers:
            raise UserError(f"skipped layers {text!r}: the target has decoder layers 0 to {layers - 1}; name some of them")
        kept[layer, [SUBLAYERS.index(letter) for letter in match[2] or SUBLAYERS]] = False
    return kept


def format_skip(kept: np.ndarray) -> str:
    """The text of a mask; the inverse of parse_skip."""
    parts = []
    for layer, sublayers in enumerate(kept):
        letters = "".join(letter for letter, runs in zip(SUBLAYERS, sublayers, strict=True) if not runs)
        if letters:
            parts.append(f"{layer}{'' if letters == SUBLAYERS else letters}")
    return ",".join(parts)


@dataclass(frozen=True)
class SkipSet:
    """A skip file.

    Attributes
    ----------
    skip : str
        For parse_skip.
    target_hash : str
        weights_hash of the target that it was tuned for.
    goal, threshold : float
        Of the adaptive exit; goal 0 is off.
    draft_tokens : int
        The fastest K.
    draft_ids : tuple of int
        The draft vocabulary besides the tokens of the source, most frequent first; () is all.
    figures : dict or None
        Of the search.
    """

    skip: str
    target_hash: str
    goal: float = GOAL
    threshold: float = THRESHOLD
    draft_tokens: int = 5
    draft_ids: tuple[int, ...] = ()
    figures: dict[str, Any] | None = None

    @classmethod
    def load(cls, path: str | Path, target: str | Path) -> SkipSet:
        """Read a skip file for the target in a folder. UserError: no such file, or tuned for another target."""
        path = Path(path)
        try:
            entries = json.loads(path.read_text(encoding="utf-8"))
            found = cls(**{name: entries[name] for name in cls.__dataclass_fields__} | {
                "draft_ids": tuple(int(token) for token in entries["draft_ids"])})
            for value, kinds in ((found.skip, str), (found.draft_tokens, int), (found.goal, (int, float)),
                                 (found.threshold, (int, float))):
                if not isinstance(value, kinds):
                    raise TypeError(f"an entry is {value!r}")
        except FileNotFoundError:
            raise UserError(f"{path}: no such skip file; foredraft tune-skip writes one") from None
        except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
            raise UserError(f"{path}: not a skip file ({type(error).__name__}: {error}); write it again with foredraft "
                            "tune-skip") from None
        if (known := weights_hash(target)) != found.target_hash:
            raise UserError(f"{path}: was tuned for the target {found.target_hash}, but {target} is {known}; run foredraft "
                            "tune-skip for this target")
        return found

    def save(self, path: str | Path) -> None:
        write_atomic(path, json.dumps(asdict(self), indent=1) + "\n")


def is_skip_file(path: str | Path) -> bool:
    """Whether a file is one of SkipSet.save, for whatever target."""
    try:
        entries = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(entries, dict) and set(SkipSet.__dataclass_fields__) <= set(entries)
