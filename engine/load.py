"""`load` makes a Model of a checkpoint, `from_transformers` of a transformers model in memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from foredraft import embedded
from foredraft.engine.arguments import checkpoint_settings, settings_of
from foredraft.engine.generate import Model
from foredraft.engine.models.hub import find_adapter, find_checkpoint
from foredraft.engine.models.t5 import T5
from foredraft.engine.models.t5_weights import copy_weights, fastest_dtype, load_weights
from foredraft.engine.models.tokenizer import adopt_tokenizer, load_tokenizer
from foredraft.engine.models.unknown_names import unknown_entries
from foredraft.engine.protocols import Drafter
from foredraft.engine.runtime.ownership import check_process
from foredraft.engine.transformers_model import TransformersModel
from foredraft.errors import UserError


def load(path: str | Path | None = None, drafter: str | Path | Drafter | None = "lookup", device: str = "cpu",
         dtype: str = "float32", weights: str | None = None, *, adapter: str | Path | None = None,
         revision: str | None = None, token: str | None = None) -> Model:
    """Load a T5 checkpoint and a drafter.

    Parameters
    ----------
    path : str, Path or None
        A checkpoint's folder or Hugging Face name; None is the embedded model.
    drafter : str, Path, Drafter or None
        "lookup", "ngram" (the embedded table), "ngram:TABLE", "lookup+ngram", "lstm" (embedded), the folder of a trained
        drafter, "self:SKIP" (the target without some layers), "tree:SHAPE:NAME", "cascade:A,B", "staged:A,FOLDER", "auto"
        (chosen while decoding), None for plain decoding, or an object with the methods of `Drafter`.
    device : str
        "cpu", or "cuda" or "cuda:N" (compute capability 8.0 or more).
    dtype : str
        Of the encoder: "float32", "bfloat16", on the CPU also "int8" and "auto". "auto" is bfloat16 where the processor
        multiplies it, else int8 with quantised `weights`, else float32. The embedding is bfloat16 or float32.
    weights : str or None
        Storage of the decoder's matrices: "fp32", "bf16", "int8" or "int4"; None is as the checkpoint holds them. Products
        are added in float32, those of int8 and int4 exactly.
    adapter : str, Path or None
        A LoRA adapter's folder or Hugging Face name, in PEFT's format; it is merged into the weights.
    revision : str or None
        A branch, tag or commit of the checkpoint on the hub.
    token : str or None
        An access token of the hub; None is that of the login.

    Returns
    -------
    Model

    Raises
    ------
    UserError
        No such checkpoint, adapter, drafter or device.
    """
    check_process()
    check_device(device)
    folder = find_checkpoint(embedded.TARGET if path is None else path, revision, token)
    merged = None if adapter is None else find_adapter(adapter, token)
    if device == "cpu":
        dtype = fastest_dtype(weights) if dtype == "auto" else dtype
        target = T5(load_weights(folder, dtype, weights, merged))
    else:
        from foredraft.engine.models.t5_cuda import T5Cuda
        from foredraft.engine.models.t5_cuda_weights import load_cuda_weights

        target = T5Cuda(load_cuda_weights(folder, device, dtype, weights, merged))
    settings, warnings = checkpoint_settings(folder)
    warnings += unknown_entries(folder)
    return Model(target, load_tokenizer(folder), drafter, folder, dtype, settings=settings, warnings=warnings)


def from_transformers(model: Any, tokenizer: Any = None, drafter: str | Path | Drafter | None = "lookup",
                      dtype: str = "float32", weights: str | None = None) -> TransformersModel:
    """Decode with the weights of a transformers model in memory, on its device.

    The model's embedding and those matrices of its encoder that the engine stores as transformers does (the output
    projections of attention and feed-forward, and `wi` where there is no gate) are shared on the CPU, if they have `dtype`.
    Everything else is copied: the decoder's matrices and the head are packed for the kernels, and queries, keys and values
    are joined. On CUDA all weights are copied. If an optimizer changes the weights later, the next `generate` with tensors
    takes the new ones over.

    Parameters
    ----------
    model : transformers.T5ForConditionalGeneration
        Or MT5ForConditionalGeneration or UMT5ForConditionalGeneration. Settings that `generate` does not get are taken from
        its generation_config.
    tokenizer : transformers or tokenizers tokenizer, or None
        None: inputs are token ids, and outputs have no texts.
    drafter, dtype, weights
        See `load`.

    Returns
    -------
    TransformersModel
        Its `generate` takes and returns tensors as transformers' does, and texts or lists as Model's.

    Raises
    ------
    UserError
        The model is of another class, or holds an adapter or quantised weights.
    """
    check_process()
    if not hasattr(model, "state_dict") or not hasattr(model, "config"):
        raise UserError(f"the model is of type {type(model).__name__}; give a transformers T5ForConditionalGeneration, or a "
                        "path to foredraft.load")
    device = str(next(model.parameters()).device)
    check_device(device)
    dtype = fastest_dtype(weights) if dtype == "auto" and device == "cpu" else dtype
    path = Path("the model in memory")
    config = getattr(model, "generation_config", None)
    settings, warnings = settings_of({} if config is None else config.to_diff_dict(), path, is_own=False)
    adopted = adopt_tokenizer(tokenizer)

    def remake() -> Model:
        if device == "cpu":
            target = T5(copy_weights(model, dtype, weights, shared=True))
        else:
            from foredraft.engine.models.t5_cuda import T5Cuda
            from foredraft.engine.models.t5_cuda_weights import copy_cuda_weights

            target = T5Cuda(copy_cuda_weights(model, device, dtype, weights))
        return Model(target, adopted, drafter, path, dtype, settings=settings, warnings=warnings)

    return TransformersModel(model, remake)


def check_device(device: str) -> None:
    """UserError unless `device` is "cpu", or a CUDA device that is present and runs the kernels."""
    if device == "cpu":
        return
    kind, _, number = device.partition(":")
    if kind != "cuda" or not (number.isdigit() or device == "cuda"):
        raise UserError(f"device {device!r} is not known; use 'cpu' or 'cuda'")
    if not torch.cuda.is_available():
        raise UserError(f"device {device!r}: no CUDA device is present here; use device 'cpu'")
    if int(number or 0) >= torch.cuda.device_count():
        raise UserError(f"device {device!r}: the number of devices is {torch.cuda.device_count()}; count from cuda:0")
    from foredraft.kernels.core.backend_triton import HAS_TRITON

    if not HAS_TRITON:
        raise UserError(f"device {device!r} needs triton: pip install triton")
    major, minor = torch.cuda.get_device_capability(device)
    if torch.version.hip is None and major < 8:
        raise UserError(f"device {device!r}: compute capability {major}.{minor} has no bfloat16 tensor cores; 8.0 or more "
                        "is needed, use device 'cpu'")
