"""Checkpoints: sharded equals single, and every refusal names what is wrong and what to do."""

import json
import shutil

import numpy as np
import pytest
import torch

from foredraft.engine.models import t5_weights
from foredraft.engine.models.checkpoint import weights_hash
from foredraft.engine.models.hub import find_checkpoint
from foredraft.engine.models.t5_weights import load_weights
from foredraft.errors import UserError


@pytest.fixture
def copy(tiny_checkpoint, tmp_path):
    return shutil.copytree(tiny_checkpoint, tmp_path / "model")


def test_sharded_equals_single(tiny_checkpoint, tmp_path):
    from safetensors.torch import load_file, save_file

    tensors = load_file(tiny_checkpoint / "model.safetensors")
    shutil.copy(tiny_checkpoint / "config.json", tmp_path)
    names, where = sorted(tensors), {}
    for shard in range(3):
        file = f"model-0000{shard + 1}-of-00003.safetensors"
        part = {name: tensors[name].contiguous() for name in names[shard::3]}
        save_file(part, tmp_path / file, metadata={"format": "pt"})
        where |= dict.fromkeys(part, file)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    one, many = load_weights(tiny_checkpoint), load_weights(tmp_path)
    for name in ("embedding", "qkv", "ff_in", "ff_out", "cross_q", "head", "norms", "encoder_qkv"):
        assert np.array_equal(getattr(one, name), getattr(many, name))
    assert weights_hash(tmp_path) == weights_hash(tiny_checkpoint)
    (tmp_path / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(UserError, match="shard model-00002-of-00003.safetensors is missing"):
        load_weights(tmp_path)


def test_the_hash_sees_one_changed_weight(copy):
    from safetensors.torch import load_file, save_file

    before = weights_hash(copy)
    tensors = load_file(copy / "model.safetensors")
    tensors["shared.weight"][3, 4] += 1
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    assert weights_hash(copy) != before


def test_a_bfloat16_checkpoint_loads_as_either(copy):
    from safetensors.torch import load_file, save_file

    tensors = {name: t.bfloat16() for name, t in load_file(copy / "model.safetensors").items()}
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    wide, narrow = load_weights(copy, weights="fp32"), load_weights(copy)
    assert (wide.stored, narrow.stored, narrow.dtype) == ("fp32", "bf16", torch.float32)
    assert np.array_equal((narrow.qkv.astype(np.uint32) << 16).view(np.float32), wide.qkv)
    assert np.array_equal(narrow.embedding, wide.embedding)
    assert np.array_equal(load_weights(copy, "bfloat16").qkv, narrow.qkv)


def test_a_float32_checkpoint_stays_as_it_is_unless_asked(copy):
    assert load_weights(copy).stored == "fp32"
    assert load_weights(copy, weights="int8").head.dtype == np.int8


def test_the_fastest_type_of_the_encoder(monkeypatch):
    features = set()
    monkeypatch.setattr(t5_weights, "has_cpu_feature", features.__contains__)
    assert [t5_weights.fastest_dtype(stored) for stored in (None, "bf16", "int8", "int4")] == [
        "float32", "float32", "int8", "int8"]
    for feature in ("avx512bf16", "amx-bf16"):
        features.add(feature)
        assert {t5_weights.fastest_dtype(stored) for stored in (None, "int8")} == {"bfloat16"}
        features.clear()


def refuse(path, match, **options):
    with pytest.raises(UserError, match=match) as caught:
        load_weights(find_checkpoint(path), **options)
    assert "\n" not in str(caught.value)


def test_refusals(copy, tmp_path):
    refuse(tmp_path / "nowhere" / "at" / "all", "no such directory")
    refuse(copy, "float16", dtype="float16")
    refuse(copy, "weights 'int3' is not supported; use one of fp32, bf16, int8, int4", weights="int3")
    config = json.loads((copy / "config.json").read_text())

    def rewrite(**change):
        kept = {key: value for key, value in (config | change).items() if value is not None}
        (copy / "config.json").write_text(json.dumps(kept))

    rewrite(model_type="gpt2", is_encoder_decoder=False)
    refuse(copy, "model_type 'gpt2' is no encoder-decoder")
    rewrite(model_type="bart")
    refuse(copy, "encoder-decoder of another family")
    rewrite(d_kv=None)
    refuse(copy, "key 'd_kv' is missing")
    rewrite(feed_forward_proj="swish")
    refuse(copy, "feed_forward_proj 'swish'")
    rewrite(d_ff=47)
    refuse(copy, r"wi.*config.json says \(47, 32\)")
    rewrite(num_layers=5)
    refuse(copy, "encoder.block.2.layer.0.layer_norm.weight' is missing")
    (copy / "config.json").write_text("{")
    refuse(copy, "config.json: not readable as JSON")
    (copy / "config.json").unlink()
    refuse(copy, "config.json is missing")


def test_refused_weight_files(copy):
    (copy / "model.safetensors").write_bytes((copy / "model.safetensors").read_bytes()[:1000])
    refuse(copy, "not a readable safetensors file")
    (copy / "model.safetensors").unlink()
    refuse(copy, "model.safetensors is missing")
    (copy / "pytorch_model.bin").write_bytes(b"pickle")
    refuse(copy, "only pickled weights, which are never loaded; run: foredraft convert")
