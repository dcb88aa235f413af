"""The number of CPU threads of this process."""

from __future__ import annotations

import torch

from foredraft.errors import UserError
from foredraft.kernels.core.backend import HAS_NUMBA, set_num_threads


def start_threads() -> None:
    """Start numba's threads without changing PyTorch's number of threads.

    Starting numba's threads sets PyTorch's number of threads in the calling thread. The order of sums in PyTorch's matrix
    products depends on that number, so results would differ between threads.
    """
    number = torch.get_num_threads()
    if HAS_NUMBA:
        import numba

        numba.get_num_threads()
    torch.set_num_threads(number)


def set_threads(number: int) -> None:
    """Decode with `number` threads in the calling thread. UserError: more than the machine has cores."""
    if HAS_NUMBA:
        import numba

        if number > numba.config.NUMBA_NUM_THREADS:
            raise UserError(f"{number} threads are more than the {numba.config.NUMBA_NUM_THREADS} that this machine or "
                            "NUMBA_NUM_THREADS allows")
    set_num_threads(number)
    # after numba, whose start changes PyTorch's number
    torch.set_num_threads(number)
