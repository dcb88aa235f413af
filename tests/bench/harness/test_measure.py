from __future__ import annotations

import itertools

import pytest

from foredraft.bench.harness import measure
from foredraft.bench.harness.methods import Method, Output
from foredraft.bench.harness.settings import Settings
from foredraft.errors import UserError

END = 1
SOURCES = [(5, 6, 7, END), (8, END), (9, 9, 9, 9)]


def copier(extra=(), change: int | None = None, calls: list | None = None, name: str = "") -> Method:
    """Emits the source; then `extra` ids that must not be counted; `change` alters the row that starts with it."""
    def run(sources, seed):
        if calls is not None:
            calls.append((name, seed))
        rows = [[*source, *extra] for source in sources]
        for row in rows:
            if row[0] == change:
                row[1] += 1
        return Output(rows, {"encode": 0.5})

    return Method(run)


def ticking(step: float = 1.0):
    """A clock that moves by `step` seconds at every reading."""
    return (tick * step for tick in itertools.count()).__next__


def take(methods, settings, **options):
    return measure.measure(methods, SOURCES, settings, end_token=END, clock=ticking(), settle=lambda: None, **options)


@pytest.mark.parametrize(("calls", "passes"), [(9, 1), (13, 2)])
def test_an_interrupted_run_keeps_its_complete_passes(calls, passes):
    left = itertools.count()

    def run(sources, seed):
        if next(left) == calls:
            raise KeyboardInterrupt
        return copier().run(sources, seed)

    # two calls a batch, two batches a pass, after one batch of warm-up
    settings = Settings(batch_size=2, repeats=5, warm_up=1)
    taken = take({"a": Method(run), "b": Method(run)}, settings)
    assert [len(one) for one in taken.values()] == [passes] * 2
    assert all(len(one) == 2 for passes in taken.values() for one in passes)


def test_an_interrupted_first_pass_keeps_the_batches_that_all_have():
    calls = itertools.count()

    def run(sources, seed):
        if next(calls) == 3:
            raise KeyboardInterrupt
        return copier().run(sources, seed)

    # no warm-up: both decode the first batch, one the second
    settings = Settings(batch_size=2, repeats=2, warm_up=0)
    taken = take({"a": Method(run), "b": Method(run)}, settings, partial=True)
    assert [[len(one) for one in passes] for passes in taken.values()] == [[1], [1]]
    calls = itertools.count()
    with pytest.raises(KeyboardInterrupt):
        take({"a": Method(run), "b": Method(run)}, settings)


def test_an_interruption_before_the_first_pass_goes_on():
    def run(sources, seed):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        take({"a": Method(run)}, Settings(warm_up=0))


def test_until_end():
    assert measure.until_end([4, END, 0, 0], END, 9) == [4, END]
    assert measure.until_end([END, 4], END, 9) == [END]
    assert measure.until_end([4, 5, 6, END], END, 3) == [4, 5, 6]
    assert measure.until_end([], END, 3) == []


def test_one_counter_for_all():
    samples = take({"bare": copier(), "padded": copier(extra=(0, 0, END, 7))}, Settings(max_new_tokens=4, repeats=1))
    assert [sum(sample.tokens for sample in samples[name][0]) for name in ("bare", "padded")] == [10, 10]
    assert measure.differing(samples["bare"], samples["padded"]) == 0


def test_the_gate_counts_articles_in_any_pass():
    settings = Settings(batch_size=2, repeats=2)
    samples = take({"plain": copier(), "wrong": copier(change=8)}, settings)
    assert measure.differing(samples["plain"], samples["plain"]) == 0
    assert measure.differing(samples["plain"], samples["wrong"]) == 1
    # a method that goes wrong in a later pass only
    turns = itertools.count()
    late = Method(lambda sources, seed: (copier(change=9) if next(turns) >= 5 else copier()).run(sources, seed))
    samples = take({"plain": copier(), "late": late}, settings)
    assert measure.differing(samples["plain"], samples["late"]) == 1


def test_a_row_that_is_missing_its_end_differs():
    samples = take({"plain": copier()}, Settings(repeats=1))
    short = [[measure.Sample([row[:-1] for row in sample.outputs], 1.0) for sample in one] for one in samples["plain"]]
    assert measure.differing(samples["plain"], short) == 3


def test_methods_take_turns_on_the_same_seed_each_after_a_pause():
    calls = []
    methods = {name: copier(calls=calls, name=name) for name in "ab"}
    settings = Settings(batch_size=2, repeats=4, warm_up=1, seed=7)
    measure.measure(methods, SOURCES, settings, end_token=END, clock=ticking(), settle=lambda: calls.append("pause"))
    assert calls[::2] == ["pause"] * 18
    pairs = list(zip(calls[1::4], calls[3::4], strict=True))
    assert pairs[0] == (("a", 7), ("b", 7))
    assert [{seed for _, seed in pair} for pair in pairs[1:]] == [{7}, {9}] * 4
    assert all({name for name, _ in pair} == {"a", "b"} for pair in pairs)
    assert len({tuple(name for name, _ in pair) for pair in pairs}) == 2


def test_totals_over_totals():
    samples = take({"plain": copier(), "other": copier()}, Settings(repeats=3))
    # each call takes one tick, half of it encoding: 10 ids in 3 seconds, 1.5 of them decoding
    assert measure.tokens_per_second(samples["plain"], with_encoding=True)["median"] == pytest.approx(10 / 3)
    assert measure.tokens_per_second(samples["plain"], with_encoding=False)["median"] == pytest.approx(10 / 1.5)
    gain = measure.speed_up(samples["plain"], samples["other"], with_encoding=False)
    assert gain == pytest.approx({"median": 1, "p20": 1, "p80": 1, "low": 1, "high": 1})
    untold = {"draft": None, "verify": None, "other": None}
    assert measure.seconds(samples["plain"]) == {"total": 3, "encode": 1.5} | untold


def test_a_speed_up_is_per_token():
    def passes(*batches):
        return [[measure.Sample([[5] * tokens], seconds, {"encode": 1.0}) for tokens, seconds in batches]]

    # 2 and 4 ids in 1 + 1 seconds of decoding against 6 and 6 in 1 + 1
    gain = measure.speed_up(passes((2, 2.0), (4, 2.0)), passes((6, 2.0), (6, 2.0)), with_encoding=False)
    assert gain["median"] == pytest.approx(2) and 1.5 <= gain["low"] < gain["high"] <= 3.0
    assert measure.speed_up(passes((3, 3.0)), passes((6, 3.0)), with_encoding=True)["median"] == pytest.approx(2)


@pytest.mark.parametrize("field", ["batch_size", "max_new_tokens", "repeats"])
def test_bad_settings(field):
    with pytest.raises(UserError, match=f"--{field.replace('_', '-')} is 0"):
        Settings(**{field: 0})
