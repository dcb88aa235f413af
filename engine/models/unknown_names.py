"""Parts of a checkpoint that the model does not read: tensors are refused, entries of config.json cause a warning."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from foredraft.engine.models.spec import FAMILIES, ModelConfig
from foredraft.errors import UserError
from foredraft.json_file import read_object

# Parts of tensor names that show an adapter, and those that show quantised weights.
_ADAPTERS = ("lora_", "adapter", "prompt_encoder", "ia3_", "base_model.", "modules_to_save", "original_module")
_QUANTISED = (".SCB", ".qweight", ".qzeros", ".scales", ".g_idx", "weight_format", ".absmax", ".quant_map", ".quant_state",
              "weight_scale", "_packed")
# Entries of any config.json that do not affect outputs, or that are generation settings, which engine/arguments.py reads.
_HARMLESS = frozenset("""
    architectures auto_map model_type transformers_version torch_dtype dtype _name_or_path name_or_path tokenizer_class
    is_encoder_decoder is_decoder use_cache output_past dropout_rate initializer_factor classifier_dropout
    gradient_checkpointing torchscript tf_legacy_loss use_bfloat16 return_dict output_attentions output_hidden_states
    id2label label2id problem_type finetuning_task task_specific_params prefix bos_token_id sep_token_id
    chunk_size_feed_forward max_length min_length do_sample early_stopping num_beams num_beam_groups diversity_penalty
    temperature top_k top_p typical_p repetition_penalty length_penalty no_repeat_ngram_size encoder_no_repeat_ngram_size
    bad_words_ids num_return_sequences output_scores return_dict_in_generate forced_bos_token_id forced_eos_token_id
    remove_invalid_values exponential_decay_length_penalty suppress_tokens begin_suppress_tokens max_new_tokens
    min_new_tokens
    """.split())


def check_tensor_names(config: ModelConfig, names: Iterable[str], path: str | Path) -> None:
    """UserError: a checkpoint holds a tensor that the model does not read."""
    family, kind = FAMILIES[config.model_type], config.model_type
    known = {*family.embeddings, family.head, *family.unused}
    known |= {name for parts in family.tensors(config).values() for layer in parts.names for name in layer}
    unexpected = sorted(set(names) - known)
    if not unexpected:
        return
    first, more = unexpected[0], f" and {len(unexpected) - 1} more" if len(unexpected) > 1 else ""
    if any(part in first for part in _ADAPTERS):
        reason = "an adapter's tensor: give the base model and adapter=FOLDER, or merge the adapter into the weights"
    elif any(part in first for part in _QUANTISED):
        reason = "of quantised weights, which are not read: give the checkpoint in float32, float16 or bfloat16"
    elif first.endswith("SelfAttention.relative_attention_bias.weight"):
        reason = (f"a {kind} of config.json's sizes has a relative bias in the first layer alone: correct its model_type, "
                  "such as umt5")
    else:
        reason = f"a {kind} of config.json's sizes has no such tensor: give the checkpoint that config.json belongs to"
    raise UserError(f"{path}: holds {first!r}{more}; {reason}")


def unknown_entries(path: Path) -> list[str]:
    """A warning for each entry of config.json in a checkpoint directory that its family does not read."""
    entries = read_object(path / "config.json")
    known = FAMILIES[entries["model_type"]].entries
    if not known:
        return []
    # an entry that is null, false or empty has no effect anyway
    return [f"{path / 'config.json'}: entry {name!r} is not known and has no effect"
            for name, value in sorted(entries.items())
            if name not in known and name not in _HARMLESS and value not in (None, False, 0, "", [], {})]
