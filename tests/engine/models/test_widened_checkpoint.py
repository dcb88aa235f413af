"""The files of a widened checkpoint: shards, types, interruptions, and what is refused before work begins."""

import json
import shutil
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from foredraft.engine.models import widened_checkpoint as module
from foredraft.engine.models.geometry import SIZES
from foredraft.engine.models.projection import FILE, read_settings
from foredraft.engine.models.t5_weights import load_weights
from foredraft.engine.models.widened_checkpoint import widen_checkpoint
from foredraft.errors import UserError

TINY = dict(d_model=40, d_kv=8, d_ff=48, num_layers=2, num_decoder_layers=4, num_heads=4)


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    monkeypatch.setitem(SIZES, "tiny", TINY)
    monkeypatch.setitem(SIZES, "less", TINY | {"d_ff": 47})


def tensors(folder):
    return {name: tensor for file in folder.glob("model*.safetensors") for name, tensor in load_file(file).items()}


def test_shards_and_companions(tiny_model_path, tmp_path, monkeypatch):
    widen_checkpoint(tiny_model_path, tmp_path / "one", "tiny")
    monkeypatch.setattr(module, "SHARD_BYTES", 30_000)
    seen = []
    figures = widen_checkpoint(tiny_model_path, tmp_path / "many", "tiny",
                               progress=lambda done, total: seen.append((done, total)))
    files = list((tmp_path / "many").glob("model-*.safetensors"))
    assert figures["files"] == len(files) == len(seen) > 2 and seen[-1][0] == seen[-1][1] == 4 * figures["parameters"]
    assert figures["bytes"] == sum(file.stat().st_size for file in files)
    one, many = tensors(tmp_path / "one"), tensors(tmp_path / "many")
    assert one.keys() == many.keys() and all(torch.equal(one[name], many[name]) for name in one)
    for name in ("tokenizer.json", "generation_config.json"):
        assert (tmp_path / "many" / name).read_bytes() == (tiny_model_path / name).read_bytes()
    assert load_weights(tmp_path / "many").config.d_model == 40


def test_bfloat16(tiny_model_path, tmp_path):
    for dtype in ("float32", "bfloat16"):
        widen_checkpoint(tiny_model_path, tmp_path / dtype, "tiny", dtype)
    single, half = tensors(tmp_path / "float32"), tensors(tmp_path / "bfloat16")
    assert all(torch.equal(tensor.to(torch.bfloat16), half[name]) for name, tensor in single.items())
    assert json.loads((tmp_path / "bfloat16" / "config.json").read_text())["dtype"] == "bfloat16"


def test_an_interrupted_call_goes_on(tiny_model_path, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "SHARD_BYTES", 30_000)
    whole, out = tmp_path / "whole", tmp_path / "out"
    widen_checkpoint(tiny_model_path, whole, "tiny")

    def stop(done, total):
        if done > total / 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        widen_checkpoint(tiny_model_path, out, "tiny", progress=stop)
    # what is not complete is not taken for a checkpoint
    assert not (out / "config.json").exists()
    begun = {file: file.stat().st_mtime_ns for file in out.glob("model-*.safetensors")}
    assert 0 < len(begun) < len(list(whole.glob("model-*.safetensors")))
    for options in (dict(geometry="tiny", seed=1), dict(geometry="tiny", dtype="bfloat16")):
        with pytest.raises(UserError, match="holds a part of a checkpoint of (seed 0, not 1|dtype float32, not bfloat16)"):
            widen_checkpoint(tiny_model_path, out, **options)
    (out / ".model-00001-of-00003.safetensors.host.1").write_text("what a killed process leaves")
    widen_checkpoint(tiny_model_path, out, "tiny")
    assert all(file.stat().st_mtime_ns == time for file, time in begun.items())
    same, files = tensors(whole), tensors(out)
    assert same.keys() == files.keys() and all(torch.equal(same[name], files[name]) for name in same)
    assert read_settings(out / FILE)["geometry"] == "tiny"


def test_what_is_refused(tiny_model_path, tmp_path, monkeypatch):
    def refuse(match, out=tmp_path / "out", path=tiny_model_path, **options):
        with pytest.raises(UserError, match=match) as caught:
            widen_checkpoint(path, out, **({"geometry": "tiny"} | options))
        assert "\n" not in str(caught.value) and not (tmp_path / "out").exists()

    refuse("'flan-t5-huge' is not known; one of t5-small, flan-t5-small", geometry="flan-t5-huge")
    refuse("less has d_ff 47, the target .* has 48", geometry="less")
    refuse("dtype 'int8' is not supported", dtype="int8")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("text")
    refuse("is not empty", out=tmp_path / "full")
    shutil.copytree(tiny_model_path, tmp_path / "model")
    refuse("is not empty", out=tmp_path / "model")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=100_000))
    refuse(r"needs 0.00 GB, and its disk has 0.00 GB; free some space", out=tmp_path / "out")
