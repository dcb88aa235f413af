"""ONNX Runtime decodes what transformers decodes, from the graphs that the peer exports."""

import sys

import pytest
from peer_tokens import SOURCE, shortfall, tiny_checkpoint

from foredraft.bench.harness.methods import Absent
from foredraft.bench.harness.peers.step_peers import PEERS


@pytest.fixture(scope="module", params=["t5-small", "flan-t5-small"])
def tiny(request, tmp_path_factory):
    """ReLU and a tied head, or gated GELU and a head of its own."""
    return tiny_checkpoint(request.param, tmp_path_factory.mktemp("tiny"))


def test_it_chooses_the_best_tokens(tiny):
    for package in ("onnx", "onnxruntime"):
        pytest.importorskip(package, reason=f"{package} is optional")
    decode = PEERS["onnxruntime-int8"](tiny)
    tokens = decode(SOURCE, 24)
    assert len(tokens) == 24 and shortfall(tiny, tokens) < 0.2
    decode(SOURCE[1:] * 3, 2)
    assert decode(SOURCE, 24) == tokens


def test_a_missing_package_is_named(tiny, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime.quantization", None)
    with pytest.raises(Absent, match="pip install"):
        PEERS["onnxruntime-int8"](tiny)
