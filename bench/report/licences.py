"""The licences of what foredraft depends on, as a Markdown table: `python -m foredraft.bench.report.licences [EXTRA ...]`.

Read from the metadata of the installed distributions: foredraft's requirements and theirs, without extras unless named.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from importlib.metadata import Distribution, PackageNotFoundError, distribution

# licence classifiers that say no more than their last part
_PREFIX = "License :: OSI Approved :: "


def requirements(found: Distribution, extras: tuple[str, ...]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """(name, extras) of the distributions that one needs on this machine."""
    from packaging.requirements import Requirement

    for line in found.requires or ():
        needed = Requirement(line)
        if needed.marker is None or any(needed.marker.evaluate({"extra": extra}) for extra in ("", *extras)):
            yield needed.name, tuple(needed.extras)


def dependencies(extras: tuple[str, ...] = ()) -> dict[str, Distribution]:
    """Every distribution that foredraft needs, directly or not, by its normal name."""
    found: dict[str, Distribution] = {}
    waiting = list(requirements(distribution("foredraft"), extras))
    while waiting:
        name, own = waiting.pop()
        normal = re.sub(r"[-_.]+", "-", name).lower()
        if normal in found or normal == "foredraft":
            continue
        try:
            found[normal] = distribution(name)
        except PackageNotFoundError:
            continue
        waiting += requirements(found[normal], own)
    return dict(sorted(found.items()))


def licence(found: Distribution) -> str:
    """The licence that a distribution's metadata names, in a few words."""
    data = found.metadata
    if expression := data.get("License-Expression"):
        return expression
    classified = [entry.removeprefix(_PREFIX).removeprefix("License :: ") for entry in data.get_all("Classifier") or []
                  if entry.startswith("License :: ") and entry != "License :: OSI Approved"]
    # an old field may hold the whole text
    stated = (data.get("License") or "").strip().splitlines()
    return "; ".join(classified) or (stated[0][:60] if stated else "not stated")


def table(extras: tuple[str, ...] = ()) -> str:
    """A line for each dependency."""
    lines = ["| distribution | version | licence |", "|---|---|---|"]
    lines += [f"| {name} | {found.version} | {licence(found)} |" for name, found in dependencies(extras).items()]
    return "\n".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("extras", nargs="*", help="names of extras")
    print(table(tuple(parser.parse_args().extras)))
