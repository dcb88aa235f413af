"""Model families: what a config.json means, and which checkpoint tensors make up each tensor of the engine.

A family is one `Family` in `FAMILIES`: a function from the entries of a config.json to a `ModelConfig`, and a mapping of
tensor names. The kernels fix the rest: an RMS norm without bias before each sublayer, attention scores that are not scaled,
a relative-position bias (one for all layers of a stack, or one for each layer), no other positions. A family that differs in
one of these needs kernels of its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from foredraft.errors import UserError
from foredraft.json_file import read_object
from foredraft.kernels.model.activation import ACTIVATIONS
from foredraft.kernels.step.end_tokens import MAX_END_TOKENS

# The end token of a model that has none: no token equals it.
NO_END_TOKEN = -1
# The largest sizes that a config.json may state; no model comes near them.
MAX_LAYERS, MAX_SIZE = 1000, 1 << 24


@dataclass(frozen=True)
class ModelConfig:
    """Sizes and variants of one encoder-decoder.

    Attributes
    ----------
    model_type : str
        The key of its family in `FAMILIES`.
    vocab_size, d_model, d_kv, d_ff, num_heads : int
        V, C, D, the inner width of a feed-forward sublayer, and H.
    num_layers, num_decoder_layers : int
        Layers of the encoder, and of the decoder (L).
    buckets, max_distance : int
        Sizes of the relative-position bias (Raffel et al. 2020, section 2.1).
    epsilon : float
        Of the RMS norms.
    activation : int
        Index into `kernels.model.activation.ACTIVATIONS`.
    gated : bool
        Whether a feed-forward sublayer is gated (Shazeer 2020).
    head_scale : float
        Factor of the last hidden state before the language-model head.
    start_token, pad_token : int
    end_tokens : tuple of int
        Tokens that end a text; empty if the model has none.
    source_limit : int or None
        The most source tokens that the checkpoint says it takes.
    """

    model_type: str
    vocab_size: int
    d_model: int
    d_kv: int
    d_ff: int
    num_layers: int
    num_decoder_layers: int
    num_heads: int
    buckets: int
    max_distance: int
    epsilon: float
    activation: int
    gated: bool
    head_scale: float
    start_token: int
    end_tokens: tuple[int, ...]
    pad_token: int
    source_limit: int | None

    @property
    def end_token(self) -> int:
        """The first end token, or `NO_END_TOKEN`."""
        return self.end_tokens[0] if self.end_tokens else NO_END_TOKEN

    @classmethod
    def from_json(cls, path: Path) -> ModelConfig:
        """Read a config.json. UserError: not JSON, another family, or an entry that cannot be honoured."""
        return cls.from_dict(read_object(path, "is this a T5 checkpoint directory?"), path)

    @classmethod
    def from_dict(cls, entries: dict, path: str | Path) -> ModelConfig:
        """Read the entries of a config.json; error messages call them `path`."""
        kind = entries.get("model_type")
        if kind not in FAMILIES:
            other = "an encoder-decoder of another family" if entries.get("is_encoder_decoder") else "no encoder-decoder"
            raise UserError(f"{path}: model_type {kind!r} is {OTHER_FAMILIES.get(kind, other)}; give a T5, T5 v1.1, "
                            "FLAN-T5, mT5, UMT5, ByT5 or CodeT5 checkpoint")
        if method := entries.get("quantization_config"):
            method = method.get("quant_method", "of an unknown method") if isinstance(method, dict) else method
            raise UserError(f"{path}: quantization_config ({method}): quantised weights are not read; give the checkpoint "
                            "in float32, float16 or bfloat16, and weights='int8' to quantise it while it is loaded")
        return FAMILIES[kind].config(entries, path)


@dataclass(frozen=True)
class TensorParts:
    """The checkpoint tensors that make up one tensor of the engine.

    names: for each layer, the tensors that are joined along their first axis. shape: of each of them.
    per_layer: whether the engine's tensor has an axis for layers; without one it has a single name.
    """

    names: tuple[tuple[str, ...], ...]
    shape: tuple[int, ...]
    per_layer: bool = True

    @property
    def full_shape(self) -> tuple[int, ...]:
        """Of the engine's tensor: vectors are stacked, matrices joined."""
        if not self.per_layer:
            return self.shape
        count = len(self.names[0])
        joined = (count, *self.shape) if len(self.shape) == 1 else (count * self.shape[0], *self.shape[1:])
        return (len(self.names), *joined)


@dataclass(frozen=True)
class Family:
    """An encoder-decoder family.

    config: the entries of a config.json, and what messages call them, to a ModelConfig.
    tensors: all tensors but the embedding and the head, by the engine's names (t5_weights.T5Weights).
    embeddings: the names that the embedding has in checkpoints, all of them the same table. head: absent where it is tied.
    unused: tensors that old checkpoints hold and no implementation reads.
    entries: the entries of config.json that `config` reads; another entry causes a warning, unless this set is empty.
    """

    config: Callable[[dict, str | Path], ModelConfig]
    tensors: Callable[[ModelConfig], dict[str, TensorParts]]
    embeddings: tuple[str, ...]
    head: str
    unused: frozenset[str] = frozenset()
    entries: frozenset[str] = frozenset()


