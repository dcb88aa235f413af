"""`foredraft bench compiled`: what the kernels of a round take of a GPU, without one."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import typer

from foredraft.errors import UserError


def compiled(
    geometry: Annotated[str, typer.Option(help="Sizes of t5-small, flan-t5-small, -base, -large or -xl.")] = "flan-t5-xl",
    machines: Annotated[str, typer.Option(help="sm_80, sm_90, gfx942, with commas.")] = "sm_80,sm_90,gfx942",
    batch_size: Annotated[int, typer.Option(min=1, help="Rows decoded together.")] = 8,
    draft_tokens: Annotated[int, typer.Option(min=0, help="Tokens drafted a round (K).")] = 5,
    drafter: Annotated[str, typer.Option(help="none, lookup, ngram, lookup+ngram, t5shallow, lstm, cnn, or tree: a "
                                          "drafter of one's own that proposes trees.")] = "lookup",
    sampled: Annotated[bool, typer.Option("--sampled", help="At temperature 1, with top-k.")] = False,
    weights: Annotated[str, typer.Option(help="The decoder's: fp32 or bf16.")] = "bf16",
    only: Annotated[str, typer.Option(help="Kernels whose name holds this; default: all.")] = "",
) -> None:
    """Compile every kernel of a round for machines that are not here. The last line is JSON."""
    from foredraft.bench.gpu.compiled_kernels import LIMITS, fits, measure, round_of
    from foredraft.bench.gpu.roofline import Round
    from foredraft.kernels.core.backend import HAS_TRITON, is_interpreted
    from foredraft.kernels.core.triton_compile import table

    names = machines.split(",")
    if unknown := [name for name in names if name not in LIMITS]:
        raise UserError(f"--machines: {unknown[0]!r} is not known; choose from {', '.join(LIMITS)}")
    if weights not in ("fp32", "bf16"):
        raise UserError(f"--weights {weights!r} is not for a GPU; one of fp32, bf16")
    if not HAS_TRITON or is_interpreted():
        raise UserError("bench compiled needs triton's compiler: pip install triton, and leave TRITON_INTERPRET unset")
    run = round_of(geometry, Round(batch_size, draft_tokens, position=128, sampled=sampled, cuts=sampled, drafter=drafter),
                   weights)
    found = list(measure(run, names, only))
    print(table(found))
    for cost in found:
        if not fits(cost):
            print(f"does not fit: {cost.kernel} on {cost.target}")
    print(json.dumps({"compiled": [asdict(cost) | {"fits": fits(cost)} for cost in found]}))
