"""The backends of the kernels. numba and triton are optional: every file of kernels can be imported without them.

`njit`, `intrinsic`: numba's; without numba a compiled kernel raises ImportError when it is called.
`jit`, `tl`, `constexpr`: triton's; without triton a launch raises ImportError. Triton compiles a kernel anew for arguments
that are 1 or multiples of 16, and may then sum in another order. do_not_specialize names every argument that differs between
passes of one model, so that each pass gives the same bits and a step has few kernels to compile.

Compiled code is cached on disk. numba checks only the file of a function itself, but compiled kernels contain the kernels
that they call; therefore the cache folder is named after the code of all numba kernels, without comments and docstrings.
The environment variable NUMBA_CACHE_DIR replaces that folder.
"""

from __future__ import annotations

import functools
import hashlib
import os
import re
import tempfile
from pathlib import Path

try:
    import numba
    from numba.extending import intrinsic

    HAS_NUMBA = True
except ImportError:
    HAS_NUMBA = False

    def intrinsic(function):
        return function


try:
    import triton
    import triton.language as tl

    HAS_TRITON = True
    jit = triton.jit
    constexpr = tl.constexpr
except ImportError:
    HAS_TRITON = False
    tl = None

    def constexpr(value):
        return value

    class Missing:
        """A kernel that cannot be launched."""

        def __init__(self, function):
            self.function = function

        def __getitem__(self, _grid):
            raise ImportError(f"{self.function.__name__} needs triton: pip install triton")

    def jit(function=None, **_options):
        return Missing if function is None else Missing(function)


@functools.cache
def is_interpreted() -> bool:
    """Whether Triton kernels run in its interpreter, on CPU tensors (TRITON_INTERPRET=1 before triton is imported)."""
    return HAS_TRITON and not isinstance(jit(power_of_2), triton.runtime.JITFunction)


def can_launch() -> bool:
    """Whether Triton kernels can run on this machine: in the interpreter, or on a GPU."""
    if not HAS_TRITON or is_interpreted():
        return HAS_TRITON
    import torch

    return torch.cuda.is_available()


def backend_of(tensor) -> str:
    """The implementation for a torch tensor's device: "triton" on a GPU; on the CPU "numba", or "reference" without it."""
    return "triton" if tensor.is_cuda else "numba" if HAS_NUMBA else "reference"


def power_of_2(size: int) -> int:
    """The smallest power of 2 that is >= `size` >= 1; tiles in Triton have such sides."""
    return 1 << (size - 1).bit_length()


def sequences_per_program(B: int, weight: int) -> int:
    """How many of B sequences a Triton program takes; `weight`: elements it holds of each.

    One on a GPU. The interpreter runs one program after the other, so there a program takes up to 2^20 elements.
    """
    return min(power_of_2(B), max(1, 2**20 // power_of_2(weight))) if is_interpreted() else 1


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
