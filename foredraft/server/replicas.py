"""How many replicas Ray Serve runs, and with how many threads each."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from foredraft.errors import UserError


@dataclass(frozen=True)
class Replicas:
    """From `least` to `most` replicas, by the load.

    Parameters
    ----------
    least, most : int
    """

    least: int
    most: int

    @staticmethod
    def parse(text: str) -> Replicas:
        """Read "N" or "MIN:MAX". UserError: it is neither."""
        found = re.fullmatch(r"(\d{1,6})(?::(\d{1,6}))?", text, re.ASCII)
        least, most = (int(found[1]), int(found[2] or found[1])) if found else (0, 0)
        if not 1 <= least <= most:
            raise UserError(f"--replicas {text}: give a number of at least 1, or MIN:MAX such as 1:4")
        return Replicas(least, most)


def threads_of(cores: Sequence[int], replicas: int) -> int:
    """The most threads that each replica can have, on machines with these cores; 0 if there are too few cores."""
    return next((threads for threads in range(max(cores, default=0), 0, -1)
                 if sum(one // threads for one in cores) >= replicas), 0)
