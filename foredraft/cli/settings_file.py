"""The settings that an output was begun with, in a file beside it, so that a resumed run does not mix two settings."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from foredraft.atomic_write import write_atomic
from foredraft.errors import UserError

ENDING = ".settings.json"


def path_of(output: Path) -> Path:
    """The settings file of an output."""
    return output.with_name(output.name + ENDING)


def write(output: Path, settings: Mapping[str, Any]) -> None:
    """Write the settings of `output`, {flag: value}, None for a flag that is not given. UserError: the disk is full."""
    write_atomic(path_of(output), json.dumps(settings, indent=1, allow_nan=False) + "\n")


def check(output: Path, settings: Mapping[str, Any]) -> bool:
    """Compare `settings` with those that `output` was begun with. False: the file is missing, and is written now.

    UserError: a flag differs, named with both values; the file cannot be read; the disk is full.
    """
    path = path_of(output)
    try:
        begun = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        write(output, settings)
        return False
    except (ValueError, RecursionError):
        begun = None
    if not isinstance(begun, dict):
        raise UserError(f"{path}: not the settings of an earlier run; give another --output, or delete the file")
    for flag in dict.fromkeys((*settings, *begun)):
        was, now = begun.get(flag), settings.get(flag)
        if was != now:
            raise UserError(f"{output}: was begun {_words(flag, was)}, this run is {_words(flag, now)}; use the earlier "
                            "settings, or give another --output")
    return True


def _words(flag: str, value: Any) -> str:
    return f"without {flag}" if value is None else f"with {flag} {value}"
