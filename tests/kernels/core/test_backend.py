"""The cache of compiled kernels, and their results for any number of threads."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from foredraft.kernels.core.backend import strip_comments

CHECKOUT = Path(__file__).parents[3]
SUM = """
import zlib
import numpy as np
from foredraft.kernels.core import backend, workers
from foredraft.kernels.model.linear import linear_loop
from foredraft.kernels.model.packing import pack
x = np.random.default_rng(0).standard_normal((3, 400)).astype(np.float32)
out = np.empty((3, 700), np.float32)
linear_loop(x, pack(np.random.default_rng(1).standard_normal((700, 400)).astype(np.float32)), out, workers.get_num_threads())
print(workers.get_num_threads(), backend.kept_in() is not None, zlib.crc32(out.tobytes()))
"""


def run(**environment):
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("NUMBA_", "XDG_"))}
    done = subprocess.run([sys.executable, "-c", SUM], env=kept | environment, capture_output=True, text=True, cwd=CHECKOUT)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.split()


def test_comments_and_docstrings_do_not_change_the_cache_folder():
    source = ('"""What it does."""\n\ndef f(x):  # a comment\n    """Of x\'s."""\n\n    # another\n'
              '    return {"#": x, "a\\\\": 1}["#"]\n')
    assert strip_comments(source) == '\ndef f(x):\n    return {"#": x, "a\\\\": 1}["#"]'.strip()
    assert strip_comments(source.replace("return", "yield")) != strip_comments(source)
    kept = 'text = """a # b\nc"""'
    assert strip_comments(kept) == kept


@pytest.mark.full
def test_without_a_writable_folder_kernels_are_compiled_each_time(tmp_path):
    (tmp_path / "file").write_text("")
    kept = run(XDG_CACHE_HOME=str(tmp_path))
    assert kept[1] == "True"
    assert run(XDG_CACHE_HOME=str(tmp_path / "file"))[1:] == ["False", kept[2]]


@pytest.mark.full
@pytest.mark.parametrize("threads", [1, 7])
def test_any_number_of_threads_gives_the_same_bits(threads, tmp_path):
    found = run(FOREDRAFT_THREADS=str(threads), XDG_CACHE_HOME=str(tmp_path))
    assert found[0] == str(threads)
    assert found[2] == run(XDG_CACHE_HOME=str(tmp_path))[2]


def test_only_triton_files_carry_device_code():
    files = [file for file in (CHECKOUT / "kernels").rglob("*.py") if "\n@jit" in file.read_text()]
    assert files and all(file.stem.endswith("_triton") for file in files), files