def tensor_parts(config: ModelConfig, tied: bool, embedding: str | None = None) -> dict[str, TensorParts]:
    """Every tensor of the engine, by its name.

    Parameters
    ----------
    config : ModelConfig
    tied : bool
        The head is the embedding; both have the same parts.
    embedding : str, optional
        The embedding's name in this checkpoint; by default the family's first.
    """
    family, V, C = FAMILIES[config.model_type], config.vocab_size, config.d_model
    table = TensorParts(((embedding or family.embeddings[0],),), (V, C), False)
    head = table if tied else TensorParts(((family.head,),), (V, C), False)
    return {"embedding": table, "head": head} | family.tensors(config)


def num_parameters(config: ModelConfig, tied: bool) -> int:
    """Distinct weights of a model."""
    return sum(math.prod(parts.full_shape) for name, parts in tensor_parts(config, tied).items()
               if not (tied and name == "head"))


def _t5_config(c: dict, path: str | Path) -> ModelConfig:
    for key in ("vocab_size", "d_model", "d_kv", "d_ff", "num_layers", "num_heads"):
        if key not in c:
            raise UserError(f"{path}: key {key!r} is missing; save the model again with transformers")
    # a decoder over another model's encoder output has no encoder layers
    sizes = {"vocab_size": 1, "d_model": 1, "d_kv": 1, "d_ff": 1, "num_layers": 0, "num_heads": 1, "num_decoder_layers": 0,
             "relative_attention_num_buckets": 1, "relative_attention_max_distance": 1, "decoder_start_token_id": 0,
             "pad_token_id": 0, "n_positions": 1}
    for key, least in sizes.items():
        most = MAX_LAYERS if key.endswith("layers") else MAX_SIZE
        if c.get(key) is not None and not (type(c[key]) is int and least <= c[key] <= most):
            raise UserError(f"{path}: {key} is {c[key]!r}; give a whole number of {least} to {most}")
    epsilon = c.get("layer_norm_epsilon", 1e-6)
    if type(epsilon) not in (int, float) or not 0 <= epsilon < 1:
        raise UserError(f"{path}: layer_norm_epsilon is {epsilon!r}; give a small number, such as 1e-6")
    first, _, last = str(c.get("feed_forward_proj", "relu")).partition("-")
    gated = first == "gated"
    activation = last if gated else first
    activation = "gelu_new" if gated and activation == "gelu" else activation
    if activation not in ACTIVATIONS:
        raise UserError(f"{path}: feed_forward_proj {c['feed_forward_proj']!r} is not supported; use one of "
                        f"{', '.join(ACTIVATIONS)}, with or without 'gated-'")
    for key, ours in (("dense_act_fn", activation), ("is_gated_act", gated)):
        if c.get(key, ours) != ours:
            raise UserError(f"{path}: {key} {c[key]!r} contradicts feed_forward_proj "
                            f"{c.get('feed_forward_proj', 'relu')!r}; correct one of the two")
    # transformers 5 writes scale_decoder_outputs; before, the scale went with tied embeddings
    scaled = c.get("scale_decoder_outputs", c.get("tie_word_embeddings", True) is not False)
    return ModelConfig(
        model_type=c["model_type"], vocab_size=c["vocab_size"], d_model=c["d_model"], d_kv=c["d_kv"], d_ff=c["d_ff"],
        num_layers=c["num_layers"], num_decoder_layers=c.get("num_decoder_layers") or c["num_layers"],
        num_heads=c["num_heads"], buckets=c.get("relative_attention_num_buckets", 32),
        max_distance=c.get("relative_attention_max_distance", 128), epsilon=float(epsilon),
        activation=ACTIVATIONS.index(activation), gated=gated,
        head_scale=c["d_model"] ** -0.5 if scaled else 1.0, start_token=c.get("decoder_start_token_id", 0) or 0,
        end_tokens=_end_tokens(c.get("eos_token_id", 1), path), pad_token=c.get("pad_token_id", 0) or 0,
        source_limit=c.get("n_positions"),
    )


def _end_tokens(entry: int | list[int] | None, path: str | Path) -> tuple[int, ...]:
    listed = entry if isinstance(entry, list) else [] if entry is None else [entry]
    if any(type(token) is not int or not 0 <= token <= MAX_SIZE for token in listed):
        raise UserError(f"{path}: eos_token_id is {entry!r}; give a token or a list of tokens")
    tokens = tuple(dict.fromkeys(listed))
    if len(tokens) > MAX_END_TOKENS:
        raise UserError(f"{path}: eos_token_id lists {len(tokens)} tokens; keep at most {MAX_END_TOKENS}")
    return tokens


def _mt5_config(c: dict, path: str | Path) -> ModelConfig:
    # transformers never scales mT5's output, whatever tie_word_embeddings is
    return _umt5_config(c | {"scale_decoder_outputs": False}, path)


