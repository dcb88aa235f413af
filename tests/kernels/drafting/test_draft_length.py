"""Draft lengths: the best of all choices, whole requests of coin tosses by a simulated clock, and early stops."""

import itertools

import numpy as np
import pytest

from foredraft.kernels.drafting import draft_length as dl
from foredraft.kernels.drafting.draft_length import (
    QUERY,
    TOKEN,
    WEIGHT,
    Stops,
    choose,
    choose_alone,
    learn,
    new_memory,
    weigh_loop,
    weigh_reference,
)

K = 6


class World:
    """Requests of B sequences: a token of sequence b is accepted with probability right[b]; costs in plain steps."""

    def __init__(self, right, query=0.08, call=0.175, token=0.075, late=0.0, seed=0):
        self.right, self.costs, self.late = np.array(right), (query, call, token), late
        self.random = np.random.default_rng(seed)

    def seconds(self, running, drafted):
        """Of the pass and of drafting."""
        query, call, token = self.costs
        noise = self.random.lognormal(0, 0.05, 2) * np.where(self.random.random(2) < self.late, 20, 1)
        drafting = (call + token * drafted.max()) * noise[0] if drafted.any() else 0.0
        return (0.2 + 0.8 * running / len(self.right) + query * drafted.sum()) * noise[1], drafting

    def run(self, begin, choose, learn, requests, length, skip):
        """Tokens a second without the first `skip` requests, and the share of steps with a draft."""
        B, emitted, total, drafting_steps, steps = len(self.right), 0, 0.0, 0, 0
        for request in range(requests):
            lengths, limits, finished = np.ones(B, np.int64), np.full(B, length + 1), np.zeros(B, bool)
            max_tokens = np.zeros(B, np.int64)
            begin()
            while not finished.all():
                running = int((~finished).sum())
                choose((lengths, limits, finished, np.full(B, K)), max_tokens)
                drafted = np.where(finished, 0, np.minimum(max_tokens, np.maximum(limits - lengths - 1, 0)))
                right = self.random.random((B, K)) < self.right[:, None]
                accepted = np.minimum(right.cumprod(1).sum(1), drafted)
                seconds = self.seconds(running, drafted)
                learn(drafted, accepted, max_tokens, running, seconds)
                lengths += np.where(finished, 0, accepted + 1)
                finished = lengths >= limits
                if request >= skip:
                    total, steps, drafting_steps = total + sum(seconds), steps + 1, drafting_steps + drafted.any()
            emitted += B * length if request >= skip else 0
        return emitted / total, drafting_steps / steps

    def fixed(self, width, requests=30, length=60):
        return self.run(lambda: None, lambda _views, most: most.fill(width), lambda *_: None, requests, length, 0)[0]

    def policy(self, requests=30, length=60, skip=3, memory=None, alone=False):
        B, choice, explored, records = len(self.right), 0, False, None
        memory = new_memory(1, B, K) if memory is None else memory

        def begin():
            nonlocal records
            records = np.zeros((B, 2))

        def chosen(views, max_tokens):
            nonlocal choice, explored
            if alone:
                choice = choose_alone(*views, records, K, max_tokens)[0]
            else:
                choice, explored = choose(*views, records, *memory, 0, max_tokens)[:2]

        def learned(drafted, accepted, max_tokens, running, seconds):
            learn(drafted, accepted, max_tokens, choice, explored, running, *seconds, 0.0, records, *memory, alone)

        return self.run(begin, chosen, learned, requests, length, skip)


@pytest.mark.first(1)
@pytest.mark.parametrize("right", [0.0, 0.45, 0.65, 0.93])
def test_one_sequence_comes_near_the_best_fixed_length_and_hardly_loses_to_plain_steps(right):
    plain, *others = (World([right]).fixed(width) for width in range(K + 1))
    rate = np.mean([World([right], seed=seed).policy()[0] for seed in range(3)])
    assert rate > 0.97 * plain
    assert rate > 0.92 * max(plain, *others)


@pytest.mark.parametrize("right, query", [(0.0, 1), (0.2, 1), (0.0, 2)])
def test_a_repeatable_request_loses_little_with_a_useless_drafter(right, query):
    costs = query * QUERY, TOKEN, TOKEN
    assert World([right], *costs).policy(alone=True, skip=0)[0] > 0.95 * World([right], *costs).fixed(0)


def test_a_useless_drafter_is_rarely_called_and_a_better_one_is_found_again():
    memory = new_memory(1, 1, K)
    World([0.0]).policy(20, memory=memory)
    _, share = World([0.0]).policy(40, memory=memory)
    assert 0 < share < 0.05
    World([0.9]).policy(30, memory=memory)
    assert World([0.9]).policy(10, skip=0, memory=memory)[0] > 1.8 * World([0.9]).fixed(0)


def test_late_steps_do_not_mislead():
    memory = new_memory(1, 1, K)
    World([0.8], late=0.03).policy(memory=memory)
    assert World([0.8]).policy(10, skip=0, memory=memory)[0] > 1.5 * World([0.8]).fixed(0)


def test_a_useless_batch_loses_little():
    right, costs = [0.0] * 8, (0.115, 0.02, 0.01)
    assert World(right, *costs).policy(12, skip=2)[0] > 0.97 * World(right, *costs).fixed(0, 12)


