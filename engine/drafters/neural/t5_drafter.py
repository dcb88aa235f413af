"""T5 drafters: a checkpoint with an encoder of its own, and a shallow decoder over the target's encoder output.

T5Model is any Hugging Face T5 of the target's vocabulary, saved as such (form 1). ShallowT5Model is a T5 decoder of a
few layers (form 2); it starts from layers of the target itself, chosen by their numbers.
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
from foredraft.engine.models.checkpoint import StoredTensors, Tensors
from foredraft.engine.models.t5 import T5
from foredraft.engine.models.spec import ModelConfig
from foredraft.engine.models.t5_weights import T5Weights, decoder_weights, load_weights
from foredraft.engine.models.tokenizer import load_tokenizer
from foredraft.engine.protocols import Capabilities, Drafter
from foredraft.engine.state import PROPOSERS, DecodeState, Draft, DraftBudget
from foredraft.errors import UserError
from foredraft.kernels.drafting.draft_stopping import WEIGH
from foredraft.kernels.drafting.num_uncached import NUM_UNCACHED
from foredraft.kernels.drafting.vocabulary_head import SAMPLE_DRAFT, VOCABULARY_HEAD


@dataclass(frozen=True, kw_only=True)
class ShallowT5Config(DraftConfig):
    """Sizes named as T5's own. layers: the target's decoder layers that it started from, as many as it has."""

    layers: tuple[int, ...]
    d_kv: int
    d_ff: int
    num_heads: int
    relative_attention_num_buckets: int
    relative_attention_max_distance: int
    layer_norm_epsilon: float
    feed_forward_proj: str

    def as_t5(self) -> ModelConfig:
        """A T5 that is a decoder alone."""
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
        """A decoder made of the target's own `layers` (a list of their numbers; default: the first two), its relative bias
        and its final norm."""
        entries = read_json(Path(target))
        ours = ModelConfig.from_dict(entries, target)
        last = ours.num_decoder_layers - 1
        layers = tuple(sizes.pop("layers", range(min(2, last + 1))))
        if not layers or not all(isinstance(layer, int) and 0 <= layer <= last for layer in layers):
            raise UserError(f"layers {list(layers)}: the target has decoder layers 0 to {last}; name one or more of them")
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
        with StoredTensors(target) as tensors:
            for name, parameter in self.decoder.state_dict().items():
                parts = name.split(".")
                if parts[0] == "block" and "relative_attention_bias" not in parts:
                    parts[1] = str(self.config.layers[int(parts[1])])
                parameter.copy_(tensors.raw(".".join(("decoder", *parts))))

    def forward(self, input_ids: Tensor, encoder_output: Tensor, source_mask: Tensor, source_ids: Tensor | None = None,
                scored: Tensor | None = None) -> Tensor:
        """Logits as engine/drafters/neural/drafter_module.py says; source_ids are not read."""
        hidden = self.decoder(inputs_embeds=self.embedding[input_ids], encoder_hidden_states=encoder_output,
                              encoder_attention_mask=source_mask.long(), use_cache=False).last_hidden_state
        hidden = hidden if scored is None else hidden[scored]
        return (hidden * self.config.head_scale) @ self.head.T


class T5Model(nn.Module):
    """A T5 with an encoder of its own, saved as transformers saves it, with the target's tokenizer beside it."""

    model_type: ClassVar[str] = "t5"
    reads_features: ClassVar[bool] = False

    def __init__(self, model: nn.Module, target: str | Path):
        """`model`: a transformers T5ForConditionalGeneration; `target`: the folder whose ids it speaks."""
        super().__init__()
        self.model, self.target = model, Path(target)

    @classmethod
    def from_target(cls, target: str | Path, **sizes: Any) -> T5Model:
        """A smaller copy of the target; `sizes` are entries of transformers' T5Config, such as num_layers (encoder),
        num_decoder_layers, d_model, d_ff, num_heads, d_kv.

        Where the widths stay the target's it starts from the target's first layers, as an early exit does (Elhoushi et
        al. 2024); else it is random, with the target's embedding if d_model is the same.
        """
        from transformers import T5Config as TheirConfig
        from transformers import T5ForConditionalGeneration

        entries = read_json(Path(target))
        ours = ModelConfig.from_dict(entries, target)
        made_for = {f"foredraft_{name}": value for name, value in target_entries(target).items() if "target" in name}
        # one table for both ends keeps a small model small; the scale goes with it
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
        """Logits as engine/drafters/neural/drafter_module.py says; encoder_output is not read (None will do), source_ids are needed."""
        model, mask = self.model, source_mask.long()
        encoded = model.encoder(input_ids=source_ids, attention_mask=mask).last_hidden_state
        hidden = model.decoder(input_ids=input_ids, encoder_hidden_states=encoded, encoder_attention_mask=mask,
                               use_cache=False).last_hidden_state
        hidden = hidden if scored is None else hidden[scored]
        scale = model.config.d_model**-0.5 if model.config.scale_decoder_outputs else 1.0
        return model.lm_head(hidden * scale)

    def save(self, folder: str | Path, dtype: torch.dtype = torch.float32) -> None:
        """A T5 checkpoint directory, with the target's tokenizer; each file appears whole."""
        tensors = {name: tensor.to(dtype) for name, tensor in self.model.state_dict().items()
                   if "embed_tokens" not in name and name != "lm_head.weight"}
        entries = self.model.config.to_dict() | {"architectures": ["T5ForConditionalGeneration"],
                                                 "dtype": str(dtype).removeprefix("torch.")}
        save_files(folder, entries, tensors)
        for name in ("tokenizer.json", "tokenizer_config.json"):
            if (self.target / name).is_file():
                shutil.copyfile(self.target / name, Path(folder) / name)

    @classmethod
    def load(cls, folder: str | Path, target: str | Path) -> T5Model:
        """Read a T5 checkpoint directory for a target's folder. UserError: another vocabulary, or no T5."""
        from transformers import T5ForConditionalGeneration

        ModelConfig.from_json(Path(folder) / "config.json")
        return cls(T5ForConditionalGeneration.from_pretrained(folder, dtype=torch.float32), target)


