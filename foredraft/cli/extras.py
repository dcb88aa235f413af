"""Libraries that an extra of the package installs, looked for before a command begins its work."""

from __future__ import annotations

from importlib.util import find_spec

from foredraft.errors import UserError


def check_training() -> None:
    """UserError: a library of the extra `train` is missing; transformers' Trainer needs accelerate."""
    for name, package in (("accelerate", "accelerate"), ("rouge_score", "rouge-score")):
        if find_spec(name) is None:
            raise UserError(f"training needs the package {package!r}: pip install 'foredraft[train]'")
