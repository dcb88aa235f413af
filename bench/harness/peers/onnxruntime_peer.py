"""ONNX Runtime, int8, on two graphs that this file exports from the checkpoint: the encoder, and a decode step with caches.

Optimum, the usual exporter, wants an older transformers than foredraft.
"""

from __future__ import annotations

import logging
import tempfile
import warnings
from collections.abc import Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor, nn

from foredraft.bench.harness.methods import Absent, load_peer


def heads(x: Tensor, count: int) -> Tensor:
    """[1, T, H * D] as [1, H, T, D]."""
    return x.unflatten(-1, (count, -1)).transpose(1, 2)


class Stack(nn.Module):
    """A stack of transformers' T5: its weights, and the arithmetic of a pass in plain operations."""

    def __init__(self, model: nn.Module, stack: nn.Module):
        super().__init__()
        self.embedding, self.blocks, self.norm = model.shared, stack.block, stack.final_layer_norm
        self.heads = model.config.num_heads

    def attend(self, attention: nn.Module, x: Tensor, keys: Tensor, values: Tensor, bias: Tensor | float) -> Tensor:
        scores = heads(attention.q(x), self.heads) @ keys.transpose(-1, -2) + bias
        return attention.o((scores.softmax(-1) @ values).transpose(1, 2).flatten(-2))


class Encode(Stack):
    """Tokens [1, S] and the relative bias [1, H, S, S] to the keys and values of every cross-attention, [1, H, S, D]."""

    def __init__(self, model: nn.Module):
        super().__init__(model, model.encoder)
        self.cross = nn.ModuleList(block.layer[1].EncDecAttention for block in model.decoder.block)

    def forward(self, tokens: Tensor, bias: Tensor) -> list[Tensor]:
        x = self.embedding(tokens)
        for block in self.blocks:
            attention, inputs = block.layer[0].SelfAttention, block.layer[0].layer_norm(x)
            keys, values = (heads(part(inputs), self.heads) for part in (attention.k, attention.v))
            x = block.layer[1](x + self.attend(attention, inputs, keys, values, bias))
        x = self.norm(x)
        return [heads(part(x), self.heads) for layer in self.cross for part in (layer.k, layer.v)]


