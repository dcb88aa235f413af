"""What a command may read and write: inputs exist; outputs replace neither an input nor a file that is not foredraft's."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from foredraft.errors import UserError


def check_file(out: Path, inputs: Iterable[str | Path | None], is_ours: Callable[[Path], bool], kind: str,
               overwrite: bool | None = None, flag: str = "--out") -> None:
    """Called before any work whose result replaces `out`.

    Parameters
    ----------
    out
        File to write.
    inputs
        Files and folders that the command reads; None is skipped.
    is_ours
        Whether an existing file is one that this command writes.
    kind
        What the command writes, such as "n-gram table".
    overwrite
        The command's --overwrite, which allows to replace other files; None if it has no such option.
    flag
        The option that names `out`.

    Raises
    ------
    UserError
        `out` is a folder, an input, inside a file, or a file of another kind.
    """
    out = Path(out)
    if out.is_dir():
        raise UserError(f"{flag} {out}: is a folder; give a file")
    check_not_input(out, inputs, flag)
    check_parent(out)
    if out.is_file() and not overwrite and not is_ours(out):
        raise UserError(f"{flag} {out}: exists and is no {kind}; give another {flag}"
                        + ("" if overwrite is None else ", or --overwrite to replace it"))


def check_folder(out: Path, inputs: Iterable[str | Path | None]) -> None:
    """UserError: the folder to write is an input, a file, or inside a file."""
    out = Path(out)
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out}: is a file; give a folder")
    check_not_input(out, inputs)
    check_parent(out)


def check_not_input(out: Path, inputs: Iterable[str | Path | None], flag: str = "--out") -> None:
    """UserError if `out` is one of the inputs, under whatever name."""
    for path in map(Path, filter(None, inputs)):
        if out.exists() and path.exists() and out.samefile(path):
            raise UserError(f"{flag} {out}: is an input of this command ({path}); give another {flag}")


def check_exist(flag: str, inputs: Iterable[Path]) -> None:
    """UserError names the first input that does not exist."""
    for path in inputs:
        if not path.exists():
            raise UserError(f"{flag} {path}: no such file or folder")


def check_parent(out: Path) -> None:
    """UserError if a part of the path is a file."""
    for folder in out.absolute().parents:
        if folder.exists():
            if not folder.is_dir():
                raise UserError(f"--out {out}: {folder} is a file; give a path inside a folder")
            return
