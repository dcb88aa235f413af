"""The settings that an output was made with, in a file beside it: a run that goes on must not mix two kinds of lines."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from foredraft.atomic_write import write_atomic
from foredraft.cli.journal import FULL
from foredraft.errors import UserError

ENDING = ".settings.json"


def manifest_of(output: Path) -> Path:
    return output.with_name(output.name + ENDING)


def begin(output: Path, settings: Mapping[str, Any]) -> None:
    """Note what `output` is begun with: {flag: value}, None for a flag that is not given. UserError: a full disk."""
    _write(manifest_of(output), settings)


def go_on(output: Path, settings: Mapping[str, Any]) -> bool:
    """Hold this run to what `output` was begun with. False: nothing says what that was, and it is noted now.

    UserError: a flag differs, named with both values; a manifest that cannot be read; a full disk.
    """
    path = manifest_of(output)
    try:
        begun = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        begin(output, settings)
        return False
    except ValueError:
        begun = None
    if not isinstance(begun, dict):
        raise UserError(f"{path}: not the settings of an earlier run; give another --output, or delete it")
    for flag in dict.fromkeys((*settings, *begun)):
        was, now = begun.get(flag), settings.get(flag)
        if was != now:
            raise UserError(f"{output}: was begun {_words(flag, was)}, this run is {_words(flag, now)}; go on with the "
                            "settings that it was begun with, or give another --output")
    return True


def _words(flag: str, value: Any) -> str:
    return f"without {flag}" if value is None else f"with {flag} {value}"


def _write(path: Path, settings: Mapping[str, Any]) -> None:
    """On the disk before the output's first line."""
    try:
        write_atomic(path, json.dumps(settings, indent=1, allow_nan=False) + "\n")
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise UserError(f"{path}: {error.strerror.lower()}; make room, and run the same command again") from None
