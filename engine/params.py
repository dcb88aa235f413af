"""How requests are decoded: SamplingParams for one request, BatchConfig for all requests of a call; both checked once."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass

from foredraft.errors import UserError

MAX_DRAFT_TOKENS = 64
AUTO = "auto"
VERIFICATIONS = ("token", "block")


@dataclass(frozen=True)
class SamplingParams:
    """The settings of one request, named as in transformers' `generate`.

    Parameters
    ----------
    max_new_tokens : int
        The most tokens to emit, the end token included.
    draft_tokens : int or "auto"
        K, the most tokens drafted per step. 0 is plain decoding; "auto" adapts the draft length to measured costs.
    do_sample : bool
        False is greedy decoding.
    temperature : float
        Above 0.
    top_k : int
        0 is off.
    top_p : float
        In (0, 1]; 1 is off.
    seed : int or None
        None picks a random seed. Input i of a call uses a seed derived from (seed, i).
    stop_strings : tuple of str
        The text ends where one of them is complete.

    Raises
    ------
    UserError
        A value is out of range.
    """

    max_new_tokens: int = 128
    draft_tokens: int | str = 5
    do_sample: bool = False
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int | None = None
    stop_strings: tuple[str, ...] = ()

    def __post_init__(self):
        _check_int(self, "max_new_tokens", 1, 100_000)
        if isinstance(self.draft_tokens, str) and self.draft_tokens != AUTO:
            raise UserError(f"draft_tokens is {self.draft_tokens!r}; give a whole number or {AUTO!r}")
        if self.draft_tokens != AUTO:
            _check_int(self, "draft_tokens", 0, MAX_DRAFT_TOKENS)
        _check_int(self, "top_k", 0)
        if self.seed is not None:
            _check_int(self, "seed", 0, 2**63 - 1)
        if self.do_sample and not 0 < self.temperature < math.inf:
            raise UserError(f"temperature is {self.temperature}; give a number above 0 (greedy is do_sample=False)")
        if not 0 < self.top_p <= 1:
            raise UserError(f"top_p is {self.top_p}; give a number above 0 and at most 1")
        if any(not text for text in self.stop_strings):
            raise UserError("stop_strings holds an empty text; leave it out")

    def warn_ignored(self) -> None:
        """Warn of sampling arguments that have no effect, because do_sample is False."""
        given = [f"{name}={getattr(self, name)}" for name in ("temperature", "top_k", "top_p")
                 if getattr(self, name) != getattr(SamplingParams, name)]
        if given and not self.do_sample:
            warnings.warn(f"{', '.join(given)} without effect: do_sample is False", stacklevel=3)


@dataclass(frozen=True)
class BatchConfig:
    """The settings that all requests of a call or a stream share.

    Parameters
    ----------
    batch_size : int
        The most sequences decoded together.
    max_source : int or None
        The most source tokens read; None is the model's own limit.
    kv_memory : int or None
        Bytes for the target's keys and values; None is half of the machine's free memory.
    verification : "token" or "block"
        How sampled drafts are verified (Leviathan et al. 2023, Alg. 1; Sun et al. 2024, Alg. 2).
    big_little : (float, float) or None
        (fallback, rollback) of Big Little Decoder (Kim et al. 2023), greedy only. LOSSY: a draft ends where its largest
        probability is below `fallback`, and drafted tokens up to `rollback` nats below the target's choice are accepted.

    Raises
    ------
    UserError
        A value is out of range.
    """

    batch_size: int = 8
    max_source: int | None = None
    kv_memory: int | None = None
    verification: str = "token"
    big_little: tuple[float, float] | None = None

    def __post_init__(self):
        if self.verification not in VERIFICATIONS:
            raise UserError(f"verification is {self.verification!r}; give {' or '.join(VERIFICATIONS)}")
        _check_int(self, "batch_size", 1)
        if self.max_source is not None:
            _check_int(self, "max_source", 2)
        if self.kv_memory is not None:
            _check_int(self, "kv_memory", 1)
        if self.big_little is not None:
            fallback, rollback = self.big_little
            if not 0 <= fallback <= 1 or not rollback >= 0:
                raise UserError(f"big_little is {fallback:g},{rollback:g}; give a probability (fallback) and nats of 0 or "
                                "more (rollback), such as 0.6,4")

    def check(self, params: SamplingParams) -> None:
        """Refuse request settings that contradict these (UserError)."""
        if self.big_little is not None and params.do_sample:
            raise UserError("big_little is greedy only: the small model's tokens have no distribution; leave sampling out")
        if self.big_little is not None and params.draft_tokens == AUTO:
            raise UserError("big_little ends drafts by its fallback; give draft_tokens a number, the longest draft")


def _check_int(settings: SamplingParams | BatchConfig, name: str, low: int, high: float = math.inf) -> None:
    value = getattr(settings, name)
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        bound = f"between {low} and {high}" if high < math.inf else f"of at least {low}"
        raise UserError(f"{name} is {value!r}; give a whole number {bound}")
