"""llama.cpp's T5 on the same checkpoint, written as GGUF into a temporary folder; tokens go in and come out, not texts."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np

from foredraft.bench.harness.methods import Absent
from foredraft.engine.models.checkpoint import StoredTensors, read_config
from foredraft.engine.models.spec import ModelConfig, tensor_parts
from foredraft.kernels.model.activation import ACTIVATIONS

# llama.cpp's own constants
MAX_DISTANCE = 128
LOG_ERROR = 4


def libraries():
    """The modules llama_cpp and gguf. Absent."""
    try:
        import gguf
        import llama_cpp
    except ImportError as error:
        raise Absent(f"{error.name} is not installed; pip install 'foredraft[llama-cpp]'") from None
    show_errors_only(llama_cpp)
    return llama_cpp, gguf


@lru_cache(maxsize=1)
def show_errors_only(library):
    """Set the log of llama.cpp to a function, which it calls until it is unloaded; the cache keeps the function."""
    @library.llama_log_callback
    def show(level, text, _data):
        if level == LOG_ERROR:
            sys.stderr.write(text.decode(errors="replace"))

    library.llama_log_set(show, None)
    return show


def check(config: ModelConfig) -> None:
    """Raise Absent for a T5 that llama.cpp does not decode, or decodes with another function."""
    activation = "gelu_new" if config.gated else "relu"
    if ACTIVATIONS[config.activation] != activation or config.max_distance != MAX_DISTANCE:
        raise Absent("llama.cpp decodes T5 with ReLU or gated GELU and a relative_attention_max_distance of "
                     f"{MAX_DISTANCE}; this checkpoint has others")
    if config.num_decoder_layers > config.num_layers:
        raise Absent("llama.cpp decodes no T5 whose decoder has more layers than its encoder")


def write_gguf(folder: Path, file: Path, stored: str) -> None:
    """Write a checkpoint as GGUF, without a tokenizer.

    Every matrix is stored as F16, Q8_0 or Q4_0, the head among them; those whose rows are no multiple of 32 as F16.
    """
    _, gguf = libraries()
    config = read_config(folder)
    check(config)
    writer = gguf.GGUFWriter(file, "t5")
    writer.add_tokenizer_model("none")
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.source_limit or 512)
    writer.add_embedding_length(config.d_model)
    writer.add_feed_forward_length(config.d_ff)
    writer.add_block_count(config.num_layers)
    writer.add_decoder_block_count(config.num_decoder_layers)
    writer.add_head_count(config.num_heads)
    writer.add_key_length(config.d_kv)
    writer.add_value_length(config.d_kv)
    writer.add_layer_norm_rms_eps(config.epsilon)
    writer.add_relative_attn_buckets_count(config.buckets)
    writer.add_decoder_start_token_id(config.start_token)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.T5, max(config.num_layers, config.num_decoder_layers))
    with StoredTensors(folder) as tensors:
        embedding, tied = tensors.tables(config)
        parts = tensor_parts(config, tied, embedding)
        shapes = {name: part.shape for part in parts.values() for layer in part.names for name in layer}
        for name, shape in shapes.items():
            values = tensors.read(name, shape).float().numpy()
            kind = gguf.GGMLQuantizationType[stored if shape[-1] % 32 == 0 else "F16"]
            if len(shape) == 1 or "relative_attention_bias" in name:
                kind = gguf.GGMLQuantizationType.F32
            known = "token_embd.weight" if name == embedding else names.get_name(name, try_suffixes=(".weight",))
            writer.add_tensor(known, gguf.quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@lru_cache(maxsize=4)
def converted(folder: Path, stored: str) -> tempfile.TemporaryDirectory:
    """A folder with the checkpoint as model.gguf; it goes when the process does. Absent."""
    kept = tempfile.TemporaryDirectory(prefix="foredraft-llama-cpp-")
    write_gguf(folder, Path(kept.name) / "model.gguf", stored)
    return kept


class Decoder:
    """Greedy decoding of one source at a time by llama.cpp, on as many threads as torch uses."""

    def __init__(self, folder: str | Path, stored: str):
        self.context = self.model = None
        self.llama, _ = libraries()
        self.config = read_config(Path(folder))
        self.files = converted(Path(folder), stored)
        file = str(Path(self.files.name) / "model.gguf").encode()
        self.model = self.llama.llama_model_load_from_file(file, self.llama.llama_model_default_params())
        if not self.model:
            raise Absent("llama.cpp does not load the checkpoint; its message is above")
        self.length = 0

    def __del__(self):
        self._free_context()
        if self.model:
            self.llama.llama_model_free(self.model)

    def _free_context(self) -> None:
        if self.context:
            self.llama.llama_free(self.context)
        self.context = None

    def _reserve(self, length: int) -> None:
        """Make room for `length` tokens, of the source and of the output: the encoder reads a source in one batch."""
        import torch

        if length <= self.length:
            return
        self._free_context()
        params = self.llama.llama_context_default_params()
        params.n_ctx = params.n_batch = params.n_ubatch = length
        params.n_threads = params.n_threads_batch = torch.get_num_threads()
        self.context = self.llama.llama_init_from_model(self.model, params)
        if not self.context:
            raise RuntimeError("llama.cpp makes no context; its message is above")
        self.length = length

    def _run(self, name: str, tokens: Sequence[int]) -> None:
        array = (self.llama.llama_token * len(tokens))(*tokens)
        status = getattr(self.llama, name)(self.context, self.llama.llama_batch_get_one(array, len(tokens)))
        if status:
            raise RuntimeError(f"{name} returns {status}")

    def __call__(self, source: Sequence[int], tokens: int) -> list[int]:
        """Exactly `tokens` tokens of one source, past any end token."""
        self._reserve(max(len(source), tokens))
        self.llama.llama_memory_clear(self.llama.llama_get_memory(self.context), True)
        self._run("llama_encode", source)
        out = [self.config.start_token]
        for _ in range(tokens):
            self._run("llama_decode", out[-1:])
            logits = self.llama.llama_get_logits_ith(self.context, -1)
            out.append(int(np.ctypeslib.as_array(logits, (self.config.vocab_size,)).argmax()))
        return out[1:]