def check_vocabulary(folder: Path, ours: ModelConfig, its: ModelConfig, target_folder: Path, tokenizer: Any) -> None:
    """UserError unless the T5 in `folder` speaks the ids of the target, whose tokenizer is given, or None."""
    if ours.vocab_size != its.vocab_size:
        raise UserError(f"{folder}: has {ours.vocab_size} ids, the target {target_folder} has {its.vocab_size}; "
                        "a drafter must speak the target's ids")
    if tokenizer is not None:
        own = load_tokenizer(folder)
        if own is None:
            raise UserError(f"{folder}: tokenizer.json is missing, so its ids cannot be told to be the target's; "
                            "put the tokenizer it was trained with beside config.json")
        if own.get_vocab() != tokenizer.get_vocab():
            raise UserError(f"{folder}: its tokenizer is not that of the target {target_folder}; give a drafter that "
                            "speaks the target's ids")


class T5Drafter(Drafter):
    """Drafts of a T5 (t5.py), over its own encoder's output or the target's, token by token against its own caches.

    What it read stays cached by position: a rejection costs nothing, and the committed ids it has not seen are read first.
    """

    name = "t5"
    capabilities = Capabilities(stops_early=True, big_little=True)

    def __init__(self, weights: T5Weights, ids: np.ndarray | None = None):
        """`ids`: the ids it may draft beside those of the source, most frequent first; none: all."""
        self.t5 = T5(weights)
        self.backend = self.t5.backend
        self.lists = DraftVocabulary(weights.head, weights.config.vocab_size, ids, copies=False)
        self.confidence = Confidence()
        self._grow(0, 0)

    @classmethod
    def open(cls, folder: Path, target: T5Weights, target_folder: Path, tokenizer: Any) -> T5Drafter:
        """A T5 checkpoint directory (form 1). `tokenizer`: the target's, or None."""
        weights = load_weights(folder, weights="int8" if target.stored == "int8" else None)
        check_vocabulary(folder, weights.config, target.config, target_folder, tokenizer)
        return cls(weights)

    def _grow(self, rows: int, slots: int) -> None:
        self._fed, self._counts = np.zeros((rows, slots), np.int64), np.zeros(rows, np.int64)

    def admit(self, rows: Sequence[int], sources: Sequence[Tensor], encoded: Sequence[Tensor]) -> None:
        """Keys and values of the sources, n of [S_i] int64; a T5 without an encoder takes the target's output for them."""
        most, longest = max(rows) + 1, max(len(source) for source in sources)
        self.t5.cache.reserve(most, 0, longest)
        self.lists.reserve(most, longest)
        if most > len(self._counts):
            self._grow(most, self._fed.shape[1])
        with torch.inference_mode():
            for row, source, output in zip(rows, sources, encoded, strict=True):
                self.t5.attend_to(row, self.t5.encode(source) if self.t5.config.num_layers else output)
                self.lists.admit(row, source)
                self._counts[row] = 0
        self.confidence.admit(rows)

    def release(self, rows: Sequence[int]) -> None:
        self.t5.release(rows)

    def draft(self, state: DecodeState, budget: DraftBudget | None = None) -> Draft:
        draft = self.lists.empty_draft(state, PROPOSERS.index("t5"))
        B, K = state.batch_size, state.max_draft
        rows, slots = max(B, len(self._counts)), state.capacity + K + 1
        if rows > len(self._counts) or slots > self._fed.shape[1]:
            self._grow(rows, max(slots, self._fed.shape[1]))
            self.t5.cache.reserve(rows, slots, 0)
        self.t5.prepare(B, K + 1)
        tokens, lengths, allowed = state.host.tokens, state.host.lengths, state.allowed(budget).numpy()
        distribution = [x.numpy() for x in (state.temperature, state.top_k, state.top_p, state.seeds, state.lengths)]
        distributions = distributions_of(draft)
        drafted, counts = draft.tokens.numpy(), draft.lengths.numpy()

        unread = np.empty(B, np.int64)
        NUM_UNCACHED[self.backend](tokens, lengths, self._fed, self._counts, unread)
        unread[allowed == 0] = 0
        x = np.empty((B, self.t5.config.d_model), np.float32)
        while unread.any():
            width = min(int(unread.max()), K + 1)
            at = (lengths - unread)[:, None] + np.arange(width)
            at[np.arange(width) >= unread[:, None]] = -1
            self._read(np.take_along_axis(tokens, np.maximum(at, 0), 1), at, x)
            unread = np.maximum(unread - width, 0)
        stops, going, sizes = self.confidence.stops(state, budget), allowed > 0, len(self.lists.ids) + self.lists.rows.own_counts
        for i in range(K):
            rows = np.flatnonzero(going & (allowed > i))
            if not len(rows):
                break
            if i:
                at = np.full((B, 1), -1)
                at[rows, 0] = lengths[rows] - 1 + i
                self._read(np.ascontiguousarray(drafted[:, i - 1 : i]), at, x)
            scores = self.lists.scores(len(rows))
            VOCABULARY_HEAD[self.backend](x[rows], rows, self.lists.rows, np.zeros((len(rows), 0), np.float32), scores)
            SAMPLE_DRAFT[self.backend](scores, rows, self.lists.rows, *distribution, i, drafted, *distributions)
            WEIGH[self.backend](stops, rows, i, scores, sizes, distribution[0], distributions[1], counts, going)
            going[rows[drafted[rows, i] == state.end_token]] = False
        return draft

    def _read(self, tokens: np.ndarray, at: np.ndarray, x: np.ndarray) -> None:
        """Pass ids [B, R] at positions [B, R] (-1: none) through the decoder; x [B, C] takes the head's input after the
        last of each row."""
        hidden = self.t5.decode(torch.from_numpy(tokens), torch.from_numpy(at)).numpy()
        rows, columns = np.nonzero(at >= 0)
        self._fed[rows, at[rows, columns]] = tokens[rows, columns]
        last = (at >= 0).sum(1) - 1
        read = np.flatnonzero(last >= 0)
        self._counts[read] = at[read, last[read]] + 1
        x[read] = hidden[read, last[read]] * np.float32(self.t5.config.head_scale)


class ShallowT5Drafter(T5Drafter):
    """Drafts of a ShallowT5Model: through the target's kernels, on its encoder output, embedding and head."""

    @classmethod
    def open(cls, folder: Path, target: T5Weights, target_folder: Path, tokenizer: Any) -> ShallowT5Drafter:
        model = ShallowT5Model.load(folder, target_folder, with_tables=False)
        return cls.of(model, target, storage_of(folder, target))

    @classmethod
    def of(cls, model: ShallowT5Model, target: T5Weights, stored: str = "fp32") -> ShallowT5Drafter:
        """`target`: the weights whose tables it shares; a model with tables of its own brings them. `stored`, one of
        t5_weights.STORED: its own matrices."""
        tables = Tables.of(model, target)
        weights = decoder_weights(Tensors(model.state_dict()), model.config.as_t5(), stored, torch.float32, tables.embedding,
                                  tables.head)
        return cls(weights, model.draft_ids.numpy())
