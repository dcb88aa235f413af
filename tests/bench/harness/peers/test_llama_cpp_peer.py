"""llama.cpp's T5 decodes what transformers decodes, from the GGUF that the peer writes."""

import dataclasses
import sys

import pytest
from peer_tokens import SOURCE, shortfall, tiny_checkpoint

from foredraft.bench.harness.methods import Absent
from foredraft.bench.harness.peers import llama_cpp_peer as peer
from foredraft.bench.harness.peers.step_peers import PEERS
from foredraft.embedded import TARGET
from foredraft.engine.models.checkpoint import read_config


@pytest.fixture(scope="module", params=["t5-small", "flan-t5-small"])
def tiny(request, tmp_path_factory):
    """ReLU and a tied head, or gated GELU and a head of its own."""
    return tiny_checkpoint(request.param, tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def installed():
    for package in ("llama_cpp", "gguf"):
        pytest.importorskip(package, reason=f"{package} is optional")


@pytest.mark.parametrize(("stored", "most"), [("F16", 0.02), ("Q8_0", 0.1), ("Q4_0", 1.0)])
def test_it_chooses_the_best_tokens(installed, tiny, stored, most):
    decode = PEERS[f"llama.cpp-{stored.lower()}"](tiny)
    tokens = decode(SOURCE, 24)
    assert len(tokens) == 24 and shortfall(tiny, tokens) < most
    # another source in between, which needs more room
    decode(SOURCE[1:] * 3, 2)
    assert decode(SOURCE, 24) == tokens


def test_the_embedded_target(installed):
    assert shortfall(TARGET, PEERS["llama.cpp-f16"](TARGET)(SOURCE, 24)) < 0.02


def test_reasons(tiny, monkeypatch):
    config = read_config(tiny)
    for other in ({"max_distance": 64}, {"activation": 3}, {"gated": not config.gated}, {"num_decoder_layers": 4}):
        with pytest.raises(Absent, match="llama.cpp decodes"):
            peer.check(dataclasses.replace(config, **other))
    monkeypatch.setitem(sys.modules, "llama_cpp", None)
    with pytest.raises(Absent, match="pip install"):
        PEERS["llama.cpp-f16"](tiny)
