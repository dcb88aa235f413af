"""The tiles' machine code: complete, built once, and built anew where it cannot be kept."""

import numpy as np
import pytest

pytest.importorskip("numba")

from foredraft.kernels.core import tile_library as library
from foredraft.kernels.core.gemm_microkernel import PAIRS, ROW_TILE
from foredraft.kernels.core.gemm_tile import STORAGES


def test_every_tile_that_kernels_may_call_is_there():
    _engine, table = library.load(PAIRS)
    wanted = np.zeros_like(table, bool)
    wanted[:, 1 : ROW_TILE + 1, :2] = wanted[:, 1, 2] = True
    assert ((table != 0) == wanted).all() and len(table) == len(STORAGES)
    assert len(np.unique(table[wanted])) == wanted.sum()


def test_the_code_is_built_once(tmp_path, monkeypatch):
    monkeypatch.setattr(library, "kept_in", lambda: str(tmp_path))
    built = []
    monkeypatch.setattr(library, "build", lambda pairs: built.append(pairs) or b"code")
    assert library.stored(PAIRS) == library.stored(PAIRS) == b"code"
    assert len(built) == 1 and [file.suffix for file in tmp_path.iterdir()] == [".o"]


@pytest.mark.parametrize("folder", [None, "missing"])
def test_code_that_cannot_be_kept_is_built_again(tmp_path, monkeypatch, folder):
    monkeypatch.setattr(library, "kept_in", lambda: folder and str(tmp_path / folder))
    monkeypatch.setattr(library, "build", lambda pairs: b"code")
    assert library.stored(PAIRS) == library.stored(PAIRS) == b"code"


def test_a_full_disk_leaves_nothing(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(library, "kept_in", lambda: str(tmp_path))
    monkeypatch.setattr(library, "build", lambda pairs: b"code")
    monkeypatch.setattr(library.os, "replace", full)
    assert library.stored(PAIRS) == b"code" and not list(tmp_path.iterdir())
