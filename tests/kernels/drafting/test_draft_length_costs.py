"""Draft lengths: against every other choice, and over whole requests made up of coin tosses; no clock."""

import itertools

import numpy as np
import pytest

from foredraft.engine.draft_length.adaptive_drafter import OWN_ALONE
from foredraft.kernels.core.gemm_microkernel import ROW_TILE
from foredraft.kernels.drafting.draft_length_costs import (
    CLOCK,
    FIXED_CALL,
    FIXED_ID,
    FIXED_ROW,
    IDLE,
    MARGIN,
    PAUSED,
    PLAIN,
    RUNNING,
    SEEN,
    SLOWEST,
    _fill,
    learn_numba,
    new_memory,
    pace_numba,
    trim_numba,
)

K = 6


class World:
    """Requests of B rows: each id of row b is right with chance right[b]; a round costs row + extra, drafts call + id."""

    def __init__(self, right, row=0.08, call=0.175, each=0.075, late=0.0, busy=0, seed=0):
        self.right, self.costs, self.late, self.busy = np.array(right), (row, call, each), late, busy
        self.draw = np.random.default_rng(seed)

    def seconds(self, running, drafted):
        row, call, each = self.costs
        noise = self.draw.lognormal(0, 0.05, 2) * np.where(self.draw.random(2) < self.late, 20, 1)
        if self.busy > 0:
            # others' work: two threads that wait for each other suffer most
            self.busy -= 1
            noise *= self.draw.uniform(1, 6, 2) * np.where(drafted.any() and self.draw.random() < 0.5, [1, 2.5], 1)
        drafting = (call + each * drafted.max()) * noise[0] if drafted.any() else 0.0
        return (0.2 + 0.8 * running / len(self.right) + row * drafted.sum()) * noise[1] + drafting, drafting

    def run(self, choose, requests, length=60, skip=0, learn=lambda *_round: None):
        """Ids a second, the first `skip` requests left out; choose(state of a round, widths, rows) writes the widths."""
        B, emitted, total = len(self.right), 0, 0.0
        for request in range(requests):
            lengths, limits, finished = np.ones(B, np.int64), np.full(B, length + 1), np.zeros(B, bool)
            widths, rows = np.zeros(B, np.int64), np.zeros((B, 3))
            while not finished.all():
                choose((lengths, limits, finished), widths, rows)
                drafted = np.where(finished, 0, np.minimum(widths, np.maximum(limits - lengths - 1, 0)))
                right = self.draw.random((B, K)) < self.right[:, None]
                accepted = np.minimum(right.cumprod(1).sum(1), drafted)
                seconds, drafting = self.seconds((~finished).sum(), drafted)
                learn(np.minimum(accepted + 1, drafted), accepted, drafted, drafted, widths, seconds, drafting, rows)
                lengths += np.where(finished, 0, accepted + 1)
                finished = lengths >= limits
                if request >= skip:
                    total += seconds
            emitted += B * length if request >= skip else 0
        return emitted / total

    def fixed(self, width, requests=30, length=60):
        def choose(_state, widths, _rows):
            widths[:] = width
        return self.run(choose, requests, length)

    def paced(self, requests=30, length=60, skip=3, memory=None, own=3.0, fixed=False, on_choice=lambda _widths: None):
        memory, rest, rests = memory or new_memory(len(self.right), K), 0, False

        def choose(state, widths, rows):
            nonlocal rest, rests
            rests = rest > 0 and state[0].max() > 1
            rest -= 1
            if not rests:
                rest = pace_numba(*state, widths, np.full(len(self.right), K), rows, *memory, own, fixed)[-1]
            on_choice(widths)

        def learn(*round_):
            if not rests:
                learn_numba(*round_, *memory, fixed)
        return self.run(choose, requests, length, skip, learn)


@pytest.mark.parametrize("right", [0.0, 0.45, 0.65, 0.93])
def test_one_row_comes_near_the_best_fixed_length_and_never_loses_to_plain(right):
    plain, *others = (World([right]).fixed(width) for width in range(K + 1))
    rate = np.mean([World([right], seed=seed).paced() for seed in range(3)])
    assert rate > 0.97 * plain
    assert rate > 0.92 * max(plain, *others)


