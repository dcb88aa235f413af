"""Checkpoints in pickled files are converted without executing them; types change, adapters are merged."""

import json
import os
import pickle
import shutil

import pytest
import torch
from safetensors.torch import load_file

from foredraft.engine.models import convert as module
from foredraft.engine.models.checkpoint import StoredTensors
from foredraft.engine.models.convert import convert_checkpoint
from foredraft.engine.models.t5_weights import load_weights
from foredraft.errors import UserError


def pickled(source, folder, shards=1, copies=True, **options):
    """A folder as transformers 4 wrote it: pytorch_model.bin, in which tied tensors share a storage."""
    shutil.copytree(source, folder)
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    if copies:
        table = tensors["shared.weight"]
        tensors |= {f"{side}.embed_tokens.weight": table for side in ("encoder", "decoder")}
        tensors.setdefault("lm_head.weight", table)
    names = list(tensors)
    if shards == 1:
        torch.save(tensors, folder / "pytorch_model.bin", **options)
        return folder
    where = {}
    for i in range(shards):
        file = f"pytorch_model-{i + 1:05}-of-{shards:05}.bin"
        torch.save({name: tensors[name] for name in names[i::shards]}, folder / file)
        where |= dict.fromkeys(names[i::shards], file)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    return folder


def same(one, other):
    with StoredTensors(one) as a, StoredTensors(other) as b:
        return set(a.names) == set(b.names) and all(torch.equal(a.raw(name), b.raw(name)) for name in a.names)


@pytest.mark.parametrize(("shards", "options"), [
    (1, {}), (3, {}), (1, {"_use_new_zipfile_serialization": False}), (1, {"copies": False})])
def test_pickled_weights_become_the_same_safetensors(tiny_checkpoint, tmp_path, shards, options):
    source = pickled(tiny_checkpoint, tmp_path / "bin", shards, **options)
    seen = []
    figures = convert_checkpoint(source, tmp_path / "out", progress=lambda done, total: seen.append((done, total)))
    assert same(tmp_path / "out", tiny_checkpoint)
    assert json.loads((tmp_path / "out" / "config.json").read_text()) == json.loads((source / "config.json").read_text())
    assert figures["tensors"] == len(seen) and figures["dtype"] == "float32" and figures["files"] == 1
    assert seen[-1][0] == seen[-1][1] and all(a[0] < b[0] for a, b in zip(seen, seen[1:], strict=False))
    load_weights(tmp_path / "out")


def test_large_checkpoints_are_written_in_shards(tiny_checkpoint, tmp_path, monkeypatch):
    source, out = pickled(tiny_checkpoint, tmp_path / "bin"), tmp_path / "out"
    monkeypatch.setattr(module, "SHARD_BYTES", 20_000)
    assert convert_checkpoint(source, out)["files"] == len(list(out.glob("model-*.safetensors"))) > 2
    assert all(file.stat().st_size < 24_000 for file in out.glob("model-*.safetensors"))
    assert same(out, tiny_checkpoint)
    # once more, in one file: nothing of the shards is left
    monkeypatch.setattr(module, "SHARD_BYTES", 1e9)
    convert_checkpoint(source, out)
    assert [file.name for file in out.glob("*.safetensors*")] == ["model.safetensors"] and same(out, tiny_checkpoint)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_another_type(tiny_checkpoint, tmp_path, dtype):
    figures = convert_checkpoint(tiny_checkpoint, tmp_path / "out", dtype)
    before, after = load_file(tiny_checkpoint / "model.safetensors"), load_file(tmp_path / "out" / "model.safetensors")
    assert all(torch.equal(after[name], tensor.to(getattr(torch, dtype))) for name, tensor in before.items())
    assert figures["dtype"] == json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == dtype
    load_weights(tmp_path / "out")


def test_a_weight_too_large_for_float16(tiny_checkpoints, tmp_path):
    source = pickled(tiny_checkpoints["v1.0"], tmp_path / "bin")
    tensors = torch.load(source / "pytorch_model.bin", weights_only=True)
    tensors["decoder.block.0.layer.2.DenseReluDense.wo.weight"][0, 0] = 1e5
    torch.save(tensors, source / "pytorch_model.bin")
    with pytest.raises(UserError, match="decoder.block.0.layer.2.DenseReluDense.wo.weight holds values that are too large"):
        convert_checkpoint(source, tmp_path / "out", "float16")
    # what is not complete is not taken for a checkpoint
    assert not (tmp_path / "out" / "config.json").exists()


