from __future__ import annotations

import os

import pytest

from foredraft.atomic_write import write_atomic


def test_text_and_bytes(tmp_path):
    path = tmp_path / "new" / "file.json"
    write_atomic(path, "é\n")
    assert path.read_bytes() == b"\xc3\xa9\n"
    write_atomic(str(path), b"\xff")
    assert path.read_bytes() == b"\xff" and [file.name for file in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("where", ["fsync", "replace"])
def test_an_error_leaves_only_the_old_file(tmp_path, monkeypatch, where):
    path = tmp_path / "file.json"
    write_atomic(path, "old")

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, where, full)
        with pytest.raises(OSError, match="No space"):
            write_atomic(path, "new")
    assert path.read_text() == "old" and [file.name for file in tmp_path.iterdir()] == [path.name]
