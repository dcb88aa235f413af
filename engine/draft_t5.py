"""T5 drafters: a checkpoint with an encoder of its own, and a shallow decoder over the target's encoder output.

T5Model is any Hugging Face T5 of the target's vocabulary, saved as such (form 1). ShallowT5Model is a T5 decoder of a
few layers (form 2); it starts from layers of the target itself, chosen by their numbers.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from foredraft.engine.checkpoint import StoredTensors
from foredraft.engine.neural import DraftConfig, DraftModel, read_json, save_files, target_entries
from foredraft.engine.t5_weights import T5Config
from foredraft.errors import UserError


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
        """A decoder made of the target's own `layers` (a list of their numbers; default: the first and the last), its
        relative bias and its final norm."""
        entries = read_json(Path(target))
        ours = T5Config.from_dict(entries, target)
        last = ours.num_decoder_layers - 1
        layers = tuple(sizes.pop("layers", sorted({0, last})))
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
        """Logits as engine/neural.py says; source_ids are not read."""
        hidden = self.decoder(inputs_embeds=self.embedding[input_ids], encoder_hidden_states=encoder_output,
                              encoder_attention_mask=source_mask.long(), use_cache=False).last_hidden_state
        hidden = hidden if scored is None else hidden[scored]
        return (hidden * self.config.head_scale) @ self.head.T


class T5Model(nn.Module):
    """A T5 with an encoder of its own, saved as transformers saves it, with the target's tokenizer beside it."""

    model_type: ClassVar[str] = "t5"

    def __init__(self, model: nn.Module, target: str | Path):
        """`model`: a transformers T5ForConditionalGeneration; `target`: the folder whose ids it speaks."""
        super().__init__()
        self.model, self.target = model, Path(target)

    @classmethod
    def from_target(cls, target: str | Path, **sizes: Any) -> T5Model:
        """A smaller copy of the target; `sizes` are entries of transformers' T5Config, such as num_layers (encoder),
        num_decoder_layers, d_model, d_ff, num_heads, d_kv.

        Where the widths stay the target's it starts from evenly spaced layers of the target, first and last among them
        (Shleifer and Rush 2020); else it is random, with the target's embedding if d_model is the same.
        """
        from transformers import T5Config as TheirConfig
        from transformers import T5ForConditionalGeneration

        entries = read_json(Path(target))
        ours = T5Config.from_dict(entries, target)
        made_for = {f"foredraft_{name}": value for name, value in target_entries(target).items() if "target" in name}
        # one table for both ends keeps a small model small; the scale goes with it
        kept = entries | {"dtype": "float32", "dropout_rate": 0.0, "tie_word_embeddings": True,
                          "scale_decoder_outputs": True}
        theirs = TheirConfig(**kept | sizes | made_for)
        model = cls(T5ForConditionalGeneration(theirs), target)
        same = all(getattr(theirs, name) == entries[name] for name in ("d_model", "d_ff", "num_heads", "d_kv"))
        with StoredTensors(target) as tensors, torch.no_grad():
            if same:
                spaced = {"encoder": _spaced(theirs.num_layers, ours.num_layers),
                          "decoder": _spaced(theirs.num_decoder_layers, ours.num_decoder_layers)}
                for name, parameter in model.model.named_parameters():
                    parts = name.split(".")
                    if parts[1] == "block" and "relative_attention_bias" not in parts:
                        parts[2] = str(spaced[parts[0]][int(parts[2])])
                    parameter.copy_(tensors.raw(".".join(parts)))
            elif theirs.d_model == ours.d_model:
                model.model.shared.weight.copy_(tensors.raw("shared.weight"))
        return model

    def forward(self, input_ids: Tensor, encoder_output: Tensor | None, source_mask: Tensor,
                source_ids: Tensor | None = None, scored: Tensor | None = None) -> Tensor:
        """Logits as engine/neural.py says; encoder_output is not read (None will do), source_ids are needed."""
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

        ours = T5Config.from_json(Path(folder) / "config.json")
        check_vocabulary(folder, ours.vocab_size, target, T5Config.from_json(Path(target) / "config.json").vocab_size)
        return cls(T5ForConditionalGeneration.from_pretrained(folder, dtype=torch.float32), target)


def check_vocabulary(folder: str | Path, ours: int, target: str | Path, its: int) -> None:
    if ours != its:
        raise UserError(f"{folder}: has {ours} ids, the target {target} has {its}; a drafter must speak the target's ids")


def _spaced(count: int, of: int) -> list[int]:
    """`count` of the numbers 0 to of - 1, evenly spaced, first and last among them."""
    return [round(i * (of - 1) / max(count - 1, 1)) if count > 1 else of - 1 for i in range(count)]
