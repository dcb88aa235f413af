"""Random checkpoints of real sizes: the tensors of transformers' own models, readable by both."""

import json

import pytest
import torch

from foredraft.bench.harness.geometry import GEOMETRIES, tensor_shapes, write_checkpoint
from foredraft.engine.models.checkpoint import safetensors_files
from foredraft.engine.models.t5_weights import load_weights
from foredraft.errors import UserError


@pytest.mark.parametrize("name", GEOMETRIES)
def test_tensors_are_those_of_transformers(name):
    from transformers import T5Config, T5ForConditionalGeneration

    with torch.device("meta"):
        model = T5ForConditionalGeneration(T5Config(**GEOMETRIES[name]))
    copies = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight")
    tied = (*copies, "lm_head.weight") if GEOMETRIES[name]["tie_word_embeddings"] else copies
    expected = {key: tuple(tensor.shape) for key, tensor in model.state_dict().items() if key not in tied}
    assert tensor_shapes(GEOMETRIES[name]) == expected


def test_the_published_sizes():
    parameters = {name: sum(torch.Size(shape).numel() for shape in tensor_shapes(config).values())
                  for name, config in GEOMETRIES.items()}
    millions = {name: round(count / 1e6) for name, count in parameters.items()}
    assert millions == {"t5-small": 61, "flan-t5-small": 77, "flan-t5-base": 248, "flan-t5-large": 783, "flan-t5-xl": 2850}


@pytest.fixture
def tiny(monkeypatch):
    small = dict(vocab_size=64, d_model=32, d_kv=16, d_ff=48, num_layers=2, num_decoder_layers=2, num_heads=2)
    monkeypatch.setitem(GEOMETRIES, "tiny", GEOMETRIES["flan-t5-base"] | small)
    return "tiny"


def test_shards_load(tiny, tmp_path, monkeypatch):
    from foredraft.bench.harness import geometry

    monkeypatch.setattr(geometry, "SHARD_BYTES", 20_000)
    write_checkpoint(tiny, tmp_path, torch.bfloat16)
    assert len(safetensors_files(tmp_path)) > 2
    assert load_weights(tmp_path).stored == "bf16"
    assert json.loads((tmp_path / "config.json").read_text())["d_ff"] == 48


def test_an_unknown_geometry(tmp_path):
    with pytest.raises(UserError, match="'flan-t5-huge' is not known; one of t5-small"):
        write_checkpoint("flan-t5-huge", tmp_path)
