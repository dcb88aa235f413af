"""Compilation is announced once, counted, and kept out of the engine's clock."""

import subprocess
import sys
from pathlib import Path

CHECKOUT = Path(__file__).parents[3]
CODE = """
import time
from foredraft.kernels.core import compilation
from foredraft.kernels.core.backend import njit
from foredraft.engine.clock import now

@njit(cache=False)
def inner(x):
    return x + 1

@njit(cache=False)
def outer(x):
    return inner(x) * 2

announced = []
compilation.on_first.append(lambda: announced.append(compilation.compiled()))
before, wall = now(), time.perf_counter()
outer(1), outer(2)
spent, wall = now() - before, time.perf_counter() - wall
print(announced, compilation.compiled(), compilation.compile_seconds() > 0.05, spent < 0.2 * wall)
outer(1.5)
print(announced, compilation.compiled())
"""


def test_a_kernel_and_the_one_it_calls_are_one_compilation():
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, cwd=CHECKOUT)
    assert done.stdout.splitlines() == ["[0] 2 True True", "[0] 4"], done.stderr
