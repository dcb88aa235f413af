"""Simulated costs of a large target: computed by hand where possible, and their order."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from foredraft.bench.gpu.roofline import MACHINES, Step, config_of, parts
from foredraft.bench.harness.settings import Settings
from foredraft.bench.studies.simulate import GEOMETRY, MACHINE, NotModelled, draft_parts, simulated
from foredraft.engine.drafters.cascade import CascadeDrafter
from foredraft.engine.drafters.layer_skip import SelfDrafter
from foredraft.engine.drafters.lookup import LookupDrafter
from foredraft.engine.drafters.neural.eagle_head import EagleDrafter
from foredraft.engine.drafters.neural.lstm import LSTMDrafter
from foredraft.engine.drafters.neural.t5_drafter import ShallowT5Drafter
from foredraft.engine.drafters.staged import StagedDrafter

XL, H200 = config_of(GEOMETRY), MACHINES[MACHINE]
TRACE = {"steps": 100, "passes": 100, "emitted": 300, "passes_per_step": 2.0}


def blank(kind, **known):
    """A drafter with only its class and these attributes, which are all that is read."""
    drafter = kind.__new__(kind)
    drafter.__dict__.update(known)
    return drafter


def self_drafter(*kept):
    return blank(SelfDrafter, kept=np.array(kept, bool), vocabulary=SimpleNamespace(is_full=True))


def bytes_of(drafter, K=4, trace=TRACE, **distribution):
    return sum(part.bytes for part in draft_parts(drafter, XL, Step(1, K, drafter="none", **distribution), trace))


def test_the_speed_up_is_tokens_per_step_over_the_ratio_of_costs():
    lookup = LookupDrafter()
    found = simulated(lookup, 4, TRACE, Settings())
    plain = sum(part.seconds(H200) for part in parts(XL, Step(drafter="none"))) * 1e6
    assert found["plain_us"] == pytest.approx(plain) and found["tokens_per_step"] == 3
    assert found["speed_up"] == pytest.approx(3 * plain / (found["draft_us"] + found["pass_us"]))
    assert found["tokens_per_second"] == pytest.approx(found["speed_up"] / plain * 1e6)
    # at batch size 1 a large target's pass of five positions costs little more than one of one position
    assert 2.8 < found["speed_up"] < 3
    # fifteen rows read the weights once, and the cache serves them to every sixteen outputs
    batch = simulated(lookup, 4, TRACE, Settings(batch_size=3))
    assert 2 < batch["tokens_per_second"] / found["tokens_per_second"] < 3


def test_the_target_as_its_own_drafter_costs_its_share_of_the_sublayers():
    whole = sum(part.bytes for part in parts(XL, Step(drafter="none")))
    everything = self_drafter([1, 1, 1], [1, 1, 1], [1, 1, 1])
    assert bytes_of(everything, K=1) == pytest.approx(whole, rel=1e-3)
    assert bytes_of(everything, K=3) == pytest.approx(3 * whole, rel=1e-3)
    nothing, ff = self_drafter([0, 0, 0]), self_drafter([0, 0, 1])
    found = {part.name: part.bytes for part in parts(XL, Step(drafter="none"))}
    assert bytes_of(ff, K=1) - bytes_of(nothing, K=1) == pytest.approx(found["feed-forward"], rel=1e-3)
    assert bytes_of(self_drafter([0, 0, 1], [0, 0, 0]), K=1) - bytes_of(nothing, K=1) == pytest.approx(
        found["feed-forward"] / 2, rel=1e-3)


def test_costs_of_drafters_are_ordered():
    lstm, t5, lookup = blank(LSTMDrafter), blank(ShallowT5Drafter), LookupDrafter()
    assert bytes_of(lookup) < bytes_of(blank(EagleDrafter)) < bytes_of(t5)
    assert bytes_of(CascadeDrafter([lookup, lstm])) == bytes_of(lookup) + bytes_of(lstm)
    staged = blank(StagedDrafter, drafter=lookup)
    assert bytes_of(staged) == pytest.approx(bytes_of(t5) / 2 + bytes_of(lookup), rel=1e-6)
    # sampled drafts write their distributions
    for sampling in (lstm, t5, staged, SimpleNamespace(name="cnn")):
        assert bytes_of(sampling, sampled=True) - bytes_of(sampling) == 2 * 4 * XL.vocab_size * 4


def test_a_drafter_that_is_not_modelled_is_refused():
    with pytest.raises(NotModelled, match="oracle"):
        draft_parts(SimpleNamespace(name="oracle"), XL, Step(), TRACE)


def test_the_script(script):
    from foredraft.bench.studies import simulate

    code, out, err = script(simulate, "--drafter", "lookup", "--draft-tokens", "2", "--limit", 1, "--max-new-tokens", 4)
    assert code == 0 and "SIMULATED" in out, err
