"""Generated text on a terminal: each piece in the colour of the drafter that proposed it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from itertools import groupby

from rich.console import Console
from rich.live import Live
from rich.text import Text

from foredraft.engine.drafters.registry import PROPOSERS

# in the order of the registry's proposers; the target's own tokens keep the terminal's colour
PALETTE = ("green3", "sky_blue2", "plum2", "gold3", "orange3", "turquoise2", "salmon1", "khaki1")


def style(proposer: str) -> str | None:
    """The style of a proposer's tokens, by its name."""
    number = PROPOSERS.index(proposer)
    return f"black on {PALETTE[(number - 1) % len(PALETTE)]}" if number else None


def pieces(tokens: Sequence[int], proposers: Sequence[str], tokenizer) -> list[tuple[str, str]]:
    """(text, proposer) of every token that adds to the text; proposers are names of PROPOSERS."""
    found, done, tokens = [], 0, list(tokens)
    full_text = tokenizer.decode(tokens, skip_special_tokens=True)
    for end, proposer in enumerate(proposers, 1):
        # decoded from the start each time: a token alone would lose the space before it
        text = tokenizer.decode(tokens[:end], skip_special_tokens=True)
        # a later token may still change the end, such as half a character
        settled = len(os.path.commonprefix((text, full_text)))
        if settled > done:
            found.append((full_text[done:settled], proposer))
            done = settled
    return found


def coloured(tokens: Sequence[int], proposers: Sequence[str], tokenizer) -> Text:
    """The text of `tokens`, coloured by `proposers` (a name of PROPOSERS for each token)."""
    text = Text()
    for proposer, run in groupby(pieces(tokens, proposers, tokenizer), key=lambda piece: piece[1]):
        text.append("".join(piece for piece, _ in run), style(proposer))
    return text


def legend(proposers: Sequence[Sequence[str]]) -> Text:
    """The colours of the proposers that occur."""
    text = Text().append("the target's own tokens", "dim")
    found = {proposer for sequence in proposers for proposer in sequence}
    for name in (name for name in PROPOSERS[1:] if name in found):
        text.append("  ").append(f" drafted by {name} ", style(name))
    return text


def proposer_names(out) -> list[list[str]]:
    """An Output's proposers as names of PROPOSERS."""
    return [[PROPOSERS[proposer] for proposer in sequence] for sequence in out.proposers]


def print_outputs(console: Console, names: Sequence[str], out, tokenizer) -> None:
    """Each text of an Output under its name, coloured, then the legend."""
    proposers = proposer_names(out)
    for name, tokens, own in zip(names, out.token_ids, proposers, strict=True):
        console.print(f"== {name}", style="bold", markup=False)
        console.print(coloured(tokens, own, tokenizer))
    console.print(legend(proposers))


class Stream:
    """A streamer with transformers' interface, put(tokens) and end(): shows the growing text on a terminal."""

    def __init__(self, console: Console, tokenizer):
        self.tokenizer = tokenizer
        self.tokens: list[int] = []
        self.live = Live(Text(), console=console, auto_refresh=False, vertical_overflow="visible")

    def __enter__(self) -> Stream:
        self.live.start()
        return self

    def __exit__(self, *_exc) -> None:
        self.live.stop()

    def put(self, value) -> None:
        self.tokens += value.flatten().tolist()
        self.live.update(Text(self.tokenizer.decode(self.tokens, skip_special_tokens=True)), refresh=True)

    def end(self) -> None:
        self.live.refresh()

    def finish(self, out) -> None:
        """Replace the streamed text by the coloured text of an Output of one sequence."""
        self.live.update(coloured(out.token_ids[0], proposer_names(out)[0], self.tokenizer), refresh=True)
