"""The lowest versions that pyproject.toml names, as requirements for pip: `python -m tests.oldest [EXTRA ...]`."""

from __future__ import annotations

import argparse
import tomllib
from pathlib import Path

from packaging.requirements import Requirement


def lowest(line: str) -> str:
    """A requirement with its lower bound as the version; without a lower bound, the requirement itself."""
    wanted = Requirement(line)
    bounds = [one.version for one in wanted.specifier if one.operator == ">="]
    if not bounds:
        return line
    extras = f"[{','.join(sorted(wanted.extras))}]" if wanted.extras else ""
    marker = f"; {wanted.marker}" if wanted.marker else ""
    return f"{wanted.name}{extras}=={bounds[0]}{marker}"


def main() -> None:
    """Print a requirement a line, without foredraft's own extras."""
    project = tomllib.loads((Path(__file__).resolve().parent.parent / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("extras", nargs="*", metavar="EXTRA", help=f"one of {', '.join(extras)}")
    given = parser.parse_args().extras
    if unknown := [name for name in given if name not in extras]:
        parser.error(f"extra {unknown[0]!r} is unknown; choose from {', '.join(extras)}")
    lines = [*project["dependencies"], *(line for name in given for line in extras[name])]
    print(*sorted({lowest(line) for line in lines if Requirement(line).name != project["name"]}), sep="\n")


if __name__ == "__main__":
    main()
