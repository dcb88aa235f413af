"""Mutations of the functions that verify drafts: `python -m tests.mutation_score [--function NAME]`.

They are those of cosmic-ray's operators that take no arguments; it needs `pip install cosmic-ray`. Each mutant runs in a
process of its own with the tests of its function; it is killed if one fails, if the process ends otherwise, or if it uses 20
seconds more than five times the tests' CPU time. Only functions in Python are mutated: the references of kernels, which the
tests compare with the compiled kernels. tests/engine/test_mutants.py mutates those.
"""

from __future__ import annotations

import argparse
import difflib
import importlib
import inspect
import os
import resource
import sys
import textwrap
import time
from collections.abc import Iterator
from types import CodeType

# libgomp and numba cannot go on in a forked process once they have started a thread
os.environ.update(OMP_NUM_THREADS="1", FOREDRAFT_THREADS="1")

import pytest  # noqa: E402  the environment above comes first

ACCEPT, BLOCK = "tests/kernels/verify/test_accept.py::", "tests/kernels/verify/test_block.py::"
EQUAL = "test_numba_equals_the_reference"
# module, function, tests
FUNCTIONS = (
    ("foredraft.kernels.verify.accept", "accept_reference", (
        f"{ACCEPT}test_greedy_sequences_have_no_dense_drafts",
        f"{ACCEPT}test_a_residual_without_mass_leaves_the_distribution", ACCEPT + EQUAL,
        f"{ACCEPT}test_trees_equal_the_reference")),
    ("foredraft.kernels.verify.accept", "accept_greedy_reference", (
        f"{ACCEPT}test_greedy_kernels_agree", f"{ACCEPT}test_trees_follow_the_accepted_child")),
    ("foredraft.kernels.verify.block", "block_reference", (
        f"{BLOCK}test_numba_equals_the_reference_on_drafts_that_chance_accepts",
        f"{BLOCK}test_point_masses_and_greedy_sequences_are_verified_token_by_token",
        f"{BLOCK}test_a_residual_without_mass_leaves_the_distribution", BLOCK + EQUAL)),
    ("foredraft.engine.verify", "verify", ("tests/engine/test_verify.py", "tests/engine/test_loop.py")),
)


def mutations(source: str) -> Iterator[tuple[str, str]]:
    """(operator, mutated source) of every mutation."""
    from cosmic_ray.ast import ast_nodes, get_ast
    from cosmic_ray.mutating import mutate_code
    from cosmic_ray.operators.provider import OperatorProvider

    provider = OperatorProvider()
    for name in provider:
        # operators with arguments wait for names of variables
        if provider[name].arguments():
            continue
        operator = provider[name]()
        count = sum(len(list(operator.mutation_positions(node))) for node in ast_nodes(get_ast(source)))
        for occurrence in range(count):
            yield name, mutate_code(source, operator, occurrence)


def compiled(module, name: str, source: str) -> CodeType:
    """The code of a function as its module would define it."""
    names = dict(vars(module))
    exec(compile(source, module.__file__, "exec"), names)
    return names[name].__code__


def run(tests: tuple[str, ...]) -> int:
    """The exit code of pytest, in this process."""
    return int(pytest.main([*tests, "-x", "-q", "-n0", "-p", "no:cacheprovider", "-m", "not slow and not full"]))


def survives(function, code: CodeType, tests: tuple[str, ...], seconds: int) -> bool:
    """Whether the tests pass with the function's code replaced."""
    child = os.fork()
    if child == 0:
        quiet = os.open(os.devnull, os.O_WRONLY)
        os.dup2(quiet, 1)
        os.dup2(quiet, 2)
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
        # all who imported the function see the new code
        function.__code__ = code
        os._exit(run(tests))
    ended = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if ended > 1:
        sys.exit(f"pytest ended with exit code {ended}, so the mutant was not tested")
    return ended == 0


def changed(old: str, new: str) -> str:
    """The lines of a mutation that differ."""
    lines = difflib.unified_diff(old.splitlines(), new.splitlines(), lineterm="", n=0)
    return "\n".join(f"    {line}" for line in lines if line[0] in "+-" and line[:3] not in ("+++", "---"))


def main() -> None:
    """Print the survivors, and a row of a table for each function."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--function", action="append", choices=[name for _, name, _ in FUNCTIONS], help="repeatable")
    given = parser.parse_args()
    rows = ["| function | mutants | killed | survived | score | minutes |", "|---|---|---|---|---|---|"]
    for file, name, tests in FUNCTIONS:
        if given.function and name not in given.function:
            continue
        began, used = time.monotonic(), time.process_time()
        if run(tests):
            sys.exit(f"the tests of {name} fail without a mutation")
        seconds = 20 + int(5 * (time.process_time() - used))
        module = importlib.import_module(file)
        function = getattr(module, name)
        source, count, survived = textwrap.dedent(inspect.getsource(function)), 0, 0
        for operator, mutant in mutations(source):
            count += 1
            if survives(function, compiled(module, name, mutant), tests, seconds):
                survived += 1
                print(f"survived: {name}, {operator}\n{changed(source, mutant)}", flush=True)
        rows.append(f"| `{name}` | {count} | {count - survived} | {survived} | {1 - survived / count:.1%} "
                    f"| {(time.monotonic() - began) / 60:.0f} |")
    print(*rows, sep="\n")


if __name__ == "__main__":
    main()
