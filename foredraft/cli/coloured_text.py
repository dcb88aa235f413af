"""Summaries on a terminal: each piece of text in the colour of whoever proposed it."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from itertools import groupby

from rich.console import Console
from rich.live import Live
from rich.text import Text

# by the names of engine.state.PROPOSERS; the target's own tokens keep the terminal's colour
STYLES = {
    "lookup": "black on green3", "ngram": "black on sky_blue2", "t5": "black on plum2", "lstm": "black on gold3",
    "cnn": "black on orange3", "self": "black on turquoise2", "head": "black on salmon1", "staged": "black on khaki1",
}


def pieces(ids: Sequence[int], proposers: Sequence[str], tokenizer) -> list[tuple[str, str]]:
    """(text, proposer) of every id that has a text; proposers are names of PROPOSERS."""
    found, done, ids = [], "", list(ids)
    for end, proposer in enumerate(proposers, 1):
        # decoded from the start each time: a piece alone would lose the space before it
        whole = tokenizer.decode(ids[:end], skip_special_tokens=True)
        if len(whole) > len(done):
            found.append((whole[len(done):], proposer))
        done = whole
    return found


def coloured(ids: Sequence[int], proposers: Sequence[str], tokenizer) -> Text:
    """The text of `ids`, coloured by `proposers` (a name of PROPOSERS for each id)."""
    text = Text()
    for proposer, run in groupby(pieces(ids, proposers, tokenizer), key=lambda piece: piece[1]):
        text.append("".join(piece for piece, _ in run), STYLES.get(proposer))
    return text


def legend(proposers: Sequence[Sequence[str]]) -> Text:
    """What the colours mean, for those that occur."""
    text = Text().append("the target's own tokens", "dim")
    found = {proposer for row in proposers for proposer in row}
    for name in (name for name in STYLES if name in found):
        text.append("  ").append(f" drafted by {name} ", STYLES[name])
    return text


def proposer_names(out) -> list[list[str]]:
    """An Output's proposers by name."""
    from foredraft.engine.state import PROPOSERS

    return [[PROPOSERS[proposer] for proposer in row] for row in out.proposers]


def summaries(console: Console, names: Sequence[str], out, tokenizer) -> None:
    """Each summary of an Output under its name, coloured, and what the colours mean."""
    proposers = proposer_names(out)
    for name, ids, row in zip(names, out.token_ids, proposers, strict=True):
        console.print(f"== {name}", style="bold", markup=False)
        console.print(coloured(ids, row, tokenizer))
    console.print(legend(proposers))


class Stream:
    """A streamer as transformers has them, put(ids) as they come and end(): shows the growing text on a terminal."""

    def __init__(self, console: Console, tokenizer):
        self.tokenizer, self.ids = tokenizer, []
        self.live = Live(Text(), console=console, auto_refresh=False, vertical_overflow="visible")

    def __enter__(self) -> Stream:
        self.live.start()
        return self

    def __exit__(self, *_exc) -> None:
        self.live.stop()

    def put(self, value) -> None:
        self.ids += value.flatten().tolist()
        self.live.update(Text(self.tokenizer.decode(self.ids, skip_special_tokens=True)), refresh=True)

    def end(self) -> None:
        self.live.refresh()

    def finish(self, out) -> None:
        """Put the coloured text of an Output of one text in the stream's place."""
        self.live.update(coloured(out.token_ids[0], proposer_names(out)[0], self.tokenizer), refresh=True)


def announce_compilation() -> None:
    """Say on stderr that the first use compiles; nothing once compiled kernels are kept."""
    from foredraft.kernels.core.backend import HAS_NUMBA, is_compiled

    if HAS_NUMBA and not is_compiled():
        print("foredraft: first use: compiling kernels for this machine, about a minute, once", file=sys.stderr)
