"""The number of CPU threads of this process."""

from __future__ import annotations

import torch

from foredraft.errors import UserError
from foredraft.kernels.core.thread_count import affinity, available_threads
from foredraft.kernels.core.workers import set_num_threads


def limit_torch_threads() -> None:
    """Let PyTorch use no more threads than this process has cores: it counts those of the machine, whatever the container's
    share of them."""
    if available_threads() < torch.get_num_threads():
        torch.set_num_threads(available_threads())


def set_threads(number: int) -> None:
    """Set the number of CPU threads of this process, of the kernels and of PyTorch.

    Parameters
    ----------
    number : int
        At least 1, at most the cores that this process may run on. Before this is called it is FOREDRAFT_THREADS, else
        OMP_NUM_THREADS, else the number of cores, or fewer where a control group (container) has a smaller share of them.

    Raises
    ------
    UserError
        Not such a number.
    """
    most = max(affinity(), available_threads())
    if isinstance(number, bool) or not isinstance(number, int) or not 1 <= number <= most:
        raise UserError(f"threads must be 1 to {most}, the cores that this process may run on; got {number!r}")
    set_num_threads(number)
    torch.set_num_threads(number)
