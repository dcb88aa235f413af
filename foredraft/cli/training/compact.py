"""`foredraft compact`: a smaller, faster copy of a trained drafter."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from foredraft.cli import options
from foredraft.cli.output import print_figures
from foredraft.errors import UserError
from foredraft.outputs import check_folder


def compact(
    ckpt_path: Annotated[Path, typer.Option(help="Folder of a trained drafter.")],
    out: Annotated[Path, typer.Option(help="Folder of the compact drafter.")],
    pseudo_dataset_path: options.PseudoDatasetPath = None,
    data: Annotated[Path | None, typer.Option(help="Pairs to count tokens in, if there is no pseudo-dataset.")] = None,
    target: options.Target = None,
    draft_vocab: options.DraftVocab = 1024,
    dtype: Annotated[str, typer.Option(help="Weights: bfloat16 or float32.")] = "bfloat16",
    limit: options.Limit = None,
    overwrite: options.Overwrite = False,
    as_json: options.Json = False,
) -> None:
    """Make a trained drafter smaller and faster: a draft vocabulary besides the source's tokens, and bfloat16 weights."""
    from foredraft import embedded
    from foredraft.engine.drafters.registry import is_drafter
    from foredraft.engine.models.hub import find_checkpoint
    from foredraft.engine.models.spec import ModelConfig
    from foredraft.engine.models.t5_weights import DTYPES
    from foredraft.engine.models.tokenizer import load_tokenizer
    from foredraft.train.data.drafter_data import Articles, read_drafter_data
    from foredraft.train.drafter.compact import compact_drafter

    if dtype not in DTYPES:
        raise UserError(f"--dtype {dtype} is not known; use {' or '.join(DTYPES)}")
    folder = find_checkpoint(target or embedded.TARGET)
    check_folder(out, [ckpt_path, folder, data, *(pseudo_dataset_path or [])])
    if any(out.glob("*")) and not (overwrite and is_drafter(out)):
        raise UserError(f"--out {out}: is not empty; give another --out, or --overwrite if it contains a drafter to replace")
    articles = Articles([], [], [], [])
    if draft_vocab:
        longest = ModelConfig.from_json(folder / "config.json").source_limit or 512
        articles = read_drafter_data(data, pseudo_dataset_path, load_tokenizer(folder), longest, 128, limit)
    compact_drafter(ckpt_path, folder, out, articles, draft_vocab, DTYPES[dtype])
    size = sum(file.stat().st_size for file in out.iterdir())
    print_figures({"out": str(out), "draft_vocab": draft_vocab, "dtype": dtype, "bytes": size}, as_json)
