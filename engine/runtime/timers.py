"""Seconds of a decode, by part."""

from __future__ import annotations

from typing import Any

from foredraft.engine.clock import now


class Timer:
    """Sums seconds under names; `watch` wraps an object so that some of its methods are timed."""

    def __init__(self):
        self.seconds: dict[str, float] = {}

    def add(self, name: str, since: float) -> None:
        """Add the seconds since `since`, a reading of clock.now."""
        self.seconds[name] = self.seconds.get(name, 0.0) + now() - since

    def watch(self, thing: Any, parts: dict[str, str]) -> Any:
        """`thing`, with the seconds of each method in `parts` added under the name given there."""
        return _Watched(self, thing, parts)


class _Watched:
    def __init__(self, timer: Timer, thing: Any, parts: dict[str, str]):
        self._thing = thing
        for method, part in parts.items():
            setattr(self, method, self._timed(timer, getattr(thing, method), part))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._thing, name)

    @staticmethod
    def _timed(timer: Timer, call, part: str):
        def timed(*args, **kwargs):
            since = now()
            try:
                return call(*args, **kwargs)
            finally:
                timer.add(part, since)

        return timed
