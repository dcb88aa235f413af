"""`load`: a checkpoint and a drafter become a Model."""

from __future__ import annotations

from pathlib import Path

import torch

from foredraft import embedded
from foredraft.engine.arguments import checkpoint_settings
from foredraft.engine.generate import Model
from foredraft.engine.models.checkpoint import find_checkpoint
from foredraft.engine.models.t5 import T5
from foredraft.engine.models.t5_cuda import T5Cuda
from foredraft.engine.models.t5_cuda_weights import load_cuda_weights
from foredraft.engine.models.t5_weights import load_weights
from foredraft.engine.models.tokenizer import load_tokenizer
from foredraft.engine.models.unread import unread_entries
from foredraft.engine.protocols import Drafter
from foredraft.engine.runtime.ownership import check_process
from foredraft.errors import UserError
from foredraft.kernels.core.backend import HAS_TRITON


def load(path: str | Path | None = None, drafter: str | Path | Drafter | None = "lookup", device: str = "cpu",
         dtype: str = "float32", weights: str | None = None) -> Model:
    """Load a T5 checkpoint and a drafter.

    Parameters
    ----------
    path : str, Path or None
        A checkpoint's folder or Hugging Face name; None is the embedded model.
    drafter : str, Path, Drafter or None
        "lookup", "ngram" (the embedded table), "ngram:TABLE", "lookup+ngram", "lstm" (embedded), the folder of a trained
        drafter, "self:SKIP" (the target without some layers), "tree:SHAPE:NAME", "cascade:A,B", "staged:A,FOLDER", "auto"
        (chosen by what is decoded), None for plain decoding, or an object with the methods of `Drafter`.
    device : str
        "cpu", or "cuda" or "cuda:N" (compute capability 8.0 or more).
    dtype : str
        Of the embedding and the encoder: "float32" or "bfloat16".
    weights : str or None
        Storage of the decoder's matrices: "fp32", "bf16" or "int8"; None is as the checkpoint holds them. Sums are float32.

    Returns
    -------
    Model

    Raises
    ------
    UserError
        No such checkpoint, drafter or device.
    """
    check_process()
    check_device(device)
    folder = find_checkpoint(embedded.TARGET if path is None else path)
    if device == "cpu":
        target = T5(load_weights(folder, dtype, weights))
    else:
        target = T5Cuda(load_cuda_weights(folder, device, dtype, weights))
    settings, warnings = checkpoint_settings(folder)
    warnings += unread_entries(folder)
    return Model(target, load_tokenizer(folder), drafter, folder, dtype, settings=settings, warnings=warnings)


def check_device(device: str) -> None:
    """UserError unless `device` is "cpu", or "cuda" or "cuda:N" and there, with what our kernels need."""
    if device == "cpu":
        return
    kind, _, number = device.partition(":")
    if kind != "cuda" or not (number.isdigit() or device == "cuda"):
        raise UserError(f"device {device!r} is not known; use 'cpu' or 'cuda'")
    if not torch.cuda.is_available():
        raise UserError(f"device {device!r}: no CUDA device is present here; use device 'cpu'")
    if int(number or 0) >= torch.cuda.device_count():
        raise UserError(f"device {device!r}: there are {torch.cuda.device_count()}; count from cuda:0")
    if not HAS_TRITON:
        raise UserError(f"device {device!r} needs triton: pip install triton")
    major, minor = torch.cuda.get_device_capability(device)
    if torch.version.hip is None and major < 8:
        raise UserError(f"device {device!r}: compute capability {major}.{minor} has no bfloat16 tensor cores; 8.0 or more "
                        "is needed, use device 'cpu'")
