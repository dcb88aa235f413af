"""Bytes of a device: how many are free, how many a set of tensors takes, and the refusal before they are allocated."""

from __future__ import annotations

import math

import torch

from foredraft.errors import UserError

# Name -> shape and type of tensors to allocate.
Layout = dict[str, tuple[tuple[int, ...], torch.dtype]]


def layout_bytes(layout: Layout) -> int:
    return sum(math.prod(shape) * dtype.itemsize for shape, dtype in layout.values())


def free_bytes(device: torch.device | str) -> float:
    """What can still be allocated there; infinite on the CPU."""
    if torch.device(device).type != "cuda":
        return math.inf
    return torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def check_memory(device: torch.device | str, needed: int, what: str, advice: str, released: int = 0) -> None:
    """Refuse an allocation that does not fit, before anything is allocated.

    Parameters
    ----------
    device : torch.device or str
    needed : int
        Bytes to allocate.
    what, advice : str
        What needs them, and what the user can lower; both go into the message.
    released : int
        Bytes that will be released first.

    Raises
    ------
    UserError
        Fewer than `needed` bytes are free.
    """
    free = free_bytes(device) + released
    if needed > free:
        raise UserError(f"device {str(device)!r}: {what} need {needed / 1e9:.2f} GB, {free / 1e9:.2f} GB are free; {advice}")
