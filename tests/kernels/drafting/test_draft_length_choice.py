"""The choice of draft lengths: against every other choice, and over simulated requests with a simulated clock."""

import itertools

import numpy as np
import pytest

from foredraft.engine.draft_length.adaptive_drafter import POOLED_WEIGHT_REPEATABLE
from foredraft.kernels.core.gemm_microkernel import ROW_TILE
from foredraft.kernels.drafting.draft_length_choice import MARGIN, choose_numba, shorten_numba
from foredraft.kernels.drafting.draft_length_estimates import (
    ASSUMED_CALL,
    ASSUMED_TOKEN,
    MIN_WEIGHT,
    NUM_PLAIN,
    POSITION_COST,
    RESUME_TIME,
    RUNNING,
    new_estimates,
    record_numba,
)

K = 6


class Simulation:
    """Requests of B sequences: each drafted token of sequence b is accepted with probability acceptance[b].

    A step costs `position` a drafted token; a call of the drafter costs `call`, and `token` a token of its longest draft.
    late: the probability of a time 20 times as long. busy: steps at the start that share the machine.
    """

    def __init__(self, acceptance, position=0.08, call=0.175, token=0.075, late=0.0, busy=0, seed=0):
        self.acceptance, self.costs, self.late, self.busy = np.array(acceptance), (position, call, token), late, busy
        self.random = np.random.default_rng(seed)

    def seconds(self, running, drafted):
        position, call, token = self.costs
        noise = self.random.lognormal(0, 0.05, 2) * np.where(self.random.random(2) < self.late, 20, 1)
        if self.busy > 0:
            # two threads that wait for each other suffer most
            self.busy -= 1
            noise *= self.random.uniform(1, 6, 2) * np.where(drafted.any() and self.random.random() < 0.5, [1, 2.5], 1)
        drafting = (call + token * drafted.max()) * noise[0] if drafted.any() else 0.0
        return (0.2 + 0.8 * running / len(self.acceptance) + position * drafted.sum()) * noise[1] + drafting, drafting

    def run(self, choose, num_requests, length=60, skip=0, record=lambda *_step: None):
        """Tokens a second, without the first `skip` requests; choose(views of a state, draft lengths, requests)."""
        B, emitted, total = len(self.acceptance), 0, 0.0
        for request in range(num_requests):
            lengths, limits, finished = np.ones(B, np.int64), np.full(B, length + 1), np.zeros(B, bool)
            draft_lengths, requests = np.zeros(B, np.int64), np.zeros((B, 3))
            while not finished.all():
                choose((lengths, limits, finished), draft_lengths, requests)
                drafted = np.where(finished, 0, np.minimum(draft_lengths, np.maximum(limits - lengths - 1, 0)))
                right = self.random.random((B, K)) < self.acceptance[:, None]
                accepted = np.minimum(right.cumprod(1).sum(1), drafted)
                seconds, drafting = self.seconds((~finished).sum(), drafted)
                record(np.minimum(accepted + 1, drafted), accepted, drafted, drafted, draft_lengths, seconds, drafting,
                       requests)
                lengths += np.where(finished, 0, accepted + 1)
                finished = lengths >= limits
                if request >= skip:
                    total += seconds
            emitted += B * length if request >= skip else 0
        return emitted / total

    def fixed(self, K, num_requests=30, length=60):
        def choose(_state, draft_lengths, _requests):
            draft_lengths[:] = K
        return self.run(choose, num_requests, length)

    def adaptive(self, num_requests=30, length=60, skip=3, estimates=None, pooled_weight=3.0, repeatable=False,
                 on_choice=lambda _draft_lengths: None):
        estimates, num_reuses, is_reused = estimates or new_estimates(len(self.acceptance), K), 0, False

        def choose(state, draft_lengths, requests):
            nonlocal num_reuses, is_reused
            is_reused = num_reuses > 0 and state[0].max() > 1
            num_reuses -= 1
            if not is_reused:
                num_reuses = choose_numba(*state, draft_lengths, np.full(len(self.acceptance), K), requests, estimates,
                                          pooled_weight, repeatable)[-1]
            on_choice(draft_lengths)

        def record(*step):
            if not is_reused:
                record_numba(*step, estimates, repeatable)
        return self.run(choose, num_requests, length, skip, record)


