"""Requests that come and go: every sequence as it would be alone, nothing leaks, memory stays within its limit."""

import random

import pytest
import torch
from doubles import SIZES, ScriptedDrafter, TableTarget, make_state

from foredraft.engine.draft_length.adaptive_drafter import AdaptiveDrafter
from foredraft.engine.drafters.lookup import LookupDrafter
from foredraft.engine.drafters.none import NoDrafter
from foredraft.engine.drafters.registry import model_class, open_drafter
from foredraft.engine.loop import decode
from foredraft.engine.models.kv_cache import KVCache
from foredraft.engine.models.t5 import T5
from foredraft.engine.models.t5_weights import load_weights
from foredraft.engine.params import SamplingParams
from foredraft.engine.runtime.continuous_batches import ContinuousBatches
from foredraft.engine.runtime.requests import Job
from foredraft.errors import UserError

NEW, K = 14, 4


@pytest.fixture(scope="module")
def target(tiny_checkpoints):
    target = T5(load_weights(tiny_checkpoints["v1.1"]))
    target.folder = tiny_checkpoints["v1.1"]
    return target


@pytest.fixture(scope="module", params=["none", "lookup", "lookup+history", "adaptive", *SIZES, "lstm-40"])
def drafter(request, target, tmp_path_factory):
    if request.param == "none":
        return NoDrafter()
    if request.param == "adaptive":
        return AdaptiveDrafter(LookupDrafter())
    if request.param.startswith("lookup"):
        return LookupDrafter(history=1 << 10 if "history" in request.param else 0)
    kind, _, restricted = request.param.partition("-")
    torch.manual_seed(1)
    model, folder = model_class(kind).from_target(target.folder, **SIZES[kind]).eval(), tmp_path_factory.mktemp(kind)
    if restricted:
        model.restrict(torch.arange(int(restricted)))
    model.save(folder)
    return open_drafter(folder, target.weights, target.folder, None)


