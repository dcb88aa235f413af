"""Every reader of files from outside, on files with damage; test_mutated_files.py runs it.

Each input is a valid file with one to three seeded mutations: flipped bits, bytes that are cut out, doubled, inserted or
overwritten, a truncation, a changed number, a JSON value of another kind. Files with a checksum of their header are also
mutated inside the header and signed again. A reader may read the file or refuse it by a UserError of one line. Everything
else is a failure: another exception, more than SLOWEST seconds, more than LARGEST bytes of memory.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
import traceback
from dataclasses import dataclass, field
from pathlib import Path

from file_readers import readers
from mutations import mutate

# Limits of one input: seconds, and bytes of address space above what the process has before the first input.
SLOWEST, LARGEST = 10.0, 2 << 30


@dataclass
class Tally:
    """What became of a reader's inputs."""

    inputs: int = 0
    read: int = 0
    refused: int = 0
    slowest: float = 0.0
    failures: list[str] = field(default_factory=list)


def run(inputs: int, seed: int, folder: Path, names: list[str] | None = None) -> dict[str, Tally]:
    """Give each reader its share of `inputs` mutated files; prints each failure with its reader and number."""
    from foredraft.errors import UserError

    chosen = {name: reader for name, reader in readers().items() if not names or name in names}
    tallies = {name: Tally() for name in chosen}
    for number, (name, reader) in enumerate(chosen.items()):
        own = folder / f"{number}-{name.replace(' ', '-')}"
        own.mkdir()
        path = reader.make(own)
        valid, tally = path.read_bytes(), tallies[name]
        # the valid file is read, and whatever is compiled is compiled
        reader.read(path)
        if number == 0:
            _limit_memory()
        for i in range(-(-inputs // len(chosen))):
            path.write_bytes(mutate(valid, random.Random(f"{seed} {name} {i}"), reader.signed))
            began, tally.inputs = time.monotonic(), tally.inputs + 1
            try:
                reader.read(path)
                tally.read += 1
            except UserError as error:
                tally.refused += 1
                if "\n" in str(error):
                    _fail(tally, name, i, f"a message of several lines: {str(error)[:200]!r}")
            except BaseException as error:
                if isinstance(error, KeyboardInterrupt):
                    raise
                _fail(tally, name, i, "".join(traceback.format_exception(error)[-3:]))
            tally.slowest = max(tally.slowest, time.monotonic() - began)
            if time.monotonic() - began > SLOWEST:
                _fail(tally, name, i, f"took {time.monotonic() - began:.1f} s")
        path.write_bytes(valid)
    return tallies


def _fail(tally: Tally, name: str, number: int, why: str) -> None:
    tally.failures.append(why)
    if len(tally.failures) <= 3:
        print(f"{name}, input {number}: {why}", file=sys.stderr, flush=True)


def _limit_memory() -> None:
    """No input may need more than LARGEST bytes, where the system can limit a process."""
    try:
        import resource

        import psutil
    except ImportError:
        return
    used = psutil.Process().memory_info().vms
    resource.setrlimit(resource.RLIMIT_AS, (used + LARGEST, resource.getrlimit(resource.RLIMIT_AS)[1]))


def main() -> None:
    """Print a table of all readers; exit code 1 if there was a failure."""
    import tempfile

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--inputs", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--reader", action="append", help="only this reader; repeatable")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        tallies = run(given.inputs, given.seed, Path(folder), given.reader)
    print("| file | inputs | refused in one line | read | failures | slowest (s) |\n|---|---|---|---|---|---|")
    for name, one in tallies.items():
        print(f"| {name} | {one.inputs} | {one.refused} | {one.read} | {len(one.failures)} | {one.slowest:.2f} |")
    print(f"| all | {sum(one.inputs for one in tallies.values())} | {sum(one.refused for one in tallies.values())} | "
          f"{sum(one.read for one in tallies.values())} | {sum(len(one.failures) for one in tallies.values())} | "
          f"{max(one.slowest for one in tallies.values()):.2f} |")
    sys.exit(any(one.failures for one in tallies.values()))


if __name__ == "__main__":
    main()
