"""Reads JSON files that hold an object."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from foredraft.errors import UserError


def read_object(path: Path, mend: str = "copy or download it again") -> dict[str, Any]:
    """The object in a JSON file. UserError: there is none; the message ends with `mend`, what the user should do."""
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: not readable as JSON ({error}); {mend}") from None
    if not isinstance(entries, dict):
        raise UserError(f"{path}: holds no JSON object; {mend}")
    return entries
