from __future__ import annotations

import os

import pytest

from foredraft import atomic_write as whole


def test_text_and_bytes_appear_whole(tmp_path):
    path = tmp_path / "new" / "file.json"
    whole.write_atomic(path, "é\n")
    assert path.read_bytes() == b"\xc3\xa9\n"
    whole.write_atomic(str(path), b"\xff")
    assert path.read_bytes() == b"\xff" and [file.name for file in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("where", ["fsync", "replace"])
def test_after_an_error_the_old_file_stands_alone(tmp_path, monkeypatch, where):
    path = tmp_path / "file.json"
    whole.write_atomic(path, "old")

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, where, full)
        with pytest.raises(OSError, match="No space"):
            whole.write_atomic(path, "new")
    assert path.read_text() == "old" and [file.name for file in tmp_path.iterdir()] == [path.name]