def _umt5_config(c: dict, path: str | Path) -> ModelConfig:
    return _t5_config({"feed_forward_proj": "gated-gelu"} | c, path)


def _umt5_tensors(c: ModelConfig) -> dict[str, TensorParts]:
    return _t5_tensors(c, bias_layers=None)


def _t5_tensors(c: ModelConfig, bias_layers: int | None = 1) -> dict[str, TensorParts]:
    """bias_layers: how many layers of a stack, from the first, have a relative bias; None is all."""
    C, F, inner = c.d_model, c.d_ff, c.num_heads * c.d_kv
    wi = ("wi_0", "wi_1") if c.gated else ("wi",)

    def per_layer(side: str, names: list[str], *shape: int, layers: int | None = None) -> TensorParts:
        count = layers or (c.num_layers if side == "encoder" else c.num_decoder_layers)
        return TensorParts(tuple(tuple(f"{side}.block.{i}.layer.{name}.weight" for name in names)
                                 for i in range(count)), shape)

    def single(name: str, *shape: int) -> TensorParts:
        return TensorParts(((f"{name}.weight",),), shape, False)

    bias = "0.SelfAttention.relative_attention_bias"
    encoder = {
        "encoder_norms": per_layer("encoder", ["0.layer_norm", "1.layer_norm"], C),
        "encoder_qkv": per_layer("encoder", ["0.SelfAttention.q", "0.SelfAttention.k", "0.SelfAttention.v"], inner, C),
        "encoder_out": per_layer("encoder", ["0.SelfAttention.o"], C, inner),
        "encoder_ff_in": per_layer("encoder", [f"1.DenseReluDense.{name}" for name in wi], F, C),
        "encoder_ff_out": per_layer("encoder", ["1.DenseReluDense.wo"], C, F),
        "encoder_norm": single("encoder.final_layer_norm", C),
        "encoder_bias": per_layer("encoder", [bias], c.buckets, c.num_heads, layers=bias_layers),
    }
    decoder = {
        "norms": per_layer("decoder", ["0.layer_norm", "1.layer_norm", "2.layer_norm"], C),
        "qkv": per_layer("decoder", ["0.SelfAttention.q", "0.SelfAttention.k", "0.SelfAttention.v"], inner, C),
        "self_out": per_layer("decoder", ["0.SelfAttention.o"], C, inner),
        "cross_q": per_layer("decoder", ["1.EncDecAttention.q"], inner, C),
        "cross_kv": per_layer("decoder", ["1.EncDecAttention.k", "1.EncDecAttention.v"], inner, C),
        "cross_out": per_layer("decoder", ["1.EncDecAttention.o"], C, inner),
        "ff_in": per_layer("decoder", [f"2.DenseReluDense.{name}" for name in wi], F, C),
        "ff_out": per_layer("decoder", ["2.DenseReluDense.wo"], C, F),
        "final_norm": single("decoder.final_layer_norm", C),
        "decoder_bias": per_layer("decoder", [bias], c.buckets, c.num_heads, layers=bias_layers),
    }
    return (encoder if c.num_layers else {}) | decoder


# T5 v1.0 (ReLU, head tied to the embedding), v1.1 and FLAN-T5 (gated, a head of its own)
T5_FAMILY = Family(
    _t5_config, _t5_tensors,
    embeddings=("shared.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight"), head="lm_head.weight",
    unused=frozenset({"decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"}),
    entries=frozenset("""
        vocab_size d_model d_kv d_ff num_layers num_decoder_layers num_heads relative_attention_num_buckets
        relative_attention_max_distance layer_norm_epsilon feed_forward_proj dense_act_fn is_gated_act tie_word_embeddings
        scale_decoder_outputs decoder_start_token_id eos_token_id pad_token_id n_positions""".split()))

# By model_type in config.json. UMT5 has a relative bias in every layer.
FAMILIES = {"t5": T5_FAMILY, "mt5": replace(T5_FAMILY, config=_mt5_config),
            "umt5": replace(T5_FAMILY, config=_umt5_config, tensors=_umt5_tensors,
                            entries=T5_FAMILY.entries | {"scalable_attention"})}

# Related families that are not supported, by model_type, and why.
OTHER_FAMILIES = {
    "longt5": "a LongT5, whose local attention is not supported",
    "switch_transformers": "a Switch Transformer, whose mixture of experts is not supported",
    "t5gemma": "a T5Gemma, whose decoder is Gemma's and not supported",
    "t5gemma2": "a T5Gemma 2, whose decoder is Gemma's and not supported",
    "codet5p": "a CodeT5+ of 2 billion weights or more, whose decoder is CodeGen's and not supported",
    "codet5p_module": "a CodeT5+ of 2 billion weights or more, whose decoder is CodeGen's and not supported",
    "pop2piano": "a Pop2Piano, which reads sound and is not supported",
    "udop": "a UDOP, which reads pictures and is not supported",
}
