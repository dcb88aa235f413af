"""Whether another engine chooses transformers' tokens, near ties aside."""

from pathlib import Path

import numpy as np
import pytest
import torch

from foredraft.bench.harness.geometry import GEOMETRIES, write_checkpoint
from foredraft.bench.harness.methods import load_peer

SOURCE = [5, 9, 300, 17, 44, 1] * 30


def tiny_checkpoint(geometry: str, folder: Path) -> Path:
    """A tiny checkpoint like `geometry`; rows of 48 do not fit blocks of 32, and the decoder is less deep."""
    small = dict(vocab_size=320, d_model=64, d_kv=16, d_ff=48, num_layers=3, num_decoder_layers=2, num_heads=2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(GEOMETRIES, "tiny", GEOMETRIES[geometry] | small)
        return write_checkpoint("tiny", folder)


@torch.inference_mode()
def shortfall(folder: Path, tokens: list[int]) -> np.float32:
    """How far a token's logit is below the best one of transformers at most, in standard deviations of the logits."""
    model = load_peer(str(folder), "float32", "cpu")
    given = dict(input_ids=torch.tensor([SOURCE]), decoder_input_ids=torch.tensor([[0, *tokens[:-1]]]))
    logits = model(**given, use_cache=False).logits[0]
    chosen = logits.gather(1, torch.tensor(tokens)[:, None])[:, 0]
    return ((logits.amax(1) - chosen) / logits.std(1)).max().numpy()
