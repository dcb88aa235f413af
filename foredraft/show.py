"""Summaries on a terminal: each piece of text in the colour of whoever proposed it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby

from rich.console import Console
from rich.live import Live
from rich.text import Text

# by the names of engine.state.ORIGINS; the target's own tokens keep the terminal's colour
STYLES = {
    "lookup": "black on green3", "ngram": "black on sky_blue2", "t5": "black on plum2", "lstm": "black on gold3",
    "cnn": "black on orange3", "self": "black on turquoise2", "head": "black on salmon1", "staged": "black on khaki1",
}


def coloured(ids: Sequence[int], origins: Sequence[str], decode: Callable[[list[int]], str]) -> Text:
    """The text of `ids`, coloured by `origins` (a name of ORIGINS for each id)."""
    text, end, done = Text(), 0, ""
    ids = list(ids)
    for origin, run in groupby(origins):
        end += len(list(run))
        # decoded from the start each time: a piece alone would lose the space before it
        whole = decode(ids[:end])
        text.append(whole[len(done):], STYLES.get(origin))
        done = whole
    return text


def legend(origins: Sequence[Sequence[str]]) -> Text:
    """What the colours mean, for the origins that occur."""
    text = Text("the target's own tokens", style="dim")
    found = {origin for row in origins for origin in row}
    for name in (name for name in STYLES if name in found):
        text.append("  ").append(f" drafted by {name} ", STYLES[name])
    return text


class Stream:
    """A streamer as transformers has them: put(ids) as they come, end(). Shows the growing text on a terminal; `finish`
    leaves the coloured text in its place."""

    def __init__(self, console: Console, decode: Callable[[list[int]], str]):
        self.decode, self.ids = decode, []
        self.live = Live(Text(), console=console, auto_refresh=False, vertical_overflow="visible")

    def __enter__(self) -> Stream:
        self.live.start()
        return self

    def __exit__(self, *_exc) -> None:
        self.live.stop()

    def put(self, value) -> None:
        self.ids += value.flatten().tolist()
        self.live.update(Text(self.decode(self.ids)), refresh=True)

    def end(self) -> None:
        self.live.refresh()

    def finish(self, text: Text) -> None:
        self.live.update(text, refresh=True)