@pytest.mark.parametrize("acceptance", [0.0, 0.45, 0.65, 0.93])
def test_one_sequence_comes_near_the_best_fixed_length_and_never_loses_to_plain(acceptance):
    plain, *others = (Simulation([acceptance]).fixed(length) for length in range(K + 1))
    rate = np.mean([Simulation([acceptance], seed=seed).adaptive() for seed in range(3)])
    assert rate > 0.97 * plain
    assert rate > 0.92 * max(plain, *others)


def test_sequences_of_different_acceptance_beat_the_best_common_length():
    acceptance = [0.9, 0.05, 0.9, 0.05]
    best = max(Simulation(acceptance, 0.06, 0.05, 0.02).fixed(length, 4, 150) for length in range(K + 1))
    assert Simulation(acceptance, 0.06, 0.05, 0.02).adaptive(6, 150, skip=2) > 1.02 * best


# at the assumed costs, and where query positions cost twice as much
@pytest.mark.parametrize("acceptance, factor, least", [(0.0, 1, 0.965), (0.2, 1, 0.965), (0.0, 2, 0.965), (0.2, 2, 0.955)])
def test_a_repeatable_request_loses_little_with_a_useless_drafter(acceptance, factor, least):
    costs = factor * POSITION_COST, ASSUMED_CALL, ASSUMED_TOKEN
    adaptive = Simulation([acceptance], *costs).adaptive(repeatable=True, skip=0, pooled_weight=POOLED_WEIGHT_REPEATABLE)
    assert adaptive > least * Simulation([acceptance], *costs).fixed(0)


def test_a_useless_drafter_is_called_less_and_less():
    estimates, called = new_estimates(1, K), []
    Simulation([0.0]).adaptive(20, estimates=estimates)
    Simulation([0.0]).adaptive(40, estimates=estimates, on_choice=lambda lengths: called.append(lengths[0] > 0))
    # a third of what EXPLORATION alone allows, at a third of a step each
    assert 0 < np.mean(called) < 0.01


def test_drafts_come_back_when_the_drafter_gets_better():
    estimates = new_estimates(1, K)
    Simulation([0.0]).adaptive(20, estimates=estimates)
    assert estimates.scalars[RESUME_TIME] > 0
    Simulation([0.9]).adaptive(30, estimates=estimates)
    assert Simulation([0.9]).adaptive(10, skip=0, estimates=estimates) > 1.8 * Simulation([0.9]).fixed(0)


def test_late_steps_do_not_mislead():
    estimates = new_estimates(1, K)
    Simulation([0.8], late=0.03).adaptive(estimates=estimates)
    assert Simulation([0.8]).adaptive(10, skip=0, estimates=estimates) > 1.5 * Simulation([0.8]).fixed(0)


