"""Step costs and other engines on a tiny geometry: what is counted, what is compared, what is absent."""

import pytest

from foredraft.bench.harness import steps
from foredraft.bench.harness.geometry import GEOMETRIES, write_checkpoint
from foredraft.bench.harness.methods import Absent
from foredraft.bench.harness.peers import step_peers as peers
from foredraft.embedded import TARGET


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    small = dict(vocab_size=320, d_model=32, d_kv=16, d_ff=64, num_layers=2, num_decoder_layers=2, num_heads=2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(GEOMETRIES, "tiny", GEOMETRIES["flan-t5-base"] | small)
        return write_checkpoint("tiny", tmp_path_factory.mktemp("tiny"))


@pytest.mark.parametrize(("stored", "size"), [("fp32", 4), ("bf16", 2), ("int8", 1), ("int4", 9 / 16)])
def test_a_steps_bytes_are_its_tensors(tiny, stored, size):
    target, memory = steps.loaded_target(tiny, stored)
    found = steps.step_bytes(target, source=70, position=10)
    # int4's scales are part of its 9 bits for two weights
    scales = 4 if stored == "int8" else 0
    inner, C, F, L = 32, 32, 64, 2
    matrices = size * ((3 * inner + C + inner + C) * C + 3 * F * C) + scales * (4 * inner + 2 * C + 2 * F + C)
    assert found["layers"] == L * (matrices + 3 * C * 4) + C * 4
    assert found["head"] == 320 * (C * size + scales)
    assert (found["cross"], found["self"]) == (70 * L * inner * (4 if size <= 1 else 8), 10 * L * inner * 8)
    assert memory["weight_bytes"] > found["layers"] + found["head"]


def test_measured_steps(tiny, monkeypatch):
    monkeypatch.setattr(steps.machine, "read_bandwidth", lambda times: 10.0)
    target, _ = steps.loaded_target(tiny, "fp32")
    found = steps.measure_steps(target, source=70, query_positions=range(1, 4), repeats=2)
    assert found["floor_ms"] == pytest.approx(sum(found["bytes"].values()) / 10e9 * 1e3)
    assert found["over_floor"] == pytest.approx(found["step_ms"]["1"]["median"] / found["floor_ms"])
    assert found["v"]["1"] == 1.0 and set(found["v"]) == {"1", "2", "3"}
    assert all(value > 0 for value in found["parts_ms"].values())
    inner, C, F, S = 32, 32, 64, 70
    assert found["encoder"]["gflop"] * 1e9 == pytest.approx(2 * (2 * S * (4 * inner * C + 3 * F * C) + 4 * S * S * inner))


def test_every_engine_decodes_the_same_tokens(tiny):
    pytest.importorskip("ctranslate2", reason="ctranslate2 is an optional engine")
    same = ["foredraft-fp32", "transformers", "ctranslate2-fp32"]
    names = [*same, "ctranslate2-int8", "foredraft-int8"]
    found = peers.compare_peers(tiny, names, source=[5, 9, 300, 1] * 10, short=3, long=9, repeats=2)
    assert [found[name]["differ"] for name in same] == [0, 0, 0]
    assert found["foredraft-fp32"]["over_first"] == 1.0


@pytest.mark.parametrize("name", ["foredraft-fp32", "transformers"])
def test_decoding_goes_on_past_the_end_token(name):
    tokens = peers.PEERS[name](TARGET)([5, 9, 300, 1], 6)
    assert len(tokens) == 6 and tokens[2] == 1


def test_an_engine_that_cannot_run_says_why(tiny, monkeypatch):
    def absent(folder):
        raise Absent("not here")

    def broken(folder):
        raise ValueError("two\nlines")

    monkeypatch.setitem(peers.PEERS, "absent", absent)
    monkeypatch.setitem(peers.PEERS, "broken", broken)
    found = peers.compare_peers(tiny, ["absent", "foredraft-fp32", "broken"], source=[7, 1], short=2, long=4, repeats=1)
    assert list(found) == ["absent", "foredraft-fp32", "broken"]
    assert found["absent"] == {"absent": "not here"}
    assert found["broken"] == {"absent": "it fails: ValueError: two lines"}
