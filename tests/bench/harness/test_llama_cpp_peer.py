"""llama.cpp's T5 decodes what transformers decodes, from the weights that this file's subject writes."""

import dataclasses
import sys

import numpy as np
import pytest
import torch

from foredraft.bench.harness import llama_cpp_peer as peer
from foredraft.bench.harness.geometry import GEOMETRIES, write_checkpoint
from foredraft.bench.harness.methods import Absent, load_peer
from foredraft.bench.harness.step_peers import PEERS
from foredraft.embedded import TARGET
from foredraft.engine.models.checkpoint import read_config

SOURCE = [5, 9, 300, 17, 44, 1] * 30
NEEDS = "llama-cpp-python and gguf are optional"


@pytest.fixture(scope="module", params=["t5-small", "flan-t5-small"])
def tiny(request, tmp_path_factory):
    """ReLU and tied, or gated GELU and a head of its own; rows of 48 do not fit blocks of 32."""
    small = dict(vocab_size=320, d_model=64, d_kv=16, d_ff=48, num_layers=3, num_decoder_layers=2, num_heads=2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(GEOMETRIES, "tiny", GEOMETRIES[request.param] | small)
        return write_checkpoint("tiny", tmp_path_factory.mktemp("tiny"))


@torch.inference_mode()
def shortfalls(folder, tokens: list[int]) -> np.ndarray:
    """How far each token's logit is below the best one of transformers, in standard deviations of the logits."""
    model = load_peer(str(folder), "float32", "cpu")
    given = dict(input_ids=torch.tensor([SOURCE]), decoder_input_ids=torch.tensor([[0, *tokens[:-1]]]))
    logits = model(**given, use_cache=False).logits[0]
    chosen = logits.gather(1, torch.tensor(tokens)[:, None])[:, 0]
    return ((logits.amax(1) - chosen) / logits.std(1)).numpy()


@pytest.mark.parametrize(("stored", "most"), [("F16", 0.02), ("Q8_0", 0.1), ("Q4_0", 1.0)])
def test_it_chooses_the_best_tokens(tiny, stored, most):
    pytest.importorskip("llama_cpp", reason=NEEDS)
    pytest.importorskip("gguf", reason=NEEDS)
    decode = PEERS[f"llama.cpp-{stored.lower()}"](tiny)
    tokens = decode(SOURCE, 24)
    assert len(tokens) == 24 and shortfalls(tiny, tokens).max() < most
    # another source in between, and more room
    decode(SOURCE[1:] * 3, 2)
    assert decode(SOURCE, 24) == tokens


def test_the_embedded_target():
    pytest.importorskip("llama_cpp", reason=NEEDS)
    pytest.importorskip("gguf", reason=NEEDS)
    assert shortfalls(TARGET, PEERS["llama.cpp-f16"](TARGET)(SOURCE, 24)).max() < 0.02


def test_reasons(tiny, monkeypatch):
    config = read_config(tiny)
    for other in ({"max_distance": 64}, {"activation": 3}, {"gated": not config.gated}, {"num_decoder_layers": 4}):
        with pytest.raises(Absent, match="llama.cpp decodes"):
            peer.check(dataclasses.replace(config, **other))
    monkeypatch.setitem(sys.modules, "llama_cpp", None)
    with pytest.raises(Absent, match="pip install"):
        PEERS["llama.cpp-f16"](tiny)
