"""`foredraft compact`"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from foredraft.errors import UserError


def compact(
    ckpt_path: Annotated[Path, typer.Option("--ckpt-path", "--ckpt_path", help="A trained drafter's folder.")],
    out: Annotated[Path, typer.Option(help="Folder of the small one.")],
    pseudo_dataset_path: Annotated[
        list[Path] | None,
        typer.Option("--pseudo-dataset-path", "--pseudo_dataset_path", help="Summaries whose ids are counted."),
    ] = None,
    data: Annotated[Path | None, typer.Option(help="Pair file, where there are no pseudo-datasets.")] = None,
    target: Annotated[Path | None, typer.Option(help="Folder of the target; default: embedded.")] = None,
    draft_vocab: Annotated[
        int, typer.Option("--draft-vocab", "--draft_vocab", min=0, help="Most frequent ids that are drafted; 0: all.")
    ] = 1024,
    dtype: Annotated[str, typer.Option(help="Of the weights: bfloat16 or float32.")] = "bfloat16",
    limit: Annotated[int | None, typer.Option(min=1, help="The first articles only.")] = None,
) -> None:
    """Make a trained drafter small and fast: fewer ids in its head (those of the source are always drafted), bfloat16."""
    from foredraft import embedded
    from foredraft.engine.models.checkpoint import find_checkpoint
    from foredraft.engine.models.t5_weights import DTYPES, ModelConfig, load_tokenizer
    from foredraft.train.data.drafter_data import Articles, read_drafter_data
    from foredraft.train.drafter.compact import compact_drafter

    if dtype not in DTYPES:
        raise UserError(f"--dtype {dtype} is not known; use {' or '.join(DTYPES)}")
    folder = find_checkpoint(target or embedded.TARGET)
    articles = Articles([], [], [], [])
    if draft_vocab:
        longest = ModelConfig.from_json(folder / "config.json").source_limit or 512
        articles = read_drafter_data(data, pseudo_dataset_path, load_tokenizer(folder), longest, 128, limit)
    compact_drafter(ckpt_path, folder, out, articles, draft_vocab, DTYPES[dtype])
    size = sum(file.stat().st_size for file in out.iterdir())
    print(json.dumps({"out": str(out), "draft_vocab": draft_vocab, "dtype": dtype, "bytes": size}))