class Step(Stack):
    """One token [1, 1], its relative bias [1, H, 1, T + 1] and all caches to the next token and the longer self caches."""

    def __init__(self, model: nn.Module):
        super().__init__(model, model.decoder)
        self.head = model.lm_head

    def forward(self, token: Tensor, bias: Tensor, *caches: Tensor) -> list[Tensor]:
        x, grown = self.embedding(token), []
        past, cross = caches[: len(caches) // 2], caches[len(caches) // 2 :]
        for i, block in enumerate(self.blocks):
            attention, inputs = block.layer[0].SelfAttention, block.layer[0].layer_norm(x)
            new = (heads(part(inputs), self.heads) for part in (attention.k, attention.v))
            grown += [torch.cat(pair, 2) for pair in zip(past[2 * i : 2 * i + 2], new, strict=True)]
            x = x + self.attend(attention, inputs, *grown[-2:], bias)
            inputs = block.layer[1].layer_norm(x)
            x = x + self.attend(block.layer[1].EncDecAttention, inputs, *cross[2 * i : 2 * i + 2], 0.0)
            x = block.layer[2](x)
        return [self.head(self.norm(x)).argmax(-1), *grown]


def names_of(layers: int, of: str) -> list[str]:
    return [f"{of}_{part}_{i}" for i in range(layers) for part in ("keys", "values")]


@contextmanager
def silence():
    """No warnings: the exporter is deprecated, and the quantisation recommends another tool."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(logging.NOTSET)


def library():
    """The module onnxruntime. Absent."""
    try:
        import onnx  # noqa: F401  its quantisation needs it
        import onnxruntime
        import onnxruntime.quantization
    except ImportError as error:
        raise Absent(f"{error.name} is not installed; pip install 'foredraft[onnxruntime]'") from None
    return onnxruntime


@lru_cache(maxsize=2)
def exported(folder: Path) -> tempfile.TemporaryDirectory:
    """A folder with encode.onnx and step.onnx, their matrices in int8; it goes when the process does."""
    quantization = library().quantization
    model = load_peer(str(folder), "float32", "cpu")
    layers, H, D = model.config.num_decoder_layers, model.config.num_heads, model.config.d_kv
    past, cross, grown = (names_of(layers, of) for of in ("past", "cross", "grown"))
    token, cache = torch.zeros(1, 1, dtype=torch.int64), torch.zeros(1, H, 3, D)
    graphs = {
        "encode": (Encode(model), (token.expand(1, 3), torch.zeros(1, H, 3, 3)), ["tokens", "bias"], cross,
                   {"tokens": {1: "S"}, "bias": {2: "S", 3: "S"}}),
        "step": (Step(model), (token, torch.zeros(1, H, 1, 4), *[cache] * (4 * layers)), ["token", "bias", *past, *cross],
                 ["next", *grown],
                 {"bias": {3: "T1"}} | {name: {2: "T"} for name in past} | {name: {2: "S"} for name in cross}),
    }
    kept = tempfile.TemporaryDirectory(prefix="foredraft-onnxruntime-")
    for name, (module, inputs, taken, given, axes) in graphs.items():
        whole = Path(kept.name) / f"{name}-fp32.onnx"
        with silence(), torch.inference_mode():
            torch.onnx.export(module.eval(), inputs, str(whole), input_names=taken, output_names=given, dynamic_axes=axes,
                              opset_version=17, dynamo=False)
            # weights of 7 bits: the kernels for processors without VNNI saturate with 8
            quantization.quantize_dynamic(whole, Path(kept.name) / f"{name}.onnx", per_channel=True, reduce_range=True,
                                          weight_type=quantization.QuantType.QInt8)
        whole.unlink()
    return kept


class Decoder:
    """Greedy decoding of one source at a time by ONNX Runtime, on as many threads as torch uses."""

    def __init__(self, folder: str | Path):
        onnxruntime = library()
        self.files = exported(Path(folder))
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = torch.get_num_threads(), 3
        self.value = onnxruntime.OrtValue.ortvalue_from_numpy
        self.encode, self.step = (
            onnxruntime.InferenceSession(str(Path(self.files.name) / f"{name}.onnx"), options,
                                         providers=["CPUExecutionProvider"]) for name in ("encode", "step"))
        model = load_peer(str(folder), "float32", "cpu")
        self.config = model.config
        self.biases = [stack.block[0].layer[0].SelfAttention for stack in (model.encoder, model.decoder)]

    @torch.inference_mode()
    def __call__(self, source: Sequence[int], tokens: int) -> list[int]:
        """Exactly `tokens` tokens of one source, past any end token."""
        layers, H, D = self.config.num_decoder_layers, self.config.num_heads, self.config.d_kv
        past, cross, grown = (names_of(layers, of) for of in ("past", "cross", "grown"))
        bias, bias_of_steps = (
            layer.compute_bias(length, length).contiguous()
            for layer, length in zip(self.biases, (len(source), tokens), strict=True))
        encoded = self.encode.run_with_ort_values(
            cross, {"tokens": self.value(torch.tensor([list(source)]).numpy()), "bias": self.value(bias.numpy())})
        feeds = dict(zip(cross, encoded, strict=True)) | dict.fromkeys(past, self.value(torch.zeros(1, H, 0, D).numpy()))
        feeds["token"] = self.value(torch.tensor([[self.config.decoder_start_token_id]]).numpy())
        out = []
        for t in range(tokens):
            feeds["bias"] = self.value(bias_of_steps[:, :, t : t + 1, : t + 1].contiguous().numpy())
            feeds["token"], *longer = self.step.run_with_ort_values(["next", *grown], feeds)
            feeds |= zip(past, longer, strict=True)
            out.append(int(feeds["token"].numpy()[0, 0]))
        return out
