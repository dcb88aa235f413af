"""LoRA adapters: the merged weights equal PEFT's, and what cannot be merged is refused by name."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

import foredraft
from foredraft.engine.models.adapter import open_checkpoint
from foredraft.engine.models.checkpoint import read_config
from foredraft.engine.models.t5 import T5
from foredraft.engine.models.t5_cuda_weights import load_cuda_weights
from foredraft.engine.models.t5_weights import load_weights
from foredraft.errors import UserError

peft = pytest.importorskip("peft")
SOURCE, TOKENS = [5, 9, 33, 5, 9, 40, 77, 12, 1], torch.tensor([[0, 9, 3, 27, 5]])


def adapted(base, folder, **settings):
    """Save a random adapter of `base` to `folder`; returns transformers' model with it."""
    from transformers import T5ForConditionalGeneration

    config = peft.LoraConfig(task_type="SEQ_2_SEQ_LM", **{"target_modules": ["q", "v"], "r": 4, "lora_alpha": 7} | settings)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = peft.get_peft_model(T5ForConditionalGeneration.from_pretrained(base), config).eval()
        for name, parameter in model.named_parameters():
            if "lora_" in name or "modules_to_save" in name:
                parameter.data.normal_(std=0.3)
    model.save_pretrained(folder)
    return model


def check(base, folder, model):
    ours = T5(load_weights(base, adapter=folder))
    with torch.inference_mode():
        expected = model(input_ids=torch.tensor([SOURCE]), decoder_input_ids=TOKENS).logits[0]
        ours.reserve(1, 5, 4, len(SOURCE))
        ours.admit([0], [torch.tensor(SOURCE)])
        logits = ours.logits(ours.decode(TOKENS, torch.arange(5)[None].contiguous()))[0]
    assert torch.allclose(logits, expected, atol=1e-4)


@pytest.mark.parametrize("settings", [
    {}, {"use_rslora": True}, {"target_modules": "all-linear", "r": 3},
    {"rank_pattern": {"q": 2, "decoder.block.1.layer.1.EncDecAttention.v": 5}, "alpha_pattern": {r"encoder.*\.v": 1}},
    {"fan_in_fan_out": True}, {"modules_to_save": ["lm_head", "final_layer_norm"]}, {"target_modules": ["wo", "lm_head"]},
    {"layers_to_transform": [1], "lora_dropout": 0.5}])
def test_it_equals_peft(tiny_checkpoint, tmp_path, settings):
    model = adapted(tiny_checkpoint, tmp_path, **settings)
    check(tiny_checkpoint, tmp_path, model)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_merged_weights_are_those_of_peft_bit_for_bit(tiny_checkpoints, tmp_path, dtype):
    from transformers import T5ForConditionalGeneration

    base = tmp_path / "base"
    T5ForConditionalGeneration.from_pretrained(tiny_checkpoints["v1.0"]).to(dtype).save_pretrained(base)
    merged = adapted(base, tmp_path / "adapter", target_modules="all-linear").merge_and_unload().state_dict()
    with open_checkpoint(base, read_config(base), tmp_path / "adapter") as tensors:
        # transformers keeps wo in float32
        for name in (name for name in tensors.names if not name.endswith(".wo.weight")):
            assert torch.equal(tensors.raw(name), merged[name]) and tensors.raw(name).dtype == dtype


def test_text_with_an_adapter_differs_and_drafts_do_not_change_it(tiny_model_path, tmp_path):
    adapted(tiny_model_path, tmp_path, target_modules="all-linear")
    base = foredraft.load(tiny_model_path, drafter=None).generate(["w5 w9 w33"], max_new_tokens=20)
    plain = foredraft.load(tiny_model_path, drafter=None, adapter=tmp_path).generate(["w5 w9 w33"], max_new_tokens=20)
    drafted = foredraft.load(tiny_model_path, adapter=str(tmp_path)).generate(["w5 w9 w33"], max_new_tokens=20)
    assert base.texts != plain.texts == drafted.texts