def test_no_other_lengths_are_much_better():
    """Against every other choice at known costs and probabilities. Where a call's cost grows with the longest draft, taking
    the likeliest tokens first need not be best."""
    random = np.random.default_rng(0)
    for trial in range(20):
        B, width = 3, 3
        positions, costs, plain, credit = new_memory(1, B, width)
        query, token = random.random(2) * [0.3, 0.1 * (trial % 2)]
        costs[0] = query, 1, token, 1
        plain[B], credit[:] = (1, 100), -10  # nothing to be explored
        positions[:] = 1e9 * np.array([1, 1, 1, 0.6])
        records = random.random((B, 2)) * 9
        found = np.zeros(B, np.int64)
        views = np.ones(B, np.int64), np.array([99, 99, 3]), np.zeros(B, bool), np.full(B, width)
        choose(*views, records, positions, costs, plain, credit, 0, found)
        chance = np.minimum(0.6 * (records[:, 0] + WEIGHT) / (records[:, 1] + WEIGHT), 1)

        def rate(choice, chance=chance, query=query, token=token):
            tokens = len(choice) + sum(chance[b] ** i for b, n in enumerate(choice) for i in range(1, n + 1))
            return tokens / (1 + query * sum(choice) + (token * (1 + max(choice)) if any(choice) else 0))

        best = max(map(rate, itertools.product(range(width + 1), range(width + 1), range(2))))
        assert rate(found.tolist()) > (0.94 if token else 1 - 1e-9) * best


def test_the_arm_with_the_higher_rate_is_taken():
    for better in (0, 1):
        memory = new_memory(2, 1, K)
        memory[2][1] = 1, 100
        memory[0][:] = 1e3 * np.array([1, 1, 1, 0.5])
        memory[0][better, :, 3] = 900
        views = np.ones(1, np.int64), np.array([99]), np.zeros(1, bool), np.array([K])
        assert choose(*views, np.zeros((1, 2)), *memory, 0, np.zeros(1, np.int64))[0] == 1 + better


def test_repeatable_lengths_depend_on_the_request_alone():
    """Not on times, nor on the sequences beside it."""
    random, chosen = np.random.default_rng(3), []
    history = np.append(random.integers(1, 6, 9), np.zeros(60, np.int64))
    for trial in range(2):
        memory, records, max_tokens, seen = new_memory(1, 2, K), np.zeros((2, 2)), np.zeros(2, np.int64), []
        for step, count in enumerate(history):
            views = np.array([1 + 3 * step, 5]), np.array([500, 500]), np.array([False, trial and step > 9]), np.full(2, K)
            choice = choose_alone(*views, records, K, max_tokens)[0]
            accepted = np.minimum([count, 2 * trial], max_tokens)
            learn(max_tokens, accepted, max_tokens, choice, False, 2, *random.random(2), 0.0, records, *memory, True)
            seen.append(int(max_tokens[0]))
        chosen.append(seen)
    assert chosen[0] == chosen[1]
    assert len(set(chosen[0])) > 2 and 0 in chosen[0]


def test_compiled_functions_agree_with_their_source():
    compiled, source = (World([0.7, 0.2], seed=5) for _ in range(2))
    expected = compiled.policy(4)
    names = ("choose", "learn", "_maximise", "_estimate", "_plain_seconds", "_near")
    originals = {name: getattr(dl, name) for name in names}
    try:
        for name in names:
            setattr(dl, name, originals[name].py_func)
            if name in globals():
                globals()[name] = originals[name].py_func
        assert source.policy(4) == pytest.approx(expected)
    finally:
        for name, function in originals.items():
            setattr(dl, name, function)
            if name in globals():
                globals()[name] = function


def lengths_of(weigh, stops, logits, sampled):
    found = []
    for b, rows in enumerate(logits):
        found.append(0)
        for i, scores in enumerate(rows):
            lse = np.array([np.log(np.exp(scores - scores.max()).sum())])
            taken, more = weigh(stops, b, i, scores, sampled, lse)
            found[-1] += taken
            if not more:
                break
    return found


@pytest.mark.parametrize("sampled", [False, True])
@pytest.mark.parametrize("costs", [(0.0, 0.0, 0.0), (0.5, 0.0, 0.0), (0.0, 0.1, 0.05), (0.3, 0.1, 0.0)])
def test_compiled_stops_agree_with_the_reference(costs, sampled):
    logits = (np.random.default_rng(0).standard_normal((40, K, 20)) * np.array([1, 3, 9, 3]).repeat(10)[:, None, None]
              ).astype(np.float32)
    ours, theirs = (lengths_of(weigh, Stops(*costs, np.ones((40, 2))), logits, sampled)
                    for weigh in (weigh_loop, weigh_reference))
    assert ours == theirs
    # sampled drafts stop at a floor only, and nothing stops without costs
    assert (ours == [K] * 40) == (costs[0] == 0 and (sampled or costs[1] == 0))


def test_surer_distributions_and_cheaper_query_positions_draft_more():
    logits = (3 * np.random.default_rng(0).standard_normal((40, 12, 20))).astype(np.float32)

    def drafted(query, scale=1):
        return sum(lengths_of(weigh_loop, Stops(0.0, query, query, np.ones((40, 2))), logits * np.float32(scale), False))

    assert drafted(0.02) > drafted(0.1) > drafted(0.4) > 0
    assert drafted(0.1, 4) > 3 * drafted(0.1, 0.25)