def random_job(draw: random.Random, index: int, longest: int = 200) -> Job:
    """Any length from 1 token to 4 pages, any distribution, any K; half of the sources repeat, for copies to be accepted."""
    S = draw.choice((draw.randint(1, 8), draw.randint(1, longest)))
    ids = [draw.randrange(3, 100) for _ in range(S)]
    ids = (ids[: max(1, S // 9)] * S)[:S] if draw.random() < 0.5 else ids
    distribution = draw.choice(({}, {"do_sample": True, "temperature": draw.choice((0.5, 1.0))},
                       {"do_sample": True, "temperature": 0.9, "top_k": 20, "top_p": 0.9}))
    config = SamplingParams(max_new_tokens=draw.randint(1, NEW), draft_tokens=draw.randint(0, K), **distribution)
    return Job(index, None, torch.tensor(ids), config, config.draft_tokens, draw.randrange(2**62), [])


@torch.inference_mode()
def alone(target, drafter, job) -> list[int]:
    """By the plain loop, one sequence, with the request's own K."""
    target.reserve(1, job.limit, job.draft_tokens, len(job.source))
    drafter.admit([0], [job.source], target.admit([0], [job.source]))
    state = make_state(1, job.params.max_new_tokens, job.draft_tokens, 32, seeds=[job.seed], **job.distribution)
    decode(state, target, drafter)
    target.release([0])
    drafter.release([0])
    return state.tokens[0, 1 : int(state.lengths[0])].tolist()


def scheduler(target, drafter, rows, **options):
    return ContinuousBatches(
        target, drafter, **dict(batch_size=rows, max_new_tokens=NEW, draft_tokens=K, longest=200) | options)


@torch.inference_mode()
def run(found, jobs, draw=None):
    """All results by index; with `draw`, some are cancelled at random times."""
    jobs, results = iter(jobs), []
    more = True
    while more or found.is_busy:
        while found.has_room and more:
            job = next(jobs, None)
            more = job is not None
            if more:
                found.submit(job)
            if draw is not None and draw.random() < 0.5:
                # arrivals trickle in
                break
        results += found.step()
        assert_books_balance(found)
        if draw is not None and draw.random() < 0.05 and found.is_busy:
            at_hand = [*found.waiting, *found.running.values()]
            results.append(found.cancel(draw.choice(at_hand).index))
            assert_books_balance(found)
    found.close()
    assert found.cache.pool.free == found.cache.pool.pages
    return {result.index: result for result in results}


def assert_books_balance(found):
    held = {row: -(-len(job.source) // 64) for row, job in found.running.items()}
    pool = found.cache.pool
    assert {row: int(count) for row, count in enumerate(pool.pages_per_sequence) if count} == held
    assert pool.free + sum(held.values()) == pool.pages
    assert sorted([*found.running, *found._idle]) == list(range(found.batch_size))
    assert len(found.waiting) <= found.batch_size


@pytest.mark.parametrize("rows", [1, 3])
def test_a_sequences_tokens_do_not_depend_on_who_shares_the_batch(target, drafter, rows):
    draw = random.Random(rows)
    jobs = [random_job(draw, index) for index in range(24)]
    results = run(scheduler(target, drafter, rows, pages=6), jobs, draw)
    assert sorted(results) == list(range(24))
    cancelled = [r for r in results.values() if r.finish_reason == "cancelled"]
    assert len(cancelled) < 12
    for job in jobs:
        ids, result = alone(target, drafter, job), results[job.index]
        if result.finish_reason == "cancelled":
            assert result.token_ids == ids[: len(result.token_ids)]
            continue
        assert result.token_ids == ids
        assert result.finish_reason == ("stop" if ids[-1] == 1 else "length")
        assert result.stats.emitted == len(ids) == len(result.proposers)
        assert result.stats.steps == len(ids) - result.stats.accepted


def test_requests_enter_sequences_that_others_leave(target):
    draw = random.Random(0)
    jobs = [random_job(draw, index) for index in range(40)]
    found = scheduler(target, NoDrafter(), 4)
    results = run(found, jobs)
    steps = sum(result.stats.steps for result in results.values())
    assert steps == sum(len(result.token_ids) for result in results.values())
    # only the last few steps have sequences to spare
    assert steps <= found.passes * 4 < steps + 4 * NEW


class PagedTable(TableTarget):
    """A TableTarget whose sequences hold pages of a real cache."""

    def __init__(self, table):
        super().__init__(table)
        self.cache = KVCache(1, 1, 1)
        self.config = type("Config", (), {"d_model": table.shape[-1]})

    def reserve(self, rows, positions, draft_tokens, source, pages):
        self.cache.reserve(rows, positions, source, pages)

    def admit(self, rows, sources):
        for row, source in zip(rows, sources, strict=True):
            self.cache.allocate(row, len(source))
        return super().admit(rows, sources)

    def release(self, rows):
        for row in rows:
            self.cache.release(row)


def test_ten_thousand_requests_of_any_length_leave_nothing_behind():
    draw = random.Random(9)
    target = PagedTable(torch.randn(4, 16, 16, generator=torch.Generator().manual_seed(0)))
    found = ContinuousBatches(target, NoDrafter(), batch_size=64, max_new_tokens=4, draft_tokens=0, longest=2048, pages=900)
    long = torch.zeros(2048, dtype=torch.int64)

    def jobs():
        for index in range(10_000):
            config = SamplingParams(max_new_tokens=draw.randint(1, 4))
            yield Job(index, None, long[: draw.randint(10, 2048)], config, 0, index, [])

    results = run(found, jobs(), draw)
    assert sorted(results) == list(range(10_000))
    assert sum(result.finish_reason == "cancelled" for result in results.values()) > 20
    assert found.cache.pool.most_used <= 900


# seconds of encoding; a step takes a few
SOURCE = 300.0


class Clock:
    """Seconds that pass where a test says so."""

    now = 0.0

    def __call__(self):
        return self.now


class TimedTable(PagedTable):
    """Costs `seconds(query positions read)` a pass, and much for a source."""

    def __init__(self, table, clock, seconds):
        super().__init__(table)
        self.clock, self.seconds = clock, seconds

    def admit(self, rows, sources):
        self.clock.now += SOURCE
        return super().admit(rows, sources)

    def decode(self, tokens, positions, parents=None):
        self.clock.now += self.seconds(int((positions >= 0).sum()))
        return super().decode(tokens, positions)


class TimedDrafter(ScriptedDrafter):
    def draft(self, state, budget=None):
        self.clock.now += 0.02
        return super().draft(state, budget)


def adaptive_run(rows, seconds, wrong=False):
    """150 short requests: one enters at most steps. Returns seconds over those of plain decoding, and the tokens drafted a
    step; a source's seconds are left out."""
    table = torch.randn(40, 20, 20, generator=torch.Generator().manual_seed(1))
    truth = make_state(1, 30, 0, 20, end_token=-1)
    decode(truth, TableTarget(table), NoDrafter())
    truth, taken = truth.tokens[0, 1:31].tolist(), []
    for K in (0, 6):
        draw, clock = random.Random(5), Clock()
        drafter = TimedDrafter([truth] * rows, lambda *_place: wrong, vocabulary=20)
        drafter.clock = clock
        drafter = AdaptiveDrafter(drafter, clock) if K else NoDrafter()
        target = TimedTable(table, clock, seconds)
        found = ContinuousBatches(target, drafter, batch_size=rows, max_new_tokens=30, draft_tokens=K, longest=1)
        configs = [SamplingParams(max_new_tokens=draw.randint(2, 30), draft_tokens=K) for _ in range(150)]
        results = run(found, (Job(i, None, torch.ones(1, dtype=torch.int64), config, K, i, [])
                              for i, config in enumerate(configs)))
        # greedy tokens are the same for all
        for i, config in enumerate(configs):
            assert results[i].token_ids == truth[: config.max_new_tokens]
        taken.append(clock.now - 150 * SOURCE)
    stats = [result.stats for result in results.values()]
    return taken[1] / taken[0], sum(one.drafted for one in stats) / sum(one.steps for one in stats)


@pytest.mark.parametrize("rows", [2, 12, 40])
def test_drafts_answer_to_what_a_pass_costs(rows):
    # further query positions are nearly free
    assert adaptive_run(rows, lambda read: 1.0 + 0.001 * read)[0] < 0.45
    # each query position costs the same: nothing is gained, even by drafts that are always right
    assert adaptive_run(rows, lambda read: 0.01 + read)[0] < 1.03


def test_drafts_answer_to_how_many_sequences_share_a_pass():
    def seconds(read):  # room for 8 query positions
        return max(8.0, read)

    few, many = adaptive_run(2, seconds), adaptive_run(12, seconds)
    assert few[0] < 0.7 and few[1] > 0.5
    assert many[0] < 1.02 and many[1] < 0.15


@pytest.mark.parametrize("rows", [1, 2, 12])
def test_drafts_that_are_always_wrong_cost_little(rows):
    slower, drafted = adaptive_run(rows, lambda read: 1.0 + 0.05 * read, wrong=True)
    assert 1.0 <= slower < 1.03 and drafted < 0.2


def test_memory_stays_within_its_limit(target):
    cache, slots = target.cache, NEW + K + 2
    row = KVCache.sequence_bytes(cache, slots)
    limit = 2 * row + 7 * cache.page_bytes
    found = scheduler(target, NoDrafter(), 8, kv_memory=limit)
    assert 2 <= found.batch_size < 8 and limit - cache.page_bytes < cache.nbytes() <= limit
    draw = random.Random(3)
    jobs = [random_job(draw, index, cache.pool.pages * 64) for index in range(12)]
    results = run(found, jobs)
    assert [results[job.index].token_ids for job in jobs] == [alone(target, NoDrafter(), job) for job in jobs]
    # the next, larger one gets its memory back
    again = scheduler(target, NoDrafter(), 8, kv_memory=8 * row + 40 * cache.page_bytes)
    assert again.batch_size == 8
    again.close()
    with pytest.raises(UserError, match="a single request of 200 source tokens and 20 positions needs"):
        scheduler(target, NoDrafter(), 8, kv_memory=row + 3 * cache.page_bytes)


def test_what_can_never_run_is_refused_at_the_door(target):
    target.cache.clear()  # what other tests have left
    found = scheduler(target, NoDrafter(), 2, pages=5)

    def job(S, **options):
        config = SamplingParams(**dict(max_new_tokens=NEW, draft_tokens=K) | options)
        return Job(0, None, torch.ones(S, dtype=torch.int64), config, config.draft_tokens, 0, [])

    for bad, match in ((job(5 * 64 + 1), "321 source tokens need .* kv_memory leaves"),
                       (job(5, max_new_tokens=NEW + 1), "max_new_tokens is 15, the stream's is 14"),
                       (job(5, draft_tokens=K + 1), "draft_tokens is 5, the stream's is 4")):
        with pytest.raises(UserError, match=match):
            found.submit(bad)
    found.close()
    found.close()
