"""`foredraft warm-up`: compile the kernels before the first request."""

from __future__ import annotations

from typing import Annotated

import typer

from foredraft.cli import options
from foredraft.cli.output import announce_compilation, notice, progress

TEXT = "the old bridge will close on monday. the council said a free boat would run every day until the old bridge is open."


def warm_up(
    drafter: Annotated[
        list[str] | None, typer.Option(help="Drafters that will be used; repeatable. Default: lookup and auto.")] = None,
    target: options.Target = None,
    weights: options.Weights = None,
) -> None:
    """Compile the kernels that greedy and sampled requests use, alone and in batches."""
    import foredraft
    from foredraft.kernels.core.backend import kept_in
    from foredraft.kernels.core.compilation import compile_seconds, compiled

    announce_compilation()
    names = drafter or ["lookup", "auto"]
    with progress() as bar:
        task = bar.add_task("compiling", total=3 * len(names))
        for name in names:
            model = foredraft.load(target, None if name == "none" else name, weights=weights)
            for inputs, sampling in (([TEXT], {}), ([TEXT, TEXT], {}), ([TEXT], dict(do_sample=True, top_k=50, top_p=0.9))):
                model.generate(inputs, max_new_tokens=16, **sampling)
                bar.advance(task)
    where = kept_in()
    notice(f"{compiled()} kernels compiled in {compile_seconds():.0f} s"
           + (f"; kept in {where}" if where else "; NOT kept, because the cache folder cannot be written"))