def test_a_device_merges_too(tiny_checkpoint, tmp_path):
    adapted(tiny_checkpoint, tmp_path)
    plain, merged = load_cuda_weights(tiny_checkpoint, "cpu"), load_cuda_weights(tiny_checkpoint, "cpu", adapter=tmp_path)
    with open_checkpoint(tiny_checkpoint, read_config(tiny_checkpoint), tmp_path) as tensors:
        q = tensors.raw("decoder.block.2.layer.0.SelfAttention.q.weight")
    assert torch.equal(merged.qkv[2, : len(q)], q) and not torch.equal(plain.qkv, merged.qkv)


@pytest.fixture
def adapter(tiny_checkpoints, tmp_path):
    adapted(tiny_checkpoints["v1.0"], tmp_path / "adapter")
    return tmp_path / "adapter"


def refuse(base, folder, match):
    with pytest.raises(UserError, match=match) as caught:
        load_weights(base, adapter=folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("entries", "message"), [
    ({"peft_type": "IA3"}, "peft_type 'IA3' is not supported"), ({"use_dora": True}, "use_dora True is not supported"),
    ({"peft_type": "PREFIX_TUNING"}, "peft_type 'PREFIX_TUNING'"), ({"bias": "all"}, "bias 'all' is not supported"),
    ({"init_lora_weights": "pissa_niter_16"}, "init_lora_weights 'pissa_niter_16' changes the base weights"),
    ({"layer_replication": [[0, 2]]}, "layer_replication .* is not supported"), ({"news": 3}, "news 3 is not supported"),
    ({"r": 0}, "r is 0, which is not a number above 0"), ({"lora_alpha": "16"}, "lora_alpha is '16', which is not a number"),
    ({"rank_pattern": {"q": -1}}, r"rank_pattern\['q'\] is -1"),
    ({"alpha_pattern": ["q"]}, r"alpha_pattern \['q'\] is not an object"),
    ({"rank_pattern": {"(q": 4}}, r"rank_pattern '\(q' is no regular expression")])
def test_other_kinds_are_refused_by_name(tiny_checkpoints, adapter, entries, message):
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))
    refuse(tiny_checkpoints["v1.0"], adapter, f"adapter_config.json: {message}")


@pytest.mark.parametrize("name", [
    "base_model.model.shared.lora_embedding_A", "base_model.model.shared.weight", "base_model.model.encoder.lora_A.weight",
    "base_model.model.decoder.block.0.layer.0.SelfAttention.q.lora_magnitude_vector", "other.weight",
    "base_model.model.decoder.block.0.layer.0.SelfAttention.q.lora_B.bias"])
def test_tensors_that_cannot_be_merged_are_refused_by_name(tiny_checkpoints, adapter, name):
    file = adapter / "adapter_model.safetensors"
    save_file(load_file(file) | {name: torch.zeros(4, 4)}, file)
    refuse(tiny_checkpoints["v1.0"], adapter, f"holds '{name}', which cannot be merged")


def test_an_adapter_of_another_model(tiny_checkpoints, adapter):
    file = adapter / "adapter_model.safetensors"
    name = "base_model.model.decoder.block.0.layer.0.SelfAttention.q.lora_A.weight"
    save_file(load_file(file) | {name: torch.zeros(4, 5)}, file)
    refuse(tiny_checkpoints["v1.0"], adapter, r"adapter of decoder.block.0.layer.0.SelfAttention.q is \(24, 4\) x \(4, 5\)")
    save_file(load_file(file) | {name: torch.zeros(4)}, file)
    refuse(tiny_checkpoints["v1.0"], adapter, r"is \(24, 4\) x \(4,\), the weight is")


def test_files_of_an_adapter_that_are_missing(tiny_checkpoints, adapter, tmp_path):
    base = tiny_checkpoints["v1.0"]
    broken = shutil.copytree(adapter, tmp_path / "broken")
    (broken / "adapter_model.safetensors").rename(broken / "adapter_model.bin")
    refuse(base, broken, "adapter_model.safetensors is missing, and adapter_model.bin is pickled")
    (broken / "adapter_config.json").write_text("{")
    refuse(base, broken, "adapter_config.json: not readable as JSON")
    refuse(base, base, "adapter_config.json is missing; give the folder of an adapter")
    with pytest.raises(UserError, match="no such directory; give the adapter's directory"):
        foredraft.load(base, adapter=tmp_path / "nowhere" / "at")