def test_rows_of_different_worth_beat_the_best_length_for_all():
    right = [0.9, 0.05, 0.9, 0.05]
    best = max(World(right, 0.06, 0.05, 0.02).fixed(width, 4, 150) for width in range(K + 1))
    assert World(right, 0.06, 0.05, 0.02).paced(6, 150, skip=2) > 1.02 * best


# at the costs that fixed lengths go by, and where rows are twice as dear as they believe
@pytest.mark.parametrize("right, row, least", [(0.0, 1, 0.965), (0.2, 1, 0.965), (0.0, 2, 0.965), (0.2, 2, 0.955)])
def test_a_repeatable_request_loses_little_with_a_useless_drafter(right, row, least):
    costs = row * FIXED_ROW, FIXED_CALL, FIXED_ID
    assert World([right], *costs).paced(fixed=True, skip=0, own=OWN_ALONE) > least * World([right], *costs).fixed(0)


def test_a_useless_drafter_is_asked_ever_more_rarely():
    memory, asked = new_memory(1, K), []
    World([0.0]).paced(20, memory=memory)
    World([0.0]).paced(40, memory=memory, on_choice=lambda widths: asked.append(widths[0] > 0))
    # a third of what PROBE alone would allow, at a third of a round for each
    assert 0 < np.mean(asked) < 0.01


def test_it_comes_back_when_the_drafter_gets_better():
    memory = new_memory(1, K)
    World([0.0]).paced(20, memory=memory)
    assert memory[-1][PAUSED] > 0
    World([0.9]).paced(30, memory=memory)
    assert World([0.9]).paced(10, skip=0, memory=memory) > 1.8 * World([0.9]).fixed(0)


def test_late_rounds_do_not_mislead():
    memory = new_memory(1, K)
    World([0.8], late=0.03).paced(memory=memory)
    assert World([0.8]).paced(10, skip=0, memory=memory) > 1.5 * World([0.8]).fixed(0)


