"""The number of CPU threads of this process."""

from __future__ import annotations

import torch

from foredraft.errors import UserError
from foredraft.kernels.core.backend import HAS_NUMBA


def set_threads(number: int) -> None:
    """Decode with `number` threads in the calling thread. UserError: more than the machine has cores."""
    torch.set_num_threads(number)
    if HAS_NUMBA:
        import numba

        if number > numba.config.NUMBA_NUM_THREADS:
            raise UserError(f"{number} threads are more than the {numba.config.NUMBA_NUM_THREADS} that this machine or "
                            "NUMBA_NUM_THREADS allows")
        numba.set_num_threads(number)
