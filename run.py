"""The command lines of the original project, `python run.py train ... run` and `python run.py eval ... run`.

They are `foredraft train` and `foredraft eval`; the closing word `run` is taken off.
"""

from __future__ import annotations

import sys

from foredraft.cli.main import main

COMMANDS = ("train", "eval")


def arguments(words: list[str]) -> list[str]:
    """The words after `run.py` as foredraft's."""
    return words[:-1] if words[:1] and words[0] in COMMANDS and words[-1] == "run" else words


if __name__ == "__main__":
    sys.argv = ["foredraft", *arguments(sys.argv[1:])]
    main()
