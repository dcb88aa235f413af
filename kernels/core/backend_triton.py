"""The backend of the GPU kernels. triton is optional: every file of kernels can be imported without it.

`jit`, `tl`, `constexpr`: triton's; without triton a launch raises ImportError. Triton compiles a kernel anew for arguments
that are 1 or multiples of 16, and may then sum in another order. do_not_specialize names every argument that differs between
passes of one model, so that each pass gives the same bits and a step has few kernels to compile.

Commands that decode on a CPU do not import this file: importing triton takes a tenth of a second.
"""

from __future__ import annotations

import functools

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


def power_of_2(size: int) -> int:
    """The smallest power of 2 that is >= `size` >= 1; tiles in Triton have such sides."""
    return 1 << (size - 1).bit_length()


def sequences_per_program(B: int, weight: int) -> int:
    """How many of B sequences a Triton program takes; `weight`: elements it holds of each.

    One on a GPU. The interpreter runs one program after the other, so there a program takes up to 2^20 elements.
    """
    return min(power_of_2(B), max(1, 2**20 // power_of_2(weight))) if is_interpreted() else 1
