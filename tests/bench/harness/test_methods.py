"""The methods on a real, tiny engine: transformers decodes the same ids to the same tokens."""

from __future__ import annotations

import pytest

import foredraft
from foredraft.bench.harness import bench_run as compare
from foredraft.bench.harness import measure, methods
from foredraft.bench.harness.methods import Absent, build
from foredraft.bench.harness.settings import Settings

SOURCES = [[7, 8, 9, 7, 8, 11, 1], [40, 41, 1], [5, 1]]


@pytest.fixture(scope="module", params=["relu", "gated-gelu"])
def model(request, tmp_path_factory):
    """A random T5 with as many encoder as decoder layers: transformers' cache allows no other."""
    import torch
    from transformers import T5Config, T5ForConditionalGeneration

    config = T5Config(vocab_size=100, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=3, dropout_rate=0.0,
                      feed_forward_proj=request.param, decoder_start_token_id=0, pad_token_id=0, eos_token_id=1)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        peer = T5ForConditionalGeneration(config)
    path = tmp_path_factory.mktemp("even")
    peer.save_pretrained(path)
    return foredraft.load(path, drafter=None)


def outputs(name: str, model, settings: Settings) -> list[list[int]]:
    method = build(name, model, settings)
    taken = measure.measure({"plain": method}, SOURCES, settings, end_token=model.target.end_token)["plain"]
    assert all("encode" in sample.phases for sample in taken[0])
    return [row for sample in taken[0] for row in sample.outputs]


@pytest.mark.parametrize(("name", "batch_size"), [("lookup", 3), ("tree:2x1:lookup", 3), ("hf-greedy", 1), ("hf-greedy", 3)])
def test_the_same_tokens_greedily(model, name, batch_size):
    settings = Settings(batch_size=batch_size, max_new_tokens=8, repeats=1, warm_up=0, draft_tokens=3)
    assert outputs(name, model, settings) == outputs("plain", model, settings)


@pytest.mark.parametrize("name", ["hf-prompt-lookup", "hf-assisted"])
def test_transformers_speculation_runs(model, name):
    settings = Settings(max_new_tokens=8, repeats=1, warm_up=0, draft_tokens=3, assistant=str(model.path))
    assert outputs(name, model, settings) == outputs("plain", model, settings)


def test_auto_chooses_its_draft_lengths(model, monkeypatch):
    asked = []
    monkeypatch.setattr(methods, "drafting_method", lambda model, settings, draft_tokens: asked.append(draft_tokens))
    build("auto", model, Settings(draft_tokens=3))
    build("lookup", model, Settings(draft_tokens=3))
    assert asked == ["auto", 3]


def test_lookup_samples_as_plain_does(model):
    settings = Settings(batch_size=3, temperature=1.0, max_new_tokens=8, repeats=1, warm_up=0, seed=11)
    assert outputs("lookup", model, settings) == outputs("plain", model, settings)
    assert not build("hf-greedy", model, settings).comparable


def test_reasons(model, tmp_path):
    with pytest.raises(Absent, match="--assistant"):
        build("hf-assisted", model, Settings())
    with pytest.raises(Absent, match="cannot load"):
        build("hf-assisted", model, Settings(assistant=str(tmp_path)))
    with pytest.raises(Absent, match="batch size 1"):
        build("hf-prompt-lookup", model, Settings(batch_size=2))


def test_optional_methods_say_what_they_miss(model, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "optimum.onnxruntime", None)
    with pytest.raises(Absent, match="pip install 'optimum"):
        build("onnxruntime", model, Settings())
    with pytest.raises(Absent, match="drafter:FOLDER"):
        build("drafter", model, Settings())


@pytest.mark.parametrize("name", ["lookup", "hf-greedy"])
def test_a_footprint(model, name):
    from dataclasses import asdict

    from foredraft.bench.harness import footprint

    found = footprint.main({"method": name, "target": str(model.path), "dtype": "float32", "weights": "fp32",
                            "settings": asdict(Settings()), "source": SOURCES[0]})
    assert found["load_seconds"] > 0 and found["first_token_ms"] > 0 and found["peak_bytes"] > 1e7


def test_a_footprint_of_what_cannot_run_is_none(model, monkeypatch):
    from foredraft.bench.harness import footprint

    def fails(command, **options):
        raise footprint.subprocess.CalledProcessError(1, command)

    monkeypatch.setattr(footprint.subprocess, "run", fails)
    assert footprint.measure("lookup", model, Settings(), SOURCES[0]) is None


def test_sources_are_padded_to_few_lengths():
    ids, mask = methods._pad([[5, 1], [6, 7, 8, 9, 1]], "cpu", 4)
    assert ids.shape == mask.shape == (2, 8) and mask.sum(1).tolist() == [2, 5]


def test_a_peer_that_breaks_is_absent(tiny_checkpoint):
    uneven = foredraft.load(tiny_checkpoint, drafter=None)
    settings = Settings(max_new_tokens=4)
    with pytest.raises(Absent, match="it fails: IndexError"):
        compare._tried(build("hf-greedy", uneven, settings), SOURCES[:1], 0)


def test_plain_drafts_nothing(model):
    output = build(methods.REFERENCE, model, Settings(max_new_tokens=4)).run(SOURCES[:1], 0)
    assert output.stats.drafted == 0 and output.stats.steps == output.stats.emitted
