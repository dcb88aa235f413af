"""T5 drafters: a T5 with an encoder of its own, and a shallow T5 decoder over the target's encoder output.

T5Model is any Hugging Face T5 with the target's vocabulary. ShallowT5Model is a decoder of a few layers, which starts from
layers of the target.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from foredraft.engine.draft_length.confidence import Confidence
from foredraft.engine.drafters.neural.draft_vocabulary import DraftVocabulary, distributions_of
from foredraft.engine.drafters.neural.drafter_module import (
    DraftConfig,
    DraftModel,
    Tables,
    read_json,
    save_files,
    storage_of,
    target_entries,
)
from foredraft.engine.drafters.registry import PROPOSERS
from foredraft.engine.models.checkpoint import StoredTensors, Tensors
from foredraft.engine.models.spec import ModelConfig
from foredraft.engine.models.t5 import T5
from foredraft.engine.models.t5_weights import QUANTISED, T5Weights, decoder_weights, load_weights
from foredraft.engine.models.tokenizer import TOKENIZER_FILES, load_tokenizer
from foredraft.engine.protocols import Capabilities, Drafter
from foredraft.engine.state import DecodeState, Draft, DraftBudget
from foredraft.errors import UserError
from foredraft.kernels.drafting.draft_stopping import CHECK_STOPS
from foredraft.kernels.drafting.num_uncached import NUM_UNCACHED
from foredraft.kernels.drafting.vocabulary_head import SAMPLE_DRAFT, VOCABULARY_HEAD


@dataclass(frozen=True, kw_only=True)
class ShallowT5Config(DraftConfig):
    """Sizes named as in T5's config.json. layers: the target's decoder layers that its own started from."""

    layers: tuple[int, ...]
    d_kv: int
    d_ff: int
    num_heads: int
    relative_attention_num_buckets: int
    relative_attention_max_distance: int
    layer_norm_epsilon: float
    feed_forward_proj: str

    def as_t5(self) -> ModelConfig:
        """The config of a T5 without an encoder."""
        entries = asdict(self) | {"model_type": "t5", "num_layers": 0, "num_decoder_layers": len(self.layers)}
        return replace(ModelConfig.from_dict(entries, "config.json"), num_layers=0, head_scale=self.head_scale)


class ShallowT5Model(DraftModel):
    """A T5 decoder (transformers' T5Stack) over the target's encoder output, with the target's tables."""

    model_type: ClassVar[str] = "foredraft-shallow-t5"
    config_class = ShallowT5Config

    def __init__(self, config: ShallowT5Config, tables: tuple[Tensor, Tensor] | None = None):
        from transformers import T5Config as TheirConfig
        from transformers.models.t5.modeling_t5 import T5Stack

        super().__init__(config, tables)
        sizes = {name: getattr(config, name) for name in (
            "d_model", "d_kv", "d_ff", "num_heads", "relative_attention_num_buckets", "relative_attention_max_distance",
            "layer_norm_epsilon", "feed_forward_proj")}
        decoder = T5Stack(TheirConfig(
            vocab_size=1, eos_token_id=None, num_layers=len(config.layers), dropout_rate=0.0, is_decoder=True,
            is_encoder_decoder=False, use_cache=False, **sizes))
        decoder.embed_tokens = None
        self.decoder = decoder

    @classmethod
    def from_target(cls, target: str | Path, **sizes: Any) -> ShallowT5Model:
        """A decoder made of layers of the target, its relative bias and its final norm.

        Parameters
        ----------
        target : str or Path
            The target's checkpoint directory.
        **sizes
            Entries of the config. `layers` lists the target's decoder layers to start from; by default the first two.
        """
        entries = read_json(Path(target))
        ours = ModelConfig.from_dict(entries, target)
        last = ours.num_decoder_layers - 1
        layers = tuple(sizes.pop("layers", range(min(2, last + 1))))
        if not layers or not all(isinstance(layer, int) and 0 <= layer <= last for layer in layers):
            raise UserError(f"layers {list(layers)}: the target has decoder layers 0 to {last}; give one or more of them")
        return super().from_target(
            target, layers=layers, d_kv=ours.d_kv, d_ff=ours.d_ff, num_heads=ours.num_heads,
            relative_attention_num_buckets=ours.buckets, relative_attention_max_distance=ours.max_distance,
            layer_norm_epsilon=ours.epsilon, feed_forward_proj=entries.get("feed_forward_proj", "relu"), **sizes)

    @classmethod
    def from_config(cls, config: ShallowT5Config, target: str | Path) -> ShallowT5Model:
        model = super().from_config(config, target)
        model.copy_layers(target)
        return model

    @torch.no_grad()
    def copy_layers(self, target: str | Path) -> None:
        """Copy the weights of the target's layers that `config.layers` lists."""
        with StoredTensors(target) as tensors:
            for name, parameter in self.decoder.state_dict().items():
                parts = name.split(".")
                if parts[0] == "block" and "relative_attention_bias" not in parts:
                    parts[1] = str(self.config.layers[int(parts[1])])
                parameter.copy_(tensors.raw(".".join(("decoder", *parts))))

    def forward(self, input_ids: Tensor, encoder_output: Tensor, source_mask: Tensor, source_ids: Tensor | None = None,
                scored: Tensor | None = None) -> Tensor:
        """Logits as drafter_module.py says; source_ids are not read."""
        if self.projection is not None:
            encoder_output = encoder_output @ self.projection.encoder_output
        hidden = self.decoder(inputs_embeds=self.embedding[input_ids], encoder_hidden_states=encoder_output,
                              encoder_attention_mask=source_mask.long(), use_cache=False).last_hidden_state
        hidden = hidden if scored is None else hidden[scored]
        return (hidden * self.config.head_scale) @ self.head.T


class T5Model(nn.Module):
    """A T5 with an encoder of its own, saved as a Hugging Face checkpoint with the target's tokenizer.

    Parameters
    ----------
    model : transformers.T5ForConditionalGeneration
    target : str or Path
        The checkpoint directory whose tokens it uses.
    """

    model_type: ClassVar[str] = "t5"
    reads_features: ClassVar[bool] = False

    def __init__(self, model: nn.Module, target: str | Path):
        super().__init__()
        self.model, self.target = model, Path(target)

    @classmethod
    def from_target(cls, target: str | Path, **sizes: Any) -> T5Model:
        """A smaller copy of the target.

        With the target's widths it starts from the target's first layers, as early exit does (Elhoushi et al. 2024).
        Otherwise it is random, with the target's embedding if d_model is the same.

        Parameters
        ----------
        target : str or Path
            The target's checkpoint directory.
        **sizes
            Entries of transformers' T5Config: num_layers (encoder), num_decoder_layers, d_model, d_ff, num_heads, d_kv, ...
        """
        from transformers import T5Config as TheirConfig
        from transformers import T5ForConditionalGeneration

        entries = read_json(Path(target))
        ours = ModelConfig.from_dict(entries, target)
        made_for = {f"foredraft_{name}": value for name, value in target_entries(target).items() if "target" in name}
        # a tied head keeps a small model small; the scale belongs to it
        kept = entries | {"dtype": "float32", "dropout_rate": 0.0, "tie_word_embeddings": True,
                          "scale_decoder_outputs": True}
        theirs = TheirConfig(**kept | sizes | made_for)
        model = cls(T5ForConditionalGeneration(theirs), target)
        same = all(getattr(theirs, name) == entries[name] for name in ("d_model", "d_ff", "num_heads", "d_kv")) and (
            theirs.num_layers <= ours.num_layers and theirs.num_decoder_layers <= ours.num_decoder_layers)
        with StoredTensors(target) as tensors, torch.no_grad():
            if same:
                for name, parameter in model.model.named_parameters():
                    parameter.copy_(tensors.raw(name))
            elif theirs.d_model == ours.d_model:
                model.model.shared.weight.copy_(tensors.raw("shared.weight"))
        return model

    def forward(self, input_ids: Tensor, encoder_output: Tensor | None, source_mask: Tensor,
                source_ids: Tensor | None = None, scored: Tensor | None = None) -> Tensor:
        """Logits as drafter_module.py says; encoder_output is not read and may be None, source_ids are needed."""
        model, mask = self.model, source_mask.long()
        encoded = model.encoder(input_ids=source_ids, attention_mask=mask).last_hidden_state
        hidden = model.decoder(input_ids=input_ids, encoder_hidden_states=encoded, encoder_attention_mask=mask,
                               use_cache=False).last_hidden_state
        hidden = hidden if scored is None else hidden[scored]
        scale = model.config.d_model**-0.5 if model.config.scale_decoder_outputs else 1.0
        return model.lm_head(hidden * scale)

    def save(self, folder: str | Path, dtype: torch.dtype = torch.float32) -> None:
        """Write a T5 checkpoint directory with the target's tokenizer, each file atomically."""
        tensors = {name: tensor.to(dtype) for name, tensor in self.model.state_dict().items()
                   if "embed_tokens" not in name and name != "lm_head.weight"}
        entries = self.model.config.to_dict() | {"architectures": ["T5ForConditionalGeneration"],
                                                 "dtype": str(dtype).removeprefix("torch.")}
        save_files(folder, entries, tensors)
        for name in TOKENIZER_FILES:
            if (self.target / name).is_file():
                shutil.copyfile(self.target / name, Path(folder) / name)

    @classmethod
    def load(cls, folder: str | Path, target: str | Path) -> T5Model:
        """Read a T5 checkpoint directory. UserError: it is no T5."""
        from transformers import T5ForConditionalGeneration

        ModelConfig.from_json(Path(folder) / "config.json")
        return cls(T5ForConditionalGeneration.from_pretrained(folder, dtype=torch.float32), target)


def check_vocabulary(folder: Path, ours: ModelConfig, its: ModelConfig, target_folder: Path, tokenizer: Any) -> None:
    """UserError unless the T5 in `folder` has the target's vocabulary, and the target's tokenizer where that is given."""
    if ours.vocab_size != its.vocab_size:
        raise UserError(f"{folder}: has {ours.vocab_size} tokens, the target {target_folder} has {its.vocab_size}; "
                        "give a drafter with the target's vocabulary")
    if tokenizer is not None:
        own = load_tokenizer(folder)
        if own is None:
            raise UserError(f"{folder}: tokenizer.json is missing, so its vocabulary cannot be compared with the target's; "
                            "put the tokenizer it was trained with beside config.json")
        if own.get_vocab() != tokenizer.get_vocab():
            raise UserError(f"{folder}: its tokenizer is not that of the target {target_folder}; give a drafter with the "
                            "target's tokenizer")


class T5Drafter(Drafter):
    """Drafts of a T5, over its own encoder's output or the target's.

    What it has read stays cached by position. In each step it first reads the committed tokens that are not cached yet.

    Parameters
    ----------
    weights : T5Weights
        Without an encoder, it reads the target's encoder output.
    tokens : np.ndarray [F] int64, optional
        The draft vocabulary beside the tokens of the source, most frequent first; by default all tokens.
    """

    name = "t5"
    capabilities = Capabilities(stops_early=True, big_little=True)

    def __init__(self, weights: T5Weights, tokens: np.ndarray | None = None):
        self.t5 = T5(weights)
        self.backend = self.t5.backend
        self.vocabulary = DraftVocabulary(weights.head, weights.config.vocab_size, tokens, copies=False)
        self.confidence = Confidence()
        self._grow(0, 0)

    @classmethod
    def open(cls, folder: Path, target: T5Weights, target_folder: Path, tokenizer: Any) -> T5Drafter:
        """Read a T5 checkpoint directory. `tokenizer`: the target's, or None."""
        weights = load_weights(folder, weights="int8" if target.stored in QUANTISED else None)
        check_vocabulary(folder, weights.config, target.config, target_folder, tokenizer)
        return cls(weights)

    def _grow(self, num_sequences: int, slots: int) -> None:
        # the token read at each position, and how many positions were read
        self._cached_tokens, self._num_cached = np.zeros((num_sequences, slots), np.int64), np.zeros(num_sequences, np.int64)

    def admit(self, sequences: Sequence[int], sources: Sequence[Tensor], encoded: Sequence[Tensor]) -> None:
        """Cache the cross keys and values of new sources."""
        num_sequences, longest = max(sequences) + 1, max(len(source) for source in sources)
        self.t5.cache.reserve(num_sequences, 0, longest)
        self.vocabulary.reserve(num_sequences, longest)
        if num_sequences > len(self._num_cached):
            self._grow(num_sequences, self._cached_tokens.shape[1])
        with torch.inference_mode():
            for sequence, source, output in zip(sequences, sources, encoded, strict=True):
                self.t5.attend_to(sequence, self.t5.encode(source) if self.t5.config.num_layers else output)
                self.vocabulary.admit(sequence, source)
                self._num_cached[sequence] = 0
        self.confidence.admit(sequences)

    def release(self, sequences: Sequence[int]) -> None:
        self.t5.release(sequences)

    def draft(self, state: DecodeState, budget: DraftBudget | None = None) -> Draft:
        """Draft token by token for all sequences."""
        draft = self.vocabulary.empty_draft(state, PROPOSERS.index("t5"))
        B, K = state.batch_size, state.max_draft
        self._reserve(state, state.capacity + K + 1)
        lengths, allowed = state.host.lengths, state.allowed(budget).numpy()
        sampling = [x.numpy() for x in (state.temperature, state.top_k, state.top_p, state.seeds, state.lengths)]
        distributions = distributions_of(draft)
        drafted, counts = draft.tokens.numpy(), draft.lengths.numpy()
        x = self._read_committed(state, allowed)
        stop_rule, drafting = self.confidence.stop_rule(state, budget), allowed > 0
        heads = self.vocabulary.heads
        sizes = len(self.vocabulary.tokens) + heads.own_counts
        for i in range(K):
            sequences = np.flatnonzero(drafting & (allowed > i))
            if not len(sequences):
                break
            if i:
                positions = np.full((B, 1), -1)
                positions[sequences, 0] = lengths[sequences] - 1 + i
                self._read(np.ascontiguousarray(drafted[:, i - 1 : i]), positions, x)
            scores, no_copies = self.vocabulary.empty_scores(len(sequences)), np.zeros((len(sequences), 0), np.float32)
            VOCABULARY_HEAD[self.backend](x[sequences], sequences, heads, no_copies, scores)
            SAMPLE_DRAFT[self.backend](scores, sequences, heads, *sampling, i, drafted, *distributions)
            CHECK_STOPS[self.backend](stop_rule, sequences, i, scores, sizes, sampling[0], distributions[1], counts,
                                      drafting)
            drafting[sequences[drafted[sequences, i] == state.end_token]] = False
        return draft

    def _reserve(self, state: DecodeState, slots: int) -> None:
        """Make room for the state's sequences with so many positions."""
        B = max(state.batch_size, len(self._num_cached))
        if B > len(self._num_cached) or slots > self._cached_tokens.shape[1]:
            self._grow(B, max(slots, self._cached_tokens.shape[1]))
            self.t5.cache.reserve(B, slots, 0)
        self.t5.prepare(state.batch_size, state.max_draft + 1)

    def _read_committed(self, state: DecodeState, allowed: np.ndarray, but_last: int = 0) -> np.ndarray:
        """Read the committed tokens that are not cached, without the `but_last` last ones; [B, C] as `_read` writes it."""
        tokens, lengths, R = state.host.tokens, state.host.lengths, state.max_draft + 1
        num_uncached = np.empty(state.batch_size, np.int64)
        NUM_UNCACHED[self.backend](tokens, lengths, self._cached_tokens, self._num_cached, num_uncached)
        num_uncached = np.where(allowed > 0, num_uncached - but_last, 0)
        x = np.empty((state.batch_size, self.t5.config.d_model), np.float32)
        while num_uncached.any():
            width = min(int(num_uncached.max()), R)
            positions = (lengths - but_last - num_uncached)[:, None] + np.arange(width)
            positions[np.arange(width) >= num_uncached[:, None]] = -1
            self._read(np.take_along_axis(tokens, np.maximum(positions, 0), 1), positions, x)
            num_uncached = np.maximum(num_uncached - width, 0)
        return x

    def _read(self, tokens: np.ndarray, positions: np.ndarray, x: np.ndarray) -> None:
        """Pass tokens [B, R] at positions [B, R] (-1: none) through the decoder; write the head's input after each
        sequence's last token into x [B, C]."""
        hidden = self.t5.decode(torch.from_numpy(tokens), torch.from_numpy(positions)).numpy()
        sequences, columns = np.nonzero(positions >= 0)
        self._cached_tokens[sequences, positions[sequences, columns]] = tokens[sequences, columns]
        last = (positions >= 0).sum(1) - 1
        read = np.flatnonzero(last >= 0)
        self._num_cached[read] = positions[read, last[read]] + 1
        x[read] = hidden[read, last[read]] * np.float32(self.t5.config.head_scale)


class ShallowT5Drafter(T5Drafter):
    """Drafts of a ShallowT5Model, on the target's encoder output."""

    @classmethod
    def open(cls, folder: Path, target: T5Weights, target_folder: Path, tokenizer: Any) -> ShallowT5Drafter:
        """Read a saved drafter for the target that it was made for."""
        model = ShallowT5Model.load(folder, target_folder, with_tables=False)
        return cls.of(model, target, storage_of(folder, target))

    @classmethod
    def of(cls, model: ShallowT5Model, target: T5Weights, stored: str = "fp32") -> ShallowT5Drafter:
        """The drafter of a model in memory.

        Parameters
        ----------
        model : ShallowT5Model
        target : T5Weights
            The weights whose embedding and head it may share.
        stored : str
            Storage of the model's own matrices, one of t5_weights.STORAGES.
        """
        tables = Tables.of(model, target)
        weights = decoder_weights(Tensors(model.state_dict()), model.config.as_t5(), stored, torch.float32, tables.embedding,
                                  tables.head)
        if model.projection is not None:
            weights.cross_kv = weights.cross_kv @ model.projection.encoder_output.T
        return cls(weights, model.draft_ids.numpy())
