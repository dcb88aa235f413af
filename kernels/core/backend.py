"""Which implementation runs where. numba and triton are optional at import: a file of kernels always imports.

`njit`, `prange`, `intrinsic` come from here; without numba a compiled kernel raises ImportError when it is called.
`jit`, `tl`, `constexpr` are triton's: a kernel's file imports them by these names; without triton a launch raises
ImportError.
Compiled code is cached on disk, in a folder named after the kernels' sources: numba looks at a function's own file only,
so that a change in one kernel would leave the old one inside the others that call it. NUMBA_CACHE_DIR overrides the place.
"""

from __future__ import annotations

import functools
import hashlib
import os
import tempfile
from pathlib import Path

try:
    import numba
    from numba import get_num_threads, prange
    from numba.extending import intrinsic

    HAS_NUMBA = True
except ImportError:
    HAS_NUMBA = False
    prange = range

    def get_num_threads() -> int:
        return os.cpu_count() or 1

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

    class jit:  # noqa: N801  stands in for triton.jit
        """A kernel that cannot be launched."""

        def __init__(self, function):
            self.function = function

        def __getitem__(self, _grid):
            raise ImportError(f"{self.function.__name__} needs triton: pip install triton")


@functools.cache
def is_interpreted() -> bool:
    """Whether Triton kernels run under its interpreter, on CPU tensors (TRITON_INTERPRET=1 before triton's import)."""
    return HAS_TRITON and not isinstance(jit(power_of_2), triton.runtime.JITFunction)


def can_launch() -> bool:
    """Whether Triton kernels can run here: under the interpreter, or on a GPU."""
    if not HAS_TRITON or is_interpreted():
        return HAS_TRITON
    import torch

    return torch.cuda.is_available()


def backend_of(tensor) -> str:
    """Which implementation works on a torch tensor where it lies: "triton", "numba" or, without it, "reference"."""
    return "triton" if tensor.is_cuda else "numba" if HAS_NUMBA else "reference"


def power_of_2(size: int) -> int:
    """The smallest power of 2 that is not below `size` >= 1: Triton's tiles have such sides."""
    return 1 << (size - 1).bit_length()


def sequences_per_program(B: int, weight: int) -> int:
    """Batch rows a program takes: one on a device; under the interpreter, which runs program after program, as many as
    B allows while `weight` elements of each stay within reason."""
    return min(power_of_2(B), max(1, 2**20 // power_of_2(weight))) if is_interpreted() else 1


def has_cpu_feature(name: str) -> bool:
    """Whether compiled code may use an instruction set of this machine, by LLVM's name; False without numba."""
    if not HAS_NUMBA or numba.config.CPU_NAME == "generic":
        return False
    from llvmlite.binding import get_host_cpu_features

    return bool(get_host_cpu_features().get(name))


def cache_folder() -> str:
    """Where compiled kernels of exactly these sources are kept."""
    sources = b"".join(file.read_bytes() for file in sorted(Path(__file__).parent.parent.rglob("*.py")))
    home = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return str(Path(home) / "foredraft" / f"kernels-{hashlib.sha256(sources).hexdigest()[:12]}")


def is_writable(folder: str) -> bool:
    """Whether files can be kept there; makes the folder if it can."""
    try:
        os.makedirs(folder, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


_CACHE_FOLDER = os.environ.get("NUMBA_CACHE_DIR") or cache_folder()
# without a place to keep it, compiled code lives as long as the process
_IS_KEPT = is_writable(_CACHE_FOLDER)


def njit(**options):
    """numba.njit with caching and without the GIL; `options` add to or override these two."""

    def decorate(function):
        if HAS_NUMBA:
            before = numba.config.CACHE_DIR
            # the place is chosen while decorating; other users of numba in this process keep theirs
            numba.config.CACHE_DIR = _CACHE_FOLDER
            try:
                return numba.njit(**({"cache": _IS_KEPT, "nogil": True} | options))(function)
            finally:
                numba.config.CACHE_DIR = before

        def missing(*_args, **_kwargs):
            raise ImportError(f"{function.__name__} needs numba: pip install numba")

        return missing

    return decorate


def is_compiled() -> bool:
    """Whether compiled kernels of these sources were kept by an earlier process; else the first use compiles them."""
    return _IS_KEPT and any(Path(_CACHE_FOLDER).rglob("*.nbi"))
