"""Worker threads: every task runs once, whatever the threads do; idle threads sleep; exits and forks work."""

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("numba")
from foredraft.kernels.core import workers
from foredraft.kernels.core.backend import njit
from foredraft.kernels.core.workers import parallel

CHECKOUT = Path(__file__).parents[3]


@parallel
@njit()
def _count(first, last, added, sums):
    for task in range(first, last):
        sums[task] += added + task


@njit()
def count_loop(tasks, threads, added, sums):
    _count(tasks, threads, added, sums)


@pytest.fixture
def seven_threads():
    before = workers._number
    workers.set_num_threads(7)
    assert workers.get_num_threads() == 7
    yield
    workers.set_num_threads(before)


def check(draw, calls):
    for call in range(calls):
        tasks, threads = draw.integers(0, 60), draw.integers(1, 8)
        sums = np.zeros(tasks, np.int64)
        count_loop(tasks, threads, call, sums)
        assert np.array_equal(sums, call + np.arange(tasks)), (tasks, threads)


def test_every_task_runs_once(seven_threads):
    check(np.random.default_rng(0), 3000)


def test_kernels_of_several_threads_at_once(seven_threads):
    failed = []

    def work(seed):
        try:
            check(np.random.default_rng(seed), 1000)
        except AssertionError as error:
            failed.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed


def test_a_kernel_does_not_wait_for_threads_that_do_not_come():
    sums = np.zeros(50, np.int64)
    count_loop(50, 1000, 3, sums)
    assert np.array_equal(sums, 3 + np.arange(50))


def test_idle_threads_sleep(seven_threads):
    check(np.random.default_rng(0), 10)
    time.sleep(0.05)
    before = time.process_time()
    time.sleep(0.3)
    assert time.process_time() - before < 0.05


def test_no_kernel_uses_numbas_threads():
    """numba takes a lock in Python code whenever it starts a kernel; an interrupt there leaves it held for ever. Its first
    start changes PyTorch's number of threads in the calling thread, on which the order of PyTorch's sums depends."""
    folders = ("kernels", "engine", "ngram_native")
    files = [file for folder in folders for file in (CHECKOUT / folder).rglob("*.py")]
    assert len(files) > 100
    assert [file for file in files if "parallel=True" in file.read_text()] == []


CALLS = """
import os, sys
import numpy as np
from foredraft.kernels.core import atomic
if sys.argv[1] == "sleeps":
    atomic._FUTEX = None
from foredraft.kernels.core import workers
from foredraft.kernels.model.linear import linear_numba
from foredraft.kernels.model.packing import pack
weight = np.random.default_rng(0).standard_normal((800, 400)).astype(np.float32)
x = np.random.default_rng(1).standard_normal((4, 400)).astype(np.float32)

def check():
    for _ in range(200):
        assert np.allclose(linear_numba(x, pack(weight), 800), x @ weight.T, atol=1e-3)

check()
assert workers._started == 2
if sys.argv[1] == "fork":
    pid = os.fork()
    check()
    if pid:
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
"""


@pytest.mark.parametrize("case", [
    "exit",
    pytest.param("fork", marks=pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")),
    pytest.param("sleeps", marks=pytest.mark.full),
])
def test_a_process_that_has_used_workers(case, tmp_path):
    # compiled code does not know which way of sleeping it was compiled for
    folder = {"XDG_CACHE_HOME": str(tmp_path)} if case == "sleeps" else {}
    done = subprocess.run([sys.executable, "-c", CALLS, case], capture_output=True, text=True, cwd=CHECKOUT, timeout=300,
                          env=os.environ | {"FOREDRAFT_THREADS": "3"} | folder)
    assert (done.returncode, done.stderr) == (0, "")
