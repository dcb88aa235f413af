"""`generate` of a transformers model: takes and returns tensors, padded as transformers pads them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from foredraft.engine.arguments import known_settings
from foredraft.engine.generate import Model
from foredraft.engine.models.tokenizer import adopt_tokenizer
from foredraft.engine.output import Output
from foredraft.errors import UserError

# transformers' defaults, where neither the call nor a generation_config sets these.
_DEFAULTS = {"max_new_tokens": 20, "top_k": 50}
# Arguments that Seq2SeqTrainer and scripts pass, without effect here.
_PASSED_ALONG = ("labels", "use_model_defaults")


class TransformersModel(Model):
    """Made by `from_transformers`; all but `generate` with tensors is as in Model. with_drafter returns a Model.

    Attributes
    ----------
    reference : transformers.PreTrainedModel
        The model in memory. If an optimizer has changed its weights, the next `generate` with tensors takes them over.
    """

    def __init__(self, reference: Any, remake: Callable[[], Model]):
        """remake: makes a Model of the reference's current weights."""
        self.reference, self._remake = reference, remake
        self.refresh()

    @property
    def config(self) -> Any:
        """The reference's configuration."""
        return self.reference.config

    @property
    def generation_config(self) -> Any:
        """The reference's generation configuration."""
        return self.reference.generation_config

    def refresh(self) -> None:
        """Take over the reference's weights. Only changes through `.data`, which PyTorch does not count, need this call."""
        self._version = self._current_version()
        vars(self).pop("adaptive", None)
        vars(self).update(vars(self._remake()))

    def _current_version(self) -> list[tuple[int, int]]:
        return [(parameter.data_ptr(), parameter._version) for parameter in self.reference.parameters()]

    @torch.inference_mode()
    def generate(self, inputs: Any = None, *, input_ids: Tensor | None = None, attention_mask: Tensor | None = None,
                 generation_config: Any = None, return_dict_in_generate: bool | None = None,
                 decoder_input_ids: Tensor | None = None, tokenizer: Any = None, **arguments: Any) -> Any:
        """transformers' `generate` for tensors; `Model.generate` for texts and lists.

        Parameters
        ----------
        inputs, input_ids : Tensor [B, S] int64
            Give one of the two.
        attention_mask : Tensor [B, S] or None
            0 at padding, else 1; None: 0 where the pad token is.
        generation_config : transformers.GenerationConfig or None
        return_dict_in_generate : bool or None
        decoder_input_ids : Tensor [B, 1] or None
            The start token of every output, and nothing else.
        tokenizer
            For `stop_strings` and texts in `choices`, of a model that was made without one.
        **arguments
            Those of `Model.generate`. Without a limit 20 tokens are generated, as in transformers. Without `seed`, PyTorch's
            generator is used.

        Returns
        -------
        Tensor [B n, T] int64, or GenerateEncoderDecoderOutput or GenerateBeamEncoderDecoderOutput of transformers
            The n = num_return_sequences outputs of each input, with the start token, padded with the pad token. Past the
            end of a sequence, `scores` and `logits` give the pad token probability 1.
        """
        tensor = input_ids if input_ids is not None else inputs
        if not isinstance(tensor, Tensor):
            if attention_mask is not None or return_dict_in_generate:
                raise UserError("attention_mask and return_dict_in_generate go with input_ids as a tensor; pass input_ids")
            return super().generate(inputs, generation_config=generation_config, **arguments)
        if self._version != self._current_version():
            self.refresh()
        config = generation_config if generation_config is not None else self.reference.generation_config

        def setting(name: str, given: Any, default: Any) -> Any:
            found = getattr(config, name, None) if given is None else given
            return default if found is None else found

        arguments = {name: value for name, value in arguments.items() if name not in _PASSED_ALONG and value is not None}
        pad = setting("pad_token_id", arguments.pop("pad_token_id", None), self.target.config.pad_token)
        if tokenizer is not None and self.tokenizer is None:
            self.tokenizer = adopt_tokenizer(tokenizer)
            vars(self).pop("_grammars", None)
        sources = _rows(tensor, attention_mask, pad)
        start = setting("decoder_start_token_id", arguments.get("decoder_start_token_id"),
                        self.settings.get("decoder_start_token_id", self.target.start_token))
        if decoder_input_ids is not None and (decoder_input_ids.shape[1:] != (1,) or (decoder_input_ids != start).any()):
            raise UserError(f"decoder_input_ids has shape {tuple(decoder_input_ids.shape)}; only the start token {start} "
                            "of every output is supported: leave decoder_input_ids out")
        if setting("do_sample", arguments.get("do_sample"), False):
            arguments.setdefault("seed", int(torch.randint(2**62, ())))
        defaults = {name: value for name, value in _DEFAULTS.items() if getattr(config, name, None) is None}
        if getattr(config, "max_length", None) is not None:
            defaults.pop("max_new_tokens", None)
        beams = setting("num_beams", arguments.get("num_beams"), 1)
        arguments.setdefault("batch_size", len(sources))
        out = super().generate(sources, generation_config=defaults | known_settings(config), **arguments)
        sequences = _padded([[start, *tokens] for tokens in out.token_ids], pad).to(tensor.device)
        if not setting("return_dict_in_generate", return_dict_in_generate, False):
            return sequences
        return self._result(out, sequences, pad, beams, len(out.token_ids) // len(sources))

    def _result(self, out: Output, sequences: Tensor, pad: int, beams: int, copies: int) -> Any:
        """transformers' output object; copies: outputs of each input."""
        from transformers.generation import GenerateBeamEncoderDecoderOutput, GenerateEncoderDecoderOutput

        if beams == 1:
            steps = {name: self._steps(getattr(out, name), pad, sequences.device) for name in ("scores", "logits")}
            return GenerateEncoderDecoderOutput(sequences=sequences, **steps)
        # each output of an input has the steps of all its beams
        steps = {name: None if kept[0] is None else self._steps(
                     [beam for one in kept[::copies] for beam in one.swapaxes(0, 1)], pad, sequences.device)
                 for name, kept in (("scores", out.scores), ("logits", out.logits))}
        indices = [[number // copies * beams + beam for beam in found] for number, found in enumerate(out.beam_indices)]
        return GenerateBeamEncoderDecoderOutput(
            sequences=sequences, sequences_scores=torch.tensor(out.sequence_scores).to(sequences.device),
            beam_indices=_padded(indices, -1).to(sequences.device), **steps)

    def _steps(self, kept: list, pad: int, device: torch.device) -> tuple[Tensor, ...] | None:
        """The scores [B, V] of each step, from those of each sequence, [n, V]."""
        if kept[0] is None:
            return None
        found = torch.full((len(kept), max(map(len, kept)), self.target.config.vocab_size), -torch.inf)
        found[:, :, pad] = 0
        for row, scores in zip(found, kept, strict=True):
            row[: len(scores)] = torch.from_numpy(scores)
        return tuple(found.to(device).unbind(1))


def _padded(rows: list[list[int]], pad: int) -> Tensor:
    """The rows as a tensor [B, T] int64."""
    found = torch.full((len(rows), max(map(len, rows))), pad, dtype=torch.int64)
    for row, tokens in zip(found, rows, strict=True):
        row[: len(tokens)] = torch.tensor(tokens, dtype=torch.int64)
    return found


def _rows(tensor: Tensor, mask: Tensor | None, pad: int) -> list[list[int]]:
    """The tokens of each input [B, S], without padding."""
    if tensor.dim() != 2:
        raise UserError(f"input_ids has shape {tuple(tensor.shape)}; give [batch, length]")
    mask = tensor != pad if mask is None else mask.bool()
    if mask.shape != tensor.shape:
        raise UserError(f"attention_mask has shape {tuple(mask.shape)}, input_ids {tuple(tensor.shape)}; make them equal")
    edges = (mask[:, 1:] & ~mask[:, :-1]).sum(1) + mask[:, 0]
    if (bad := (edges > 1).nonzero()).numel():
        raise UserError(f"attention_mask has a gap in row {int(bad[0])}; give one run of ones in each row")
    return [row[kept].tolist() for row, kept in zip(tensor, mask, strict=True)]
