"""Where the time of a decode goes: wall seconds by part, on a device that runs while the host waits."""

from __future__ import annotations

from time import perf_counter
from typing import Any


class Stopwatch:
    """Sums seconds under names; `watch` hands out a stand-in for an object whose calls are timed."""

    def __init__(self):
        self.seconds: dict[str, float] = {}

    def add(self, name: str, since: float) -> None:
        self.seconds[name] = self.seconds.get(name, 0.0) + perf_counter() - since

    def watch(self, thing: Any, parts: dict[str, str]) -> Any:
        """`thing`, with the methods named in `parts` counted under the name given there."""
        return _Watched(self, thing, parts)


class _Watched:
    def __init__(self, stopwatch: Stopwatch, thing: Any, parts: dict[str, str]):
        self._thing = thing
        for method, part in parts.items():
            setattr(self, method, self._timed(stopwatch, getattr(thing, method), part))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._thing, name)

    @staticmethod
    def _timed(stopwatch: Stopwatch, call, part: str):
        def timed(*args, **kwargs):
            since = perf_counter()
            try:
                return call(*args, **kwargs)
            finally:
                stopwatch.add(part, since)

        return timed
