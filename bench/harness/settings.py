"""The decoding settings of a measurement, shared by all methods and stated in every record."""

from __future__ import annotations

from dataclasses import dataclass

from foredraft.errors import UserError


@dataclass(frozen=True)
class Settings:
    """Decoding settings of a run.

    `temperature` 0 is greedy; above 0 `seed` makes runs repeatable. `repeats` timed passes follow a warm-up over `warm_up`
    batches. `assistant`: the checkpoint for transformers' assisted generation.
    """

    batch_size: int = 1
    draft_tokens: int = 5
    temperature: float = 0.0
    max_new_tokens: int = 128
    repeats: int = 3
    warm_up: int = 2
    seed: int = 0
    device: str = "cpu"
    assistant: str | None = None

    def __post_init__(self):
        for name in ("batch_size", "max_new_tokens", "repeats"):
            if getattr(self, name) < 1:
                raise UserError(f"--{name.replace('_', '-')} is {getattr(self, name)}; give 1 or more")

    @property
    def do_sample(self) -> bool:
        return self.temperature != 0
