"""A disk cache of the target's encoder outputs for a set of articles, computed once for all runs.

A memory-mapped float16 array [sum S_i, C]; the outputs of a normalised layer are far from float16's limits.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from foredraft.atomic_write import atomic_path
from foredraft.errors import UserError


class EncodedSources:
    """The encoder outputs of the articles that the file at `path` was made for; width is C."""

    def __init__(self, path: Path, starts: np.ndarray, width: int):
        self.starts = starts
        self.states = np.memmap(path, np.float16, "r", shape=(int(starts[-1]), width))

    def batch(self, articles: list[int], longest: int) -> torch.Tensor:
        """[B, longest, C] float32 of some articles, zeros past the end of each source."""
        out = torch.zeros(len(articles), longest, self.states.shape[1])
        for padded, i in zip(out, articles, strict=True):
            part = self.states[self.starts[i] : self.starts[i + 1]]
            padded[: len(part)] = torch.from_numpy(part.astype(np.float32))
        return out


def encode_sources(folder: str | Path, target, target_hash: str, sources: list[np.ndarray],
                   progress: bool = True) -> EncodedSources:
    """Open the cache of these sources [S_i] in `folder`, or compute it with the engine's T5 `target`.

    UserError: the disk has too little space.
    """
    folder = Path(folder)
    starts = np.concatenate(([0], np.cumsum([len(source) for source in sources]))).astype(np.int64)
    digest = hashlib.sha256(target_hash.encode() + starts.tobytes())
    for source in sources:
        digest.update(source.tobytes())
    path, width = folder / f"encoded-{digest.hexdigest()[:16]}.f16", target.config.d_model
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        needed, free = int(starts[-1]) * width * 2, os.statvfs(folder).f_bavail * os.statvfs(folder).f_frsize
        if needed > free:
            raise UserError(f"{folder}: no space for {needed / 1e9:.1f} GB of encoder outputs ({free / 1e9:.1f} GB are "
                            "free); give another --cache, or --no-encoder-cache")
        with atomic_path(path) as partial:
            states = np.memmap(partial, np.float16, "w+", shape=(int(starts[-1]), width))
            with torch.inference_mode():
                for i, source in enumerate(tqdm(sources, "encoding", unit="", disable=not progress)):
                    states[starts[i] : starts[i + 1]] = target.encode(torch.from_numpy(source.astype(np.int64))).numpy()
            states.flush()
            del states
    return EncodedSources(path, starts, width)
