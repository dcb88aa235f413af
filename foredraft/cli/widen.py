"""`foredraft widen`: writes a target in the sizes of a larger model."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from foredraft.cli import options
from foredraft.cli.output import interrupted, print_figures, progress
from foredraft.engine.models.geometry import SIZES
from foredraft.outputs import check_folder


def widen(
    geometry: Annotated[str, typer.Option(help=f"Sizes of the new checkpoint: {', '.join(SIZES)}.")],
    out: Annotated[Path, typer.Option(help="Folder of the new checkpoint.")],
    target: options.Target = None,
    revision: options.Revision = None,
    dtype: Annotated[
        str, typer.Option(help="Type of the weights: float32, or bfloat16, which rounds them.")] = "float32",
    seed: Annotated[int, typer.Option(help="Seed of the rotations and of the weights without effect.")] = 0,
    as_json: options.Json = False,
) -> None:
    """Write a checkpoint with the cost of a larger model and the function of the target, to measure with.

    Drafters that were trained for the target work with it. After an interruption the same command goes on.
    """
    from foredraft import embedded
    from foredraft.engine.models.hub import find_checkpoint
    from foredraft.engine.models.widened_checkpoint import widen_checkpoint
    from foredraft.memory import peak_resident_bytes

    folder = find_checkpoint(embedded.TARGET if target is None else target, revision)
    check_folder(out, [folder])
    start = time.monotonic()
    with progress() as bar:
        task = bar.add_task("widening", total=None)
        try:
            figures = widen_checkpoint(folder, out, geometry, dtype, seed,
                                       lambda done, total: bar.update(task, completed=done, total=total))
        except KeyboardInterrupt:
            interrupted("the same command goes on")
    figures = {"out": str(out)} | figures | {"seconds": round(time.monotonic() - start, 1)}
    if (peak := peak_resident_bytes()) is not None:
        figures["peak_memory_gb"] = round(peak / 1e9, 2)
    print_figures(figures, as_json)
