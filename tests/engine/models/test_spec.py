"""A family's spec: every tensor of a checkpoint has one place in the engine, and nothing in a checkpoint is ignored."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

import foredraft
from foredraft.engine.models.spec import NO_END_TOKEN, ModelConfig, tensor_parts
from foredraft.engine.models.t5_cuda_weights import load_cuda_weights
from foredraft.engine.models.t5_weights import load_weights
from foredraft.errors import UserError

LOADERS = [load_weights, lambda path: load_cuda_weights(path, "cpu")]
BIAS = "decoder.block.{}.layer.0.SelfAttention.relative_attention_bias.weight"


@pytest.fixture
def copy(tiny_checkpoint, tmp_path):
    return shutil.copytree(tiny_checkpoint, tmp_path / "model")


def add(folder, tensors):
    file = folder / "model.safetensors"
    save_file(load_file(file) | tensors, file, metadata={"format": "pt"})


def configured(folder, **entries):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))
    return folder


def test_the_parts_are_the_tensors_of_the_file(tiny_checkpoint):
    tensors = load_file(tiny_checkpoint / "model.safetensors")
    config, tied = ModelConfig.from_json(tiny_checkpoint / "config.json"), "lm_head.weight" not in tensors
    parts = tensor_parts(config, tied)
    read = {name: part.shape for part in parts.values() for layer in part.names for name in layer}
    assert read == {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    assert load_weights(tiny_checkpoint).parameters() == sum(tensor.numel() for tensor in tensors.values())


@pytest.mark.parametrize("load", LOADERS)
def test_a_tensor_that_nothing_reads_is_refused(copy, load):
    add(copy, {BIAS.format(1): torch.zeros(8, 3)})
    with pytest.raises(UserError, match=r"holds 'decoder.block.1.*attention_bias.weight'; .* such as umt5"):
        load(copy)
    add(copy, {"decoder.block.0.layer.0.SelfAttention.q.lora_A.weight": torch.zeros(4, 32)})
    with pytest.raises(UserError, match="lora_A.weight' and 1 more; an adapter's tensor: .* adapter=FOLDER"):
        load(copy)


@pytest.mark.parametrize("load", LOADERS)
def test_layers_beyond_those_of_config_json_are_refused(copy, load):
    with pytest.raises(UserError, match=r"holds 'encoder.block.1"):
        load(configured(copy, num_layers=1))


@pytest.mark.parametrize("load", LOADERS)
def test_what_old_checkpoints_hold_besides_is_accepted(copy, load):
    """Copies of the embedding, and a bias of cross-attention that no implementation reads."""
    shared = load_file(copy / "model.safetensors")["shared.weight"]
    cross = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"
    copies = {f"{side}.embed_tokens.weight": shared.clone() for side in ("encoder", "decoder")}
    add(copy, copies | {cross: torch.zeros(8, 3)})
    load(copy)
    add(copy, {"decoder.embed_tokens.weight": shared + 1})
    with pytest.raises(UserError, match="decoder.embed_tokens.weight differs from shared.weight"):
        load(copy)


@pytest.mark.parametrize(("entries", "message"), [
    (dict(eos_token_id=list(range(99))), "eos_token_id lists 99 tokens; keep at most"),
    (dict(dense_act_fn="silu"), "dense_act_fn 'silu' contradicts feed_forward_proj"),
    (dict(is_gated_act=None), "is_gated_act None contradicts feed_forward_proj"),
    (dict(d_ff="48"), "d_ff is '48'; give a whole number of 1 to"),
    (dict(num_heads=0), "num_heads is 0"),
    (dict(quantization_config={"quant_method": "bitsandbytes", "load_in_8bit": True}),
     r"quantization_config \(bitsandbytes\): quantised weights are not read"),
])
def test_entries_that_cannot_be_honoured(copy, entries, message):
    with pytest.raises(UserError, match=message) as caught:
        load_weights(configured(copy, **entries))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("load", LOADERS)
@pytest.mark.parametrize("name", ["SCB", "qweight", "weight.absmax", "weight_scale"])
def test_tensors_of_quantised_weights_are_refused(copy, load, name):
    add(copy, {f"decoder.block.0.layer.0.SelfAttention.q.{name}": torch.zeros(4)})
    with pytest.raises(UserError, match=f"holds .*SelfAttention.q.{name}'; of quantised weights"):
        load(copy)


@pytest.mark.parametrize("load", LOADERS)
def test_weights_in_whole_numbers_are_refused(copy, load):
    add(copy, {"decoder.block.0.layer.0.SelfAttention.q.weight": torch.zeros(24, 32, dtype=torch.int8)})
    with pytest.raises(UserError, match=r"SelfAttention.q.weight is stored in int8: quantised weights are not read"):
        load(copy)


@pytest.mark.parametrize(("kind", "what"), [
    ("longt5", "a LongT5, whose local attention"), ("switch_transformers", "a Switch Transformer, whose mixture of experts"),
    ("t5gemma", "a T5Gemma"), ("codet5p", "a CodeT5\\+ of 2 billion"), ("bart", "an encoder-decoder of another family")])
def test_other_families_are_refused_by_name(copy, kind, what):
    with pytest.raises(UserError, match=f"model_type '{kind}' is {what}.*; give a T5, T5 v1.1, FLAN-T5") as caught:
        load_weights(configured(copy, model_type=kind, is_encoder_decoder=True))
    assert "\n" not in str(caught.value)


def test_unknown_entries_are_warned_of_by_name(tiny_model_path, tmp_path):
    folder = shutil.copytree(tiny_model_path, tmp_path / "model")
    assert foredraft.load(folder, drafter=None).warnings == []
    assert foredraft.load(drafter=None).warnings == []
    model = foredraft.load(configured(folder, local_radius=127, tie_encoder_decoder=False, rope_theta=1e4), drafter=None)
    assert [warning.partition(": ")[2] for warning in model.warnings] == [
        "entry 'local_radius' is not known and has no effect", "entry 'rope_theta' is not known and has no effect"]
    out = model.generate([[5, 9, 1]], max_new_tokens=2)
    assert sum("local_radius" in warning for warning in out.warnings) == 1


def test_a_text_with_a_token_that_the_model_lacks(tiny_model_path, tmp_path):
    """Sentinels that the tokenizer has and the model was not trained with would read beyond the embedding."""
    folder = shutil.copytree(tiny_model_path, tmp_path / "model")
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.add_special_tokens(["<extra_id_0>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    with pytest.raises(UserError, match="input 1 holds '<extra_id_0>', token 100, which the model lacks"):
        foredraft.load(folder, drafter=None).generate("w5 <extra_id_0>")


def test_a_single_end_token_in_a_list(copy):
    assert load_weights(configured(copy, eos_token_id=[5])).config.end_token == 5


def test_a_model_without_an_end_token_writes_up_to_the_limit(tiny_model_path, tmp_path):
    plain, source = foredraft.load(tiny_model_path, drafter=None), [[5, 9, 33, 5, 9, 40, 1]]
    (written,) = plain.generate(source, max_new_tokens=30).token_ids
    folder = configured(shutil.copytree(tiny_model_path, tmp_path / "model"), eos_token_id=None)
    # it ends at no token, not even at one that the other model ends at
    for model in (foredraft.load(folder, drafter=None), foredraft.load(folder, drafter="lookup")):
        assert model.target.end_token == NO_END_TOKEN
        out = model.generate(source, max_new_tokens=30)
        assert len(out.token_ids[0]) == 30 and out.token_ids[0][: len(written)] == written
        # a source that is cut gets no end token
        assert model.generate([[5] * 40], max_source=9, max_new_tokens=4).token_ids == model.generate(
            [[5] * 9], max_new_tokens=4).token_ids
