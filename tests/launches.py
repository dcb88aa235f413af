"""Counts what a device would be asked to do: Triton launches under the interpreter, and torch operations beside them."""

from __future__ import annotations

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from triton.runtime.interpreter import GridExecutor

# Operations that read a value back to the host.
WAITS = {"aten._local_scalar_dense.default", "aten.nonzero.default", "aten.item.default", "aten.masked_select.default"}


class Launches(TorchDispatchMode):
    """`kernels`: names of the Triton kernels launched, in order, `grids` theirs. `operations`: of torch operations that are
    no views. `waits`: of those that wait for the device. `bytes`: that operations returned in memory of their own."""

    def __init__(self):
        super().__init__()
        self.kernels, self.grids, self.operations, self.waits, self.bytes, self._inside = [], [], [], [], 0, False

    def __enter__(self):
        self._run = run = GridExecutor.__call__

        def launch(executor, *args, **kwargs):
            self.kernels.append(executor.fn.__name__)
            self.grids.append(executor.grid)
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


def _is_view(function) -> bool:
    """Whether the operation returns a view of its input and computes nothing."""
    returns = function._schema.returns
    return bool(returns) and all(r.alias_info is not None and not r.alias_info.is_write for r in returns)
