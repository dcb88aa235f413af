"""Export of a target: the files that transformers and the engine load."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import torch
from tokenizers import Tokenizer, normalizers
from transformers import T5ForConditionalGeneration

from foredraft.errors import UserError


def read_tokenizer(path: str | Path, lowercase: bool = False) -> Tokenizer:
    """The tokenizer.json at `path` (the file or its folder), which lower-cases its input if `lowercase`."""
    path = Path(path)
    path = path / "tokenizer.json" if path.is_dir() else path
    if not path.is_file():
        raise UserError(f"{path}: no such tokenizer; give a tokenizer.json with --tokenizer")
    tokenizer = Tokenizer.from_file(str(path))
    if lowercase:
        tokenizer.normalizer = normalizers.Lowercase()
    return tokenizer


def export_target(model, tokenizer: Tokenizer, out: str | Path, dtype: torch.dtype = torch.bfloat16) -> None:
    """Write weights (safetensors), configurations and tokenizer in transformers' formats, each file atomically."""
    out = Path(out)
    partial = out / ".export"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    exported = T5ForConditionalGeneration(model.config)
    exported.load_state_dict(model.state_dict())
    exported.to(dtype).save_pretrained(partial)
    tokenizer.save(str(partial / "tokenizer.json"), pretty=False)
    names = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "pad_token": "<pad>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
    }
    names["model_max_length"] = model.config.n_positions
    (partial / "tokenizer_config.json").write_text(json.dumps(names, indent=2) + "\n", encoding="utf-8")
    for path in partial.iterdir():
        os.replace(path, out / path.name)
    partial.rmdir()
