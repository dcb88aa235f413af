"""The command lines of the original project, `python run.py train ... run` and `python run.py eval ... run`.

They call `foredraft train` and `foredraft eval`, without the last word `run`.
"""

from __future__ import annotations

import sys

from foredraft.cli.main import main

COMMANDS = ("train", "eval")


def arguments(words: list[str]) -> list[str]:
    """The arguments of `foredraft` for those of `run.py`."""
    return words[:-1] if words[:1] and words[0] in COMMANDS and words[-1] == "run" else words


if __name__ == "__main__":
    sys.argv = ["foredraft", *arguments(sys.argv[1:])]
    main()
