"""The command `foredraft`. Each command is a file, imported when the command is used; heavy imports wait for its body."""

from __future__ import annotations

import atexit
import gc
import os
import sys
from typing import Annotated

import typer

import foredraft
from foredraft.cli.lazy import group
from foredraft.cli.output import INTERRUPTED, notice
from foredraft.errors import UserError

COMMANDS = {
    "summarize": ("foredraft.cli.generate:summarize", "Summarise texts, or a file of articles."),
    "generate": ("foredraft.cli.generate:generate", "Any task of a T5: text in, text out."),
    "serve": ("foredraft.cli.serve:serve", "Serve a model over HTTP, with a page that shows the drafts."),
    "warm-up": ("foredraft.cli.warm_up:warm_up", "Compile the kernels now, so that the first request does not wait."),
    "demo": ("foredraft.cli.demo:demo", "Summarise a text and measure what drafts gain, in a minute."),
    "eval": ("foredraft.cli.eval:evaluate", "Acceptance, cost and speed-up of a drafter."),
    "bench": ("foredraft.cli.bench.group:bench", "Measure decoding methods side by side."),
    "train": ("foredraft.cli.training.train:train", "Train a drafter for a target."),
    "pseudo": ("foredraft.cli.training.pseudo:pseudo", "Let the target write training data for its drafters."),
    "matrix": ("foredraft.cli.training.matrix:matrix", "Train and evaluate every drafter with every method."),
    "convert": ("foredraft.cli.convert:convert", "Write a checkpoint as safetensors, with an adapter merged."),
    "widen": ("foredraft.cli.widen:widen", "Write a target in the sizes of a larger model, with the same function."),
    "compact": ("foredraft.cli.training.compact:compact", "Make a trained drafter smaller and faster."),
    "tune-skip": ("foredraft.cli.training.tune_skip:tune_skip", "Find the sublayers that self-drafting skips."),
    "tune-tree": ("foredraft.cli.training.tune_tree:tune_tree", "Find the fastest shape of a draft tree."),
    "ngram": ("foredraft.cli.ngram:ngram", "Count, fit, inspect and convert n-gram tables."),
    "corrections": ("foredraft.cli.training.corrections:corrections",
                    "Write sentences with errors, to train a target that corrects text."),
    "train-target": ("foredraft.cli.training.train_target:train_target", "Train a T5 target."),
    "target-card": ("foredraft.cli.training.train_target:target_card", "Measure a target and write its model card."),
    "family": ("foredraft.cli.training.train_target:family", "Rebuild the embedded reference family."),
    "report": ("foredraft.cli.report:report", "Make a page, pictures or tables from records."),
}
# new objects that start a search for garbage
GARBAGE = 100_000
# characters of an error; it may quote a file
LONGEST_LINE = 1000


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"foredraft {foredraft.__version__}")
        raise typer.Exit()


def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """The options of `foredraft` itself."""


def _keep_garbage() -> None:
    """Leave all objects to the end of the process: to search them for garbage at exit takes half a second too."""
    # triton reports each object of its own that is left
    if "triton" not in sys.modules:
        gc.freeze()


app = group(COMMANDS, help="Lossless speculative decoding for T5.", callback=options)


def main() -> None:
    """Run the command line. An error that the user can fix is one line on stderr and exit code 2."""
    # imports make a million objects that stay; to search them again and again takes half a second
    gc.set_threshold(GARBAGE)
    atexit.register(_keep_garbage)
    # names of files that are not UTF-8 are written byte for byte, as other programs write them
    sys.stdout.reconfigure(errors="surrogateescape")
    try:
        try:
            app()
        finally:
            # here and not at exit, so that a full disk is reported in one line
            sys.stdout.flush()
    except UserError as error:
        _fail(str(error))
    except (FileExistsError, FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError) as error:
        _fail(f"{error.filename}: {error.strerror}" if error.filename else str(error))
    except UnicodeEncodeError as error:
        found = error.object[error.start : error.end]
        _fail(f"{found!a} cannot be written in {error.encoding}; set PYTHONIOENCODING=utf-8")
    except BrokenPipeError:
        # stdout's reader has closed it, as `head` does; no output is possible any more
        sys.stderr.close()
        raise SystemExit(1) from None
    except OSError as error:
        from foredraft.atomic_write import why_full

        # such as a file system that is mounted read-only, or a name that is too long
        if error.filename:
            _fail(f"{error.filename}: {error.strerror}")
        if why_full(error) is None:
            raise
        # what cannot be written is dropped, or Python would try again at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.__stdout__.fileno())
        _fail(f"standard output: {error.strerror}; free some space and run the command again")
    except KeyboardInterrupt:
        notice("interrupted")
        raise SystemExit(INTERRUPTED) from None


def _fail(message: str) -> None:
    line = " ".join(message.split())
    notice(line if len(line) <= LONGEST_LINE else line[:LONGEST_LINE] + "...")
    raise SystemExit(2)
