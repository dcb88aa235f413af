"""`foredraft bench gpu`: what `bash bench/gpu.sh` runs on a GPU machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def gpu(
    out: Annotated[Path, typer.Option(help="Folder for records, one file a section, and "
                                           "gpu.json.")] = Path("bench/results/gpu"),
    sections: Annotated[str | None, typer.Option(help="Sections, separated by commas. Default: all.")] = None,
    drafters: Annotated[
        Path | None, typer.Option(help="Folder of trained drafters' folders. Default: the embedded family's.")] = None,
) -> None:
    """Check and time foredraft on this machine's GPU, within ten minutes. The last line is JSON."""
    from foredraft.bench.gpu.main import check_and_time

    check_and_time(out, sections, drafters)
