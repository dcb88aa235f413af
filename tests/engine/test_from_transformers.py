"""A transformers model in memory decodes as its checkpoint does, on its own memory where the types agree."""

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

import foredraft
from foredraft.errors import UserError

TEXTS = ["w5 w9 w33 w5 w9 w40", "w7 w8"]


def theirs(folder, dtype=torch.float32):
    from transformers import AutoModelForSeq2SeqLM

    return AutoModelForSeq2SeqLM.from_pretrained(folder, dtype=dtype).eval()


@pytest.fixture
def tokenizer(tiny_model_path):
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(tokenizer_file=str(tiny_model_path / "tokenizer.json"), eos_token="</s>")


@pytest.mark.parametrize("options", [
    {}, {"dtype": "bfloat16"}, {"weights": "int8"}, {"drafter": None}, {"drafter": "self:1"}])
def test_it_decodes_as_the_checkpoint(tiny_model_path, tokenizer, options):
    model = foredraft.from_transformers(theirs(tiny_model_path), tokenizer, **options)
    out, expected = (each.generate(TEXTS, max_new_tokens=20) for each in (model, foredraft.load(tiny_model_path, **options)))
    assert out.token_ids == expected.token_ids and out.texts == expected.texts
    assert model.describe() == foredraft.load(tiny_model_path, **options).describe() | {
        "model": "the model in memory", "hash": None}


@pytest.mark.parametrize(("kind", "shared"), [
    ("v1.0", ("encoder_out", "encoder_ff_in", "encoder_ff_out")), ("v1.1", ("encoder_out", "encoder_ff_out"))])
def test_memory_is_shared(tiny_checkpoints, kind, shared):
    model = theirs(tiny_checkpoints[kind])
    weights = foredraft.from_transformers(model).target.weights
    assert weights.embedding.ctypes.data == model.shared.weight.data_ptr()
    names = {"encoder_out": "0.SelfAttention.o", "encoder_ff_in": "1.DenseReluDense.wi",
             "encoder_ff_out": "1.DenseReluDense.wo"}
    for name in shared:
        for i, tensor in enumerate(getattr(weights, name)):
            own = model.get_parameter(f"encoder.block.{i}.layer.{names[name]}.weight")
            assert tensor.data_ptr() == own.data_ptr() and not tensor.requires_grad
    # another type is copied
    narrow = foredraft.from_transformers(model, dtype="bfloat16").target.weights
    assert narrow.embedding.dtype == np.uint16 and isinstance(narrow.encoder_out, torch.Tensor)
    assert narrow.tied == weights.tied == (kind == "v1.0")


def test_a_model_in_bfloat16_shares_too(tiny_checkpoints):
    model = theirs(tiny_checkpoints["v1.0"], torch.bfloat16)
    weights = foredraft.from_transformers(model, dtype="bfloat16").target.weights
    assert weights.stored == "bf16" and weights.embedding.ctypes.data == model.shared.weight.data_ptr()


def test_settings_come_from_its_generation_config(tiny_model_path, tokenizer):
    model = theirs(tiny_model_path)
    model.generation_config.max_new_tokens, model.generation_config.num_beams = 3, 4
    out = foredraft.from_transformers(model, tokenizer).generate(TEXTS[0])
    assert len(out.token_ids[0]) == 3
    assert out.beam_indices[0] is not None and len(out.beam_indices[0]) == 3


def test_tokenizers_of_any_kind(tiny_model_path, tokenizer):
    from transformers import ByT5Tokenizer

    model, plain = theirs(tiny_model_path), Tokenizer.from_file(str(tiny_model_path / "tokenizer.json"))
    plain.enable_truncation(3)
    for given in (tokenizer, plain):
        assert foredraft.from_transformers(model, given).tokenizer.encode("w5 w9 w33").ids == [5, 9, 33, 1]
    assert plain.truncation["max_length"] == 3
    ours, byt5 = foredraft.from_transformers(model, ByT5Tokenizer()).tokenizer, ByT5Tokenizer()
    assert ours.encode("\u00e9<extra_id_3>").ids == byt5("\u00e9<extra_id_3>").input_ids
    with pytest.raises(UserError, match="the tokenizer is of type str; give a fast tokenizer"):
        foredraft.from_transformers(model, "t5-small")
    without = foredraft.from_transformers(model)
    assert without.generate([[5, 9, 1]], max_new_tokens=3).texts == [None]


def test_a_trained_drafter_needs_the_folder_that_it_belongs_to(tiny_model_path):
    with pytest.raises(UserError, match="lstm: a trained drafter belongs to a checkpoint's folder") as caught:
        foredraft.from_transformers(theirs(tiny_model_path), drafter="lstm")
    assert "\n" not in str(caught.value)


def test_models_that_are_refused(tiny_model_path):
    from transformers import BartConfig, BartForConditionalGeneration

    bart = BartForConditionalGeneration(BartConfig(
        vocab_size=30, d_model=8, encoder_layers=1, decoder_layers=1, encoder_attention_heads=1, decoder_attention_heads=1,
        encoder_ffn_dim=8, decoder_ffn_dim=8))
    with pytest.raises(UserError, match="the model in memory: model_type 'bart' is an encoder-decoder of another family"):
        foredraft.from_transformers(bart)
    with pytest.raises(UserError, match="the model is of type PosixPath; .* a path to foredraft.load"):
        foredraft.from_transformers(tiny_model_path)
    peft = pytest.importorskip("peft")
    adapted = peft.get_peft_model(theirs(tiny_model_path), peft.LoraConfig(target_modules=["q"]))
    with pytest.raises(UserError, match="the model in memory: holds 'base_model.* an adapter's tensor"):
        foredraft.from_transformers(adapted)
    merged = foredraft.from_transformers(adapted.merge_and_unload())
    assert len(merged.generate([[5, 1]], max_new_tokens=3).token_ids[0]) == 3
