"""The results of a call."""

from __future__ import annotations

from dataclasses import dataclass, field

from foredraft.engine.runtime.requests import Result
from foredraft.engine.stats import DecodeStats


@dataclass
class Output:
    """The results of `Model.generate`, in the order of its inputs.

    Attributes
    ----------
    texts : list of (str or None)
        None without a tokenizer.
    token_ids : list of list of int
        Without the start token, with the end token where it was emitted.
    proposers : list of list of int
        Who proposed each token, an index into `registry.PROPOSERS`; 0 is the target.
    stats : DecodeStats
    warnings : list of str
    """

    texts: list[str | None] = field(default_factory=list)
    token_ids: list[list[int]] = field(default_factory=list)
    proposers: list[list[int]] = field(default_factory=list)
    stats: DecodeStats = field(default_factory=DecodeStats)
    warnings: list[str] = field(default_factory=list)

    def add(self, result: Result) -> None:
        """Append a request's result; its stats are summed elsewhere."""
        self.texts.append(result.text)
        self.token_ids.append(result.token_ids)
        self.proposers.append(result.proposers)
        self.warnings += result.warnings