def tiled(step, seen, B=1):
    """The memory of a drafter that is right 9 times in 10, where a further tile of rows costs `step` plain rounds; costs
    were seen at the numbers of further rows `seen`."""
    width = 2 * ROW_TILE
    places, base, extra, spent, clock = new_memory(B, width)
    places[:] = 1e6 * np.array([1, 1, 1, 0.9])
    base[:] = 1, 100
    for further in seen:
        extra[further, :2] = step * ((B + further - 1) // ROW_TILE), 1 / SLOWEST
    spent[:] = 0.1, 100
    clock[RUNNING], clock[PLAIN] = B, 100
    return places, base, extra, spent, clock


def test_one_rows_draft_ends_at_a_tiles_edge_that_was_never_tried():
    widths = np.zeros(1, np.int64)
    pace_numba(np.ones(1, np.int64), np.array([99]), np.zeros(1, bool), widths, np.array([2 * ROW_TILE]), np.zeros((1, 3)),
               *tiled(0.4, [2 * ROW_TILE]), 3.0, False)
    assert widths[0] == 2 * ROW_TILE - 1


@pytest.mark.parametrize("step, left", [(0.1, ROW_TILE + 1), (0.9, ROW_TILE - 1)])
def test_of_a_draft_that_is_there_what_pays_is_read(step, left):
    read = np.array([ROW_TILE + 1])
    trim_numba(read.copy(), np.zeros((1, 3)), *tiled(step, range(1, 2 * ROW_TILE + 1)), 3.0, read)
    assert read[0] == left


def test_a_draft_that_does_not_pay_keeps_its_first_id():
    memory, read = tiled(9.0, range(1, 4 * ROW_TILE + 1), B=2), np.array([3, 0])
    memory[2][:, 0] = 9.0
    trim_numba(read.copy(), np.zeros((2, 3)), *memory, 3.0, read)
    assert read.tolist() == [1, 0]


def test_costs_of_a_busy_start_do_not_stay():
    def worlds(busy):
        return sum(World([0.85], busy=busy, seed=seed).paced(20, skip=5, own=10.0) for seed in range(8))
    assert worlds(60) > 0.85 * worlds(0)


def test_repeatable_widths_depend_on_the_row_alone():
    """Not on the clock, nor on what was learned, nor on the rows beside it."""
    rng, chosen = np.random.default_rng(3), []
    # good drafts, then useless ones, down to none
    history = np.append(rng.integers(1, 6, 20), np.zeros(20, np.int64))
    for trial in range(2):
        memory, rows, widths = new_memory(2, K), np.zeros((2, 3)), np.zeros(2, np.int64)
        if trial:
            for table in memory:
                table += rng.random(table.shape)
        seen = []
        for step, count in enumerate(history):
            accepted = np.minimum([count, 2 * trial], widths)
            times = rng.random(2) if trial else (1.0, 0.0)
            learn_numba(np.minimum(accepted + 1, widths), accepted, *[widths.copy()] * 2, widths, *times, rows,
                        *memory, True)
            *_, rest = pace_numba(np.array([1 + 3 * step, 5]), np.array([500, 500]), np.array([False, trial and step > 9]),
                                  widths, np.array([K, K]), rows, *memory, 3.0, True)
            # as if a row came and ended the rest
            rows[:, 2] -= rest
            seen.append(int(widths[0]))
        chosen.append(seen)
    assert chosen[0] == chosen[1]
    assert len(set(chosen[0])) > 2 and chosen[0][-1] == 0


def test_no_other_widths_are_much_better():
    """Against every other choice, at costs and chances that are known. Taking the likeliest ids first is best for the pass;
    where the calls' cost grows with their longest draft, it need not be."""
    rng = np.random.default_rng(0)
    for trial in range(20):
        B, K = 3, 3
        places, base, extra, spent, clock = new_memory(B, K)
        base[:, 1] = clock[:CLOCK] = 100
        extra[1:, 1] = spent[:, 1] = 1e6
        row, call, each = rng.random(3) * [0.3, 0.2, 0.1 * (trial % 2)]
        extra[:, 0], spent[:, 0] = row * np.arange(B * K + 1), call + each * np.arange(K + 1)
        rows = rng.random((B, 3)) * [9, 9, 0]
        places[:] = 1e9 * np.array([1, 1, 1, 0.6])
        clock[:] = 0
        clock[5] = 100  # no plain round on purpose
        widths = np.zeros(B, np.int64)
        pace_numba(np.ones(B, np.int64), np.array([99, 99, 3]), np.zeros(B, bool), widths, np.full(B, K), rows, places, base,
                   extra, spent, clock, 3.0, False)
        chance = np.minimum(0.6 * (rows[:, 0] + 3) / (rows[:, 1] + 3), 0.98)

        best = max(rate(choice, chance, row, call, each)
                   for choice in itertools.product(range(K + 1), range(K + 1), range(2)))
        assert rate(widths.tolist(), chance, row, call, each) > (0.96 if each else 1 / MARGIN) * best


def rate(choice, chance, row, call, each):
    tokens = len(choice) + sum(chance[b] ** i for b, width in enumerate(choice) for i in range(1, width + 1))
    return tokens / (1 + row * sum(choice) + (call + each * max(choice) if any(choice) else 0))


def test_a_rare_cost_does_not_lift_a_well_known_one_behind_it():
    table, out = np.zeros((9, 3)), np.zeros(9)
    table[[1, 5, 8], :2] = [[0.9, 4], [0.2, 400], [0.5, 100]]
    _fill(table, 0.0, 0.05, 0.0, np.arange(9.0), out)
    # the nearest values that never fall: those two as one, by how often they were seen
    assert out[1] == out[5] == pytest.approx((4 * 0.9 + 400 * 0.2) / 404) and out[8] == pytest.approx(0.5)
    assert (np.diff(out) >= 0).all() and out[6] == pytest.approx(out[5] + (0.5 - out[5]) / 3)


@pytest.mark.parametrize("accepted, fell", [(2, True), (1, False)])
def test_a_row_that_ends_inside_its_draft_wastes_the_rest_of_it(accepted, fell):
    """Two of four ids were verified: both stood and the row ended, or the second fell."""
    memory, count = new_memory(1, K), np.array([4])
    memory[-1][[RUNNING, IDLE]] = 1, 9
    learn_numba(np.array([2]), np.array([accepted]), count, count, count, 0.0, 0.0, np.zeros((1, 3)), *memory, False)
    places = memory[0]
    assert places[:4, 2].tolist() == [1, 1, int(fell), 0] and places[:4, 3].tolist() == [1, int(fell), 0, 0]
    # and without a time there is nothing to learn of costs
    assert not memory[2].any() and memory[-1][SEEN] == memory[-1][IDLE] == 0
