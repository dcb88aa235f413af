"""Sizes of the published checkpoints, from their config.json."""

from __future__ import annotations


def _sizes(d_model: int, d_ff: int, layers: int, heads: int) -> dict[str, int]:
    return {"d_model": d_model, "d_kv": 64, "d_ff": d_ff, "num_layers": layers, "num_decoder_layers": layers,
            "num_heads": heads}


SIZES = {
    "t5-small": _sizes(512, 2048, 6, 8),
    "flan-t5-small": _sizes(512, 1024, 8, 6),
    "flan-t5-base": _sizes(768, 2048, 12, 12),
    "flan-t5-large": _sizes(1024, 2816, 24, 16),
    "flan-t5-xl": _sizes(2048, 5120, 24, 32),
}
