"""Random turns, and waiting for threads that still spin."""

import itertools

from foredraft.bench.harness.interleave import orders, wait_until_idle


def test_every_name_in_every_order_and_all_neighbours():
    drawn = list(itertools.islice(orders("abc", seed=0), 60))
    assert all(sorted(order) == ["a", "b", "c"] for order in drawn)
    assert len({tuple(order) for order in drawn}) == 6
    assert drawn == list(itertools.islice(orders("abc", seed=0), 60)) != list(itertools.islice(orders("abc", seed=1), 60))


class Machine:
    """Time passes only while sleeping; other threads use the processor until `busy_until`."""

    def __init__(self, busy_until: float):
        self.now, self.used, self.busy_until = 0.0, 0.0, busy_until

    def sleep(self, seconds):
        self.used += max(0.0, min(seconds, self.busy_until - self.now))
        self.now += seconds

    def wait(self):
        wait_until_idle(self.sleep, lambda: self.now, lambda: self.used)
        return self.now


def test_it_waits_as_long_as_something_spins_but_not_for_ever():
    assert Machine(0.0).wait() < 0.02
    assert 0.2 <= Machine(0.2).wait() < 0.22
    assert 1.0 <= Machine(9.0).wait() < 1.02
