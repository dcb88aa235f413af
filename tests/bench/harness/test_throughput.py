"""Engines over many articles on a tiny geometry: order, tokens, utilisation, floors."""

import pytest

import foredraft
from foredraft.bench.harness import throughput
from foredraft.bench.harness.geometry import GEOMETRIES, write_checkpoint
from foredraft.bench.harness.methods import Output
from foredraft.bench.harness.settings import Settings

SOURCES = [[3 + (7 * i + j) % 300 for j in range(4 + 9 * (i % 5))] + [1] for i in range(11)]
SETTINGS = Settings(max_new_tokens=9, repeats=1)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    small = dict(vocab_size=320, d_model=32, d_kv=16, d_ff=48, num_layers=2, num_decoder_layers=2, num_heads=2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(GEOMETRIES, "tiny", GEOMETRIES["flan-t5-base"] | small)
        return foredraft.load(write_checkpoint("tiny", tmp_path_factory.mktemp("tiny")), drafter=None)


def test_every_engine_decodes_the_same_tokens(model, monkeypatch):
    monkeypatch.setattr(throughput.machine, "read_bandwidth", lambda times: 10.0)
    names = ["scheduled+drafts", "fixed", "fixed+drafts", "transformers"]
    turns = []
    found = throughput.measure(model, "lookup", 3, SOURCES, [1, 4], names, SETTINGS, on_list=lambda: turns.append(1))
    assert found["absent"] == {} and len(turns) == len(found["rows"]) == 10
    assert {(row["engine"], row["batch_size"]) for row in found["rows"]} == {
        (name, size) for name in ("scheduled", *names) for size in (1, 4)}
    assert [row["differ"] for row in found["rows"]] == [0] * 10
    by = {(row["engine"], row["batch_size"]): row for row in found["rows"]}
    assert by["scheduled", 1]["slot_utilisation"] == 1.0
    assert min(by[name, 4]["slot_utilisation"] for name in ("scheduled", "fixed", "scheduled+drafts", "fixed+drafts")) > 0.3
    assert by["transformers", 4]["slot_utilisation"] is None
    for row in found["rows"]:
        assert row["tokens"] == by["scheduled", 1]["tokens"] <= 99
        parts = [row["seconds"].get(part, 0) for part in ("encode", "draft", "verify", "other")]
        assert sum(parts) == pytest.approx(row["seconds"]["total"] if row["floor"] else 0)


def test_time_over_plain_scheduled_decoding():
    found = throughput.over([1.1, 2.2, 3.3], [1.0, 2.0, 3.0])
    assert found["mean"] == pytest.approx(1.1) and found["low"] == pytest.approx(found["high"]) == pytest.approx(1.1)
    found = throughput.over([1.0, 1.21], [1.0, 1.0])
    assert found["mean"] == pytest.approx(1.1) and found["high"] / 1.1 == pytest.approx(1.1 / found["low"])
    # both logs are 0.0953 from their mean: a standard error of as much, 12.71 times
    assert found["high"] == pytest.approx(1.1 * 1.1**12.71, rel=1e-6)
    assert throughput.over([2.0], [1.0]) == {"mean": 2.0, "low": None, "high": None}


def test_sorting_by_length_gives_the_lists_order_back():
    seen = []

    def engine(sources, batch_size):
        seen.append([len(source) for source in sources])
        return Output([[len(source)] for source in sources], {})

    out = throughput._by_length(engine)(SOURCES, 3)
    assert out.token_ids == [[len(source)] for source in SOURCES]
    lengths = [length for batch in seen for length in batch]
    assert lengths == sorted(lengths, reverse=True) and max(map(len, seen)) == 3


def test_floors(model):
    from foredraft.engine.stats import DecodeStats

    found = throughput.floor(model.target, [[3] * 10], [[5] * 4], DecodeStats(passes=3, steps=3), rate=2.0, read=1e-9)
    inner, C, F, L, V = 32, 32, 48, 2, 320
    encode = 2 * 10 * L * (4 * inner + 3 * F) * C + L * 4 * 100 * inner + 2 * 10 * C * 2 * inner * L
    decode = 4 * 2 * (L * (6 * inner + 3 * F) * C + V * C) + 4 * 4 * inner * L * (10 + 2)
    matrices = 4 * (L * (6 * inner + 3 * F) * C + V * C) + 4 * (3 * L + 1) * C
    assert found["encode"] == encode / 2 and found["decode_flops"] == decode / 2
    assert found["decode_bytes"] == pytest.approx(3 * matrices + 3 * 8 * L * inner * (10 + 2))
    assert found["total"] == found["encode"] + max(found["decode_flops"], found["decode_bytes"])


@pytest.mark.slow
def test_memory_is_what_the_cache_accounts_for(model):
    found = throughput.memory(model.path, SOURCES, 4, 5)
    cache = model.target.cache
    assert found["accounted_bytes"] == 4 * cache.sequence_bytes(5 + 2) + 4 * cache.page_bytes
