"""`foredraft convert`: writes a checkpoint as safetensors."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from foredraft.cli import options
from foredraft.cli.output import print_figures, progress
from foredraft.errors import UserError
from foredraft.outputs import check_folder

# what a conversion locks in its folder
CONVERSION = "conversion"


def convert(
    checkpoint: Annotated[str, typer.Argument(help="T5 checkpoint: folder or Hugging Face name.")],
    out: Annotated[Path, typer.Option(help="Folder of the new checkpoint.")],
    dtype: Annotated[
        str | None, typer.Option(help="Type of the weights: float32, float16 or bfloat16. Default: unchanged.")] = None,
    adapter: options.Adapter = None,
    revision: options.Revision = None,
    overwrite: options.Overwrite = False,
    as_json: options.Json = False,
) -> None:
    """Write a checkpoint as safetensors: from pytorch_model.bin, in another type, or with an adapter merged.

    Pickled files are read by torch.load with weights_only=True, which runs no code in them.
    """
    from foredraft.engine.models.convert import DTYPES, convert_checkpoint, has_safetensors
    from foredraft.engine.models.hub import find_adapter, find_checkpoint
    from foredraft.output_lock import OutputLock, only_writer

    if dtype not in (None, *DTYPES):
        raise UserError(f"--dtype {dtype} is not known; use {', '.join(DTYPES)}")
    check_folder(out, [checkpoint, adapter])
    # a conversion that was killed or failed leaves its lock behind, and no config.json
    begun = OutputLock(out / CONVERSION).file.exists()
    if any(out.glob("*")) and not begun and not (overwrite and (out / "config.json").exists()):
        raise UserError(f"--out {out}: is not empty; give another --out, or --overwrite if it is a checkpoint to replace")
    folder = find_checkpoint(checkpoint, revision, pickled=True)
    if has_safetensors(folder) and dtype is None and adapter is None:
        raise UserError(f"{checkpoint}: holds safetensors already; use it as it is, or give --dtype or --adapter")
    merged = None if adapter is None else find_adapter(adapter)
    with only_writer(out / CONVERSION, shown=out), progress() as bar:
        task = bar.add_task("converting", total=None)
        figures = convert_checkpoint(folder, out, dtype, merged,
                                     lambda done, total: bar.update(task, completed=done, total=total))
    print_figures({"out": str(out)} | figures, as_json)
