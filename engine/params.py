"""How to decode: the arguments of generate, checked once."""

from __future__ import annotations

import math
from dataclasses import dataclass

from foredraft.errors import UserError

MAX_DRAFT_TOKENS = 64
AUTO = "auto"
VERIFICATIONS = ("token", "block")


def thresholds(text: str | None) -> tuple[float, float] | None:
    """`--big-little` as typed: FALLBACK,ROLLBACK."""
    if text is None:
        return None
    try:
        fallback, rollback = map(float, text.split(","))
    except ValueError:
        raise UserError(f"--big-little is {text!r}; give FALLBACK,ROLLBACK, such as 0.6,4") from None
    return fallback, rollback


def draft_length(text: str) -> int | str:
    """`--draft-tokens` as typed: a whole number, or AUTO."""
    if text == AUTO or text.lstrip("-").isdigit():
        return text if text == AUTO else int(text)
    raise UserError(f"--draft-tokens is {text!r}; give a whole number or {AUTO}")


@dataclass(frozen=True)
class DecodeConfig:
    """Named as transformers' generate names them.

    max_new_tokens: ids emitted at most, the end token included. draft_tokens: K, 0 is plain decoding, "auto" adapts it
    (adaptive.py). do_sample False is greedy. temperature > 0; top_k 0 and top_p 1 are off. seed None draws a fresh one;
    row i of a call uses (seed, i). stop_strings end a text where one of them is complete. max_source: source ids kept; None
    is the model's own limit. batch_size: rows decoded together at most. kv_memory: bytes that the target's keys and values
    may take; None is half of what the machine has free. verification: of drafts that were sampled, "token" by token or as a
    "block" (kernels/verify/block.py). big_little: (fallback, rollback) of Big Little Decoder (Kim et al. 2023), LOSSY, greedy only:
    the drafter writes while its largest probability is at least `fallback`, 0..1, and what it wrote stands up to `rollback`
    nats, 0 or more, from the target (kernels/verify/big_little_rollback.py).
    """

    max_new_tokens: int = 128
    draft_tokens: int | str = 5
    do_sample: bool = False
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int | None = None
    stop_strings: tuple[str, ...] = ()
    batch_size: int = 8
    max_source: int | None = None
    kv_memory: int | None = None
    verification: str = "token"
    big_little: tuple[float, float] | None = None

    def __post_init__(self):
        def whole(name: str, low: int, high: float = math.inf):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
                bound = f"between {low} and {high}" if high < math.inf else f"of at least {low}"
                raise UserError(f"{name} is {value!r}; give a whole number {bound}")

        if self.verification not in VERIFICATIONS:
            raise UserError(f"verification is {self.verification!r}; give {' or '.join(VERIFICATIONS)}")
        whole("max_new_tokens", 1, 100_000)
        if isinstance(self.draft_tokens, str) and self.draft_tokens != AUTO:
            raise UserError(f"draft_tokens is {self.draft_tokens!r}; give a whole number or {AUTO!r}")
        if self.draft_tokens != AUTO:
            whole("draft_tokens", 0, MAX_DRAFT_TOKENS)
        whole("top_k", 0)
        whole("batch_size", 1)
        if self.max_source is not None:
            whole("max_source", 2)
        if self.kv_memory is not None:
            whole("kv_memory", 1)
        if self.seed is not None:
            whole("seed", 0, 2**63 - 1)
        if self.do_sample and not 0 < self.temperature < math.inf:
            raise UserError(f"temperature is {self.temperature}; give a number above 0 (greedy is do_sample=False)")
        if not 0 < self.top_p <= 1:
            raise UserError(f"top_p is {self.top_p}; give a number above 0 and at most 1")
        if any(not text for text in self.stop_strings):
            raise UserError("stop_strings holds an empty text; leave it out")
        if self.big_little is not None:
            self._check_big_little(*self.big_little)

    def _check_big_little(self, fallback: float, rollback: float) -> None:
        if not 0 <= fallback <= 1 or not rollback >= 0:
            raise UserError(f"big_little is {fallback:g},{rollback:g}; give a probability (fallback) and nats of 0 or more "
                            "(rollback), such as 0.6,4")
        if self.do_sample:
            raise UserError("big_little is greedy only: its small model's tokens have no distribution; leave sampling out")
        if self.draft_tokens == AUTO:
            raise UserError("big_little ends drafts by its fallback; give draft_tokens a number, the longest draft")
