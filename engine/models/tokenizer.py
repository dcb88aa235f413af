"""The tokenizer of a checkpoint directory."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from foredraft.errors import UserError

if TYPE_CHECKING:
    from tokenizers import Tokenizer


def load_tokenizer(path: Path) -> Tokenizer | None:
    """Read the tokenizer of a checkpoint directory.

    Parameters
    ----------
    path : Path
        A directory with tokenizer.json or spiece.model.

    Returns
    -------
    tokenizers.Tokenizer or None
        Without truncation and padding; None where the directory has neither file.

    Raises
    ------
    UserError
        tokenizer.json cannot be read.
    """
    from tokenizers import Tokenizer

    if (path / "tokenizer.json").exists():
        try:
            tokenizer = Tokenizer.from_file(str(path / "tokenizer.json"))
        except Exception as error:  # the library raises bare Exception
            raise UserError(f"{path / 'tokenizer.json'}: not a readable tokenizer ({error}); copy it again") from None
        tokenizer.no_truncation()
        tokenizer.no_padding()
        return tokenizer
    if (path / "spiece.model").exists():
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(path, use_fast=True).backend_tokenizer
    return None
