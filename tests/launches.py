"""Counts the work of a device: Triton launches, under the interpreter, and torch operations."""

from __future__ import annotations

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from triton.runtime.interpreter import GridExecutor

# Operations that read a value back to the host.
WAITS = {"aten._local_scalar_dense.default", "aten.nonzero.default", "aten.item.default", "aten.masked_select.default"}


class Launches(TorchDispatchMode):
    """Records what runs inside the context.

    kernels, grids, variants: of each Triton launch its name, its grid and what the compiler specialises on.
    operations: names of torch operations, without views. waits: those that synchronise with the device.
    bytes: memory that operations allocated.
    """

    def __init__(self):
        super().__init__()
        self.kernels, self.grids, self.variants, self.operations, self.waits = [], [], [], [], []
        self.bytes, self._inside = 0, False

    def __enter__(self):
        self._run = run = GridExecutor.__call__

        def launch(executor, *args, **kwargs):
            self.kernels.append(executor.fn.__name__)
            self.grids.append(executor.grid)
            self.variants.append(_variant(executor, dict(zip(executor.arg_names, args, strict=False)) | kwargs))
            self._inside = True
            try:
                return run(executor, *args, **kwargs)
            finally:
                self._inside = False

        GridExecutor.__call__ = launch
        return super().__enter__()

    def __exit__(self, *error):
        GridExecutor.__call__ = self._run
        return super().__exit__(*error)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        if not self._inside and not _is_view(function):
            name = str(function)
            self.operations.append(name)
            if name in WAITS:
                self.waits.append(name)
            for tensor in out if isinstance(out, tuple | list) else [out]:
                if isinstance(tensor, torch.Tensor) and not function._schema.is_mutable:
                    self.bytes += tensor.nbytes
        return out


def _variant(executor: GridExecutor, values: dict) -> tuple:
    """A kernel's name and, for each argument, its type, whether it is 1 or a multiple of 16, or its constant value."""
    def specialised(name: str, value) -> tuple:
        if isinstance(value, torch.Tensor):
            return value.dtype, value.data_ptr() % 16 == 0
        if name in executor.arg_names and name not in executor.constexprs and type(value) in (int, float):
            return (float,) if isinstance(value, float) else (int, value == 1, value % 16 == 0, value >= 2**31)
        return (value,)

    return executor.fn.__name__, *((name, *specialised(name, value)) for name, value in sorted(values.items()))


def _is_view(function) -> bool:
    """Whether the operation returns a view of its input and computes nothing."""
    returns = function._schema.returns
    return bool(returns) and all(r.alias_info is not None and not r.alias_info.is_write for r in returns)
