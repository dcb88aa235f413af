"""The target as a teacher: a torch module without gradients, or a disk cache of its largest logits."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import T5ForConditionalGeneration

from foredraft.errors import UserError
from foredraft.train.data.drafter_data import pad_sequences
from foredraft.train.data.pairs import IGNORE
from foredraft.train.trainer import fuse_gelu


class Teacher:
    """A T5 checkpoint as transformers loads it, in eval mode.

    Parameters
    ----------
    folder
        The checkpoint.
    device, dtype
        Of the weights.
    """

    def __init__(self, folder: str | Path, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32):
        self.model = T5ForConditionalGeneration.from_pretrained(folder, dtype=dtype).eval().requires_grad_(False).to(device)
        fuse_gelu(self.model)
        config = self.model.config
        self.scale = config.d_model**-0.5 if config.scale_decoder_outputs else 1.0

    @torch.no_grad()
    def encode(self, source_ids: Tensor, source_mask: Tensor) -> Tensor:
        """The encoder's output [B, S, C] float32 for source_ids and source_mask [B, S]."""
        return self.model.encoder(input_ids=source_ids, attention_mask=source_mask).last_hidden_state.float()

    @torch.no_grad()
    def hidden(self, input_ids: Tensor, encoder_output: Tensor, source_mask: Tensor) -> Tensor:
        """The decoder's output [B, T, C] after its final norm, for input_ids [B, T]."""
        return self.model.decoder(
            input_ids=input_ids, encoder_hidden_states=encoder_output.to(self.model.dtype),
            encoder_attention_mask=source_mask, use_cache=False).last_hidden_state

    @torch.no_grad()
    def score(self, hidden: Tensor) -> Tensor:
        """Logits [N, V] of hidden [N, C]."""
        return self.model.lm_head(hidden * self.scale)

    def logits(self, input_ids: Tensor, encoder_output: Tensor, source_mask: Tensor, scored: Tensor) -> Tensor:
        """Logits [N, V] at the N positions where scored [B, T] is true, sequence after sequence."""
        return self.score(self.hidden(input_ids, encoder_output, source_mask)[scored])


class TopLogits:
    """The teacher's k most probable tokens at every position of some summaries, for training without the teacher.

    Attributes
    ----------
    ids
        [sum T_i, k] int32, the tokens.
    log_p
        [sum T_i, k] float16, log-probabilities over the whole vocabulary, so that the mass of the other tokens is known.
    """

    def __init__(self, folder: Path, starts: np.ndarray, k: int):
        shape = (int(starts[-1]), k)
        self.starts = starts
        self.ids = np.memmap(folder / "ids.i32", np.int32, "r", shape=shape)
        self.log_p = np.memmap(folder / "log_p.f16", np.float16, "r", shape=shape)

    def batch(self, summaries: list[int]) -> tuple[Tensor, Tensor]:
        """(tokens [N, k] int64, log_p [N, k] float32) of some summaries, one after the other."""
        parts = [slice(self.starts[i], self.starts[i + 1]) for i in summaries]
        ids = np.concatenate([self.ids[part] for part in parts]).astype(np.int64)
        log_p = np.concatenate([self.log_p[part] for part in parts]).astype(np.float32)
        return torch.from_numpy(ids), torch.from_numpy(log_p)


def cache_top_logits(folder: str | Path, teacher: Teacher | None, target_hash: str, sources: list[np.ndarray],
                    summaries: list[np.ndarray], k: int, temperature: float, start_token: int = 0,
                    batch_size: int = 16) -> TopLogits:
    """Open the cache of these summaries in `folder`, or compute it.

    Parameters
    ----------
    folder
        Folder of all caches.
    teacher
        None if the cache must exist.
    target_hash
        Hash of the teacher's weights.
    sources, summaries
        [n] of [S_i] and [T_i], tokens.
    k, temperature
        Number of tokens at each position, and the temperature of their log-probabilities.
    start_token
        First input of the decoder.
    batch_size
        Summaries of a pass.

    Returns
    -------
    TopLogits

    Raises
    ------
    UserError
        There is neither a cache nor a teacher.
    """
    digest = hashlib.sha256(json.dumps([target_hash, k, temperature]).encode())
    for sequence in (*sources, *summaries):
        digest.update(sequence.tobytes() + b"|")
    kept = Path(folder) / f"top{k}-{digest.hexdigest()[:16]}"
    starts = np.concatenate(([0], np.cumsum([len(summary) for summary in summaries]))).astype(np.int64)
    if not kept.is_dir():
        if teacher is None:
            raise UserError(f"{kept}: no such cache of the teacher's logits; create it on a machine with the teacher")
        partial = kept.with_name(f".{kept.name}.{os.getpid()}")
        partial.mkdir(parents=True)
        ids = np.memmap(partial / "ids.i32", np.int32, "w+", shape=(int(starts[-1]), k))
        log_p = np.memmap(partial / "log_p.f16", np.float16, "w+", shape=(int(starts[-1]), k))
        device = teacher.model.device
        for first in range(0, len(summaries), batch_size):
            part = slice(first, first + batch_size)
            source_ids, source_labels = pad_sequences(sources[part], start_token)
            mask = (source_labels != IGNORE).long()
            source_ids = source_labels.masked_fill(source_labels == IGNORE, 0)
            input_ids, labels = pad_sequences(summaries[part], start_token)
            encoded = teacher.encode(source_ids.to(device), mask.to(device))
            logits = teacher.logits(input_ids.to(device), encoded, mask.to(device), (labels != IGNORE).to(device))
            top = torch.log_softmax(logits.float() / temperature, -1).topk(k)
            positions = slice(starts[first], starts[min(first + batch_size, len(summaries))])
            ids[positions], log_p[positions] = top.indices.cpu().numpy(), top.values.cpu().numpy()
        ids.flush()
        log_p.flush()
        del ids, log_p
        os.replace(partial, kept)
    return TopLogits(kept, starts, k)
