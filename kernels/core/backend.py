"""The backend of the CPU kernels. numba is optional: every file of kernels can be imported without it.

`njit`, `intrinsic`, `overload`: numba's; without numba a compiled kernel raises ImportError when it is called.

Compiled code is cached on disk. numba checks only the file of a function itself, but compiled kernels contain the kernels
that they call; therefore the cache folder is named after the code of all numba kernels, without comments and docstrings.
The environment variable NUMBA_CACHE_DIR replaces that folder.
"""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
from pathlib import Path

try:
    import numba
    from numba.extending import intrinsic, overload

    HAS_NUMBA = True
except ImportError:
    HAS_NUMBA = False

    def intrinsic(function):
        return function

    def overload(_function):
        return lambda implementation: implementation


def backend_of(tensor) -> str:
    """The implementation for a torch tensor's device: "triton" on a GPU; on the CPU "numba", or "reference" without it."""
    return "triton" if tensor.is_cuda else "numba" if HAS_NUMBA else "reference"


def has_cpu_feature(name: str) -> bool:
    """Whether compiled code may use an instruction set (LLVM's name) of this machine; False without numba."""
    if not HAS_NUMBA or numba.config.CPU_NAME == "generic":
        return False
    from llvmlite.binding import get_host_cpu_features

    return bool(get_host_cpu_features().get(name))


_STRING_OR_COMMENT = re.compile(r'"""(?:\\.|[^\\])*?"""|"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])*\'|#[^\n]*', re.DOTALL)


def strip_comments(source: str) -> str:
    """Python source without comments, docstrings and blank lines."""

    def code(match: re.Match) -> str:
        text = match[0]
        starts_line = not source[source.rfind("\n", 0, match.start()) + 1 : match.start()].strip()
        return "" if text.startswith("#") or (text.startswith('"""') and starts_line) else text

    return "\n".join(line.rstrip() for line in _STRING_OR_COMMENT.sub(code, source).split("\n") if line.strip())


def cache_folder() -> str:
    """The folder of compiled kernels with exactly this code."""
    folders = [Path(__file__).parents[2] / name for name in ("kernels", "ngram_native")]
    texts = [file.read_text() for folder in folders for file in sorted(folder.rglob("*.py"))]
    code = "\n".join(strip_comments(text) for text in texts if "njit(" in text or "llvmlite" in text)
    home = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return str(Path(home) / "foredraft" / f"kernels-{hashlib.sha256(code.encode()).hexdigest()[:12]}")


def is_writable(folder: str) -> bool:
    """Whether files can be written to the folder, which is made if necessary."""
    try:
        os.makedirs(folder, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


_CACHE_FOLDER = os.environ.get("NUMBA_CACHE_DIR") or cache_folder()
# without a writable folder, compiled code lives as long as the process
_IS_CACHED = is_writable(_CACHE_FOLDER)


def _without_literals(dispatcher):
    """Let compiled callers pass constants as numbers: numba would compile the kernel once more for each constant."""
    resolve = dispatcher.get_call_template

    def get_call_template(args, kws):
        unliteral = numba.types.unliteral
        return resolve(tuple(map(unliteral, args)), {name: unliteral(kind) for name, kind in kws.items()})

    dispatcher.get_call_template = get_call_template
    return dispatcher


def njit(**options):
    """numba.njit with cache=True and nogil=True; `options` add to or override these two."""

    def decorate(function):
        if HAS_NUMBA:
            before = numba.config.CACHE_DIR
            # numba reads this setting while it decorates; other users of numba in this process keep theirs
            numba.config.CACHE_DIR = _CACHE_FOLDER
            try:
                return _without_literals(numba.njit(**({"cache": _IS_CACHED, "nogil": True} | options))(function))
            finally:
                numba.config.CACHE_DIR = before

        def missing(*_args, **_kwargs):
            raise ImportError(f"{function.__name__} needs numba: pip install numba")

        return missing

    return decorate


def kept_in() -> str | None:
    """The folder that compiled kernels are kept in; None where it cannot be written."""
    return _CACHE_FOLDER if _IS_CACHED else None