def tiled(tile_cost, measured, B=1):
    """Estimates where 9 of 10 drafted tokens are accepted and a further tile of query positions costs `tile_cost` plain
    steps, measured at the numbers of further positions `measured`."""
    estimates = new_estimates(B, 2 * ROW_TILE)
    estimates.acceptance_counts[:] = 1e6 * np.array([1, 1, 1, 0.9])
    estimates.plain_times[:] = 1, 100
    for n in measured:
        estimates.position_times[n, :2] = tile_cost * ((B + n - 1) // ROW_TILE), 1 / MIN_WEIGHT
    estimates.call_times[:] = 0.1, 100
    estimates.scalars[[RUNNING, NUM_PLAIN]] = B, 100
    return estimates


def test_a_draft_of_one_sequence_ends_at_the_edge_of_a_tile_that_was_never_measured():
    draft_lengths = np.zeros(1, np.int64)
    choose_numba(np.ones(1, np.int64), np.array([99]), np.zeros(1, bool), draft_lengths, np.array([2 * ROW_TILE]),
                 np.zeros((1, 3)), tiled(0.4, [2 * ROW_TILE]), 3.0, False)
    assert draft_lengths[0] == 2 * ROW_TILE - 1


@pytest.mark.parametrize("tile_cost, expected", [(0.1, ROW_TILE + 1), (0.9, ROW_TILE - 1)])
def test_the_target_reads_of_a_draft_what_is_worth_its_cost(tile_cost, expected):
    read = np.array([ROW_TILE + 1])
    shorten_numba(read.copy(), np.zeros((1, 3)), tiled(tile_cost, range(1, 2 * ROW_TILE + 1)), 3.0, read)
    assert read[0] == expected


def test_a_draft_that_is_not_worth_its_cost_keeps_its_first_token():
    estimates, read = tiled(9.0, range(1, 4 * ROW_TILE + 1), B=2), np.array([3, 0])
    estimates.position_times[:, 0] = 9.0
    shorten_numba(read.copy(), np.zeros((2, 3)), estimates, 3.0, read)
    assert read.tolist() == [1, 0]


def test_costs_of_a_busy_start_do_not_stay():
    def rate(busy):
        return sum(Simulation([0.85], busy=busy, seed=seed).adaptive(20, skip=5, pooled_weight=10.0) for seed in range(8))
    assert rate(60) > 0.85 * rate(0)


def test_repeatable_lengths_depend_on_the_sequence_alone():
    """Not on the clock, the estimates or the other sequences."""
    rng, chosen = np.random.default_rng(3), []
    # accepted drafts, then rejected ones, until nothing is drafted
    history = np.append(rng.integers(1, 6, 20), np.zeros(20, np.int64))
    for trial in range(2):
        estimates, requests, draft_lengths = new_estimates(2, K), np.zeros((2, 3)), np.zeros(2, np.int64)
        if trial:
            for table in estimates:
                table += rng.random(table.shape)
        lengths = []
        for step, count in enumerate(history):
            accepted = np.minimum([count, 2 * trial], draft_lengths)
            times = rng.random(2) if trial else (1.0, 0.0)
            record_numba(np.minimum(accepted + 1, draft_lengths), accepted, *[draft_lengths.copy()] * 2, draft_lengths,
                         *times, requests, estimates, True)
            *_, num_reuses = choose_numba(np.array([1 + 3 * step, 5]), np.array([500, 500]),
                                          np.array([False, trial and step > 9]), draft_lengths, np.array([K, K]), requests,
                                          estimates, 3.0, True)
            # as if another request started and ended the reuses
            requests[:, 2] -= num_reuses
            lengths.append(int(draft_lengths[0]))
        chosen.append(lengths)
    assert chosen[0] == chosen[1]
    assert len(set(chosen[0])) > 2 and chosen[0][-1] == 0


def test_no_other_lengths_are_much_better():
    """Against every other choice at known costs. The largest survival first is best for the pass; where calls cost by their
    longest draft, it need not be."""
    rng = np.random.default_rng(0)
    for trial in range(20):
        B, K = 3, 3
        estimates = new_estimates(B, K)
        estimates.plain_times[:, 1] = 100
        estimates.position_times[1:, 1] = estimates.call_times[:, 1] = 1e6
        position, call, token = rng.random(3) * [0.3, 0.2, 0.1 * (trial % 2)]
        estimates.position_times[:, 0] = position * np.arange(B * K + 1)
        estimates.call_times[:, 0] = call + token * np.arange(K + 1)
        requests = rng.random((B, 3)) * [9, 9, 0]
        estimates.acceptance_counts[:] = 1e9 * np.array([1, 1, 1, 0.6])
        estimates.scalars[:] = 0
        estimates.scalars[NUM_PLAIN] = 100  # no plain step on purpose
        draft_lengths = np.zeros(B, np.int64)
        choose_numba(np.ones(B, np.int64), np.array([99, 99, 3]), np.zeros(B, bool), draft_lengths, np.full(B, K), requests,
                     estimates, 3.0, False)
        acceptance = np.minimum(0.6 * (requests[:, 0] + 3) / (requests[:, 1] + 3), 0.98)

        best = max(rate(choice, acceptance, position, call, token)
                   for choice in itertools.product(range(K + 1), range(K + 1), range(2)))
        assert rate(draft_lengths.tolist(), acceptance, position, call, token) > (0.96 if token else 1 / MARGIN) * best


def rate(choice, acceptance, position, call, token):
    tokens = len(choice) + sum(acceptance[b] ** i for b, length in enumerate(choice) for i in range(1, length + 1))
    return tokens / (1 + position * sum(choice) + (call + token * max(choice) if any(choice) else 0))