def test_tokenizer_files_come_along(tiny_model_path, tmp_path):
    source = pickled(tiny_model_path, tmp_path / "bin")
    (source / "spiece.model").write_bytes(b"pieces")
    (source / "README.md").write_text("text")
    convert_checkpoint(source, tmp_path / "out")
    assert {file.name for file in (tmp_path / "out").iterdir()} == {
        "config.json", "generation_config.json", "model.safetensors", "spiece.model", "tokenizer.json"}


def test_an_adapter_is_merged(tiny_checkpoints, tmp_path):
    peft = pytest.importorskip("peft")
    from transformers import T5ForConditionalGeneration

    base = T5ForConditionalGeneration.from_pretrained(tiny_checkpoints["v1.0"])
    model = peft.get_peft_model(base, peft.LoraConfig(target_modules=["q", "wo"], init_lora_weights=False))
    model.save_pretrained(tmp_path / "adapter")
    source = pickled(tiny_checkpoints["v1.0"], tmp_path / "bin")
    convert_checkpoint(source, tmp_path / "out", adapter=tmp_path / "adapter")
    merged = model.merge_and_unload().state_dict()
    found = load_file(tmp_path / "out" / "model.safetensors")
    assert all(torch.equal(tensor, merged[name]) for name, tensor in found.items())
    assert not same(tmp_path / "out", tiny_checkpoints["v1.0"])


def refuse(source, out, match):
    with pytest.raises(UserError, match=match) as caught:
        convert_checkpoint(source, out)
    assert "\n" not in str(caught.value)
    assert not out.exists() or not list(out.iterdir())


class Malicious:
    """A pickle of this object makes a folder when it is executed."""

    def __init__(self, folder):
        self.folder = str(folder)

    def __reduce__(self):
        return os.mkdir, (self.folder,)


@pytest.mark.parametrize("write", [
    lambda found, path: torch.save(found, path),
    lambda found, path: torch.save(found, path, _use_new_zipfile_serialization=False),
    lambda found, path: path.write_bytes(pickle.dumps(found))])
def test_code_in_a_pickle_is_never_executed(tiny_checkpoints, tmp_path, write):
    source, mark = pickled(tiny_checkpoints["v1.0"], tmp_path / "bin"), tmp_path / "executed"
    write({"shared.weight": Malicious(mark)}, source / "pytorch_model.bin")
    refuse(source, tmp_path / "out", "pytorch_model.bin: holds code or objects besides tensors, which are never loaded")
    assert not mark.exists()


def test_files_that_are_no_checkpoint(tiny_checkpoints, tmp_path):
    source, out = pickled(tiny_checkpoints["v1.0"], tmp_path / "bin"), tmp_path / "out"
    whole = (source / "pytorch_model.bin").read_bytes()
    for content in (b"", b"text", whole[: len(whole) // 2], b"PK\x03\x04"):
        (source / "pytorch_model.bin").write_bytes(content)
        refuse(source, out, "pytorch_model.bin: not a readable checkpoint")
    for found in ([torch.ones(2)], {"step": 3}):
        torch.save(found, source / "pytorch_model.bin")
        refuse(source, out, "pytorch_model.bin: holds no table of tensors")
    (source / "pytorch_model.bin").unlink()
    refuse(source, out, "has neither model.safetensors nor pytorch_model.bin")
    sharded = pickled(tiny_checkpoints["v1.0"], tmp_path / "shards", 3)
    (sharded / "pytorch_model-00002-of-00003.bin").unlink()
    refuse(sharded, out, "shard pytorch_model-00002-of-00003.bin is missing")
    (sharded / "pytorch_model.bin.index.json").write_text("[]")
    refuse(sharded, out, "pytorch_model.bin.index.json: not a readable index of shards")


def test_tensors_that_are_missing_or_of_another_model(tiny_checkpoints, tmp_path):
    source, out = pickled(tiny_checkpoints["v1.0"], tmp_path / "bin"), tmp_path / "out"
    tensors = torch.load(source / "pytorch_model.bin", weights_only=True)
    torch.save(tensors | {"classifier.weight": torch.ones(2)}, source / "pytorch_model.bin")
    refuse(source, out, "holds 'classifier.weight'; a t5 of config.json's sizes has no such tensor")
    torch.save({name: tensor for name, tensor in tensors.items() if "final" not in name}, source / "pytorch_model.bin")
    refuse(source, out, "tensor 'decoder.final_layer_norm.weight' is missing")
