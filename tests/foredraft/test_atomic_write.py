from __future__ import annotations

import os
import platform

import pytest

from foredraft.atomic_write import why_full, work_folder, write_atomic
from foredraft.errors import UserError


def test_text_and_bytes(tmp_path):
    path = tmp_path / "new" / "file.json"
    write_atomic(path, "é\n")
    assert path.read_bytes() == b"\xc3\xa9\n"
    write_atomic(str(path), b"\xff")
    assert path.read_bytes() == b"\xff" and [file.name for file in path.parent.iterdir()] == [path.name]


def test_a_symbolic_link_is_followed(tmp_path):
    link = tmp_path / "link.json"
    link.symlink_to(tmp_path / "elsewhere" / "file.json")
    write_atomic(link, "text")
    assert link.is_symlink() and (tmp_path / "elsewhere" / "file.json").read_text() == "text"


@pytest.mark.parametrize("where", ["fsync", "replace"])
def test_an_error_leaves_only_the_old_file(tmp_path, monkeypatch, where):
    path = tmp_path / "file.json"
    write_atomic(path, "old")

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, where, full)
        with pytest.raises(UserError, match="file.json: no space left on device; free some space"):
            write_atomic(path, "new")
    assert path.read_text() == "old" and [file.name for file in tmp_path.iterdir()] == [path.name]


def test_a_work_folder_goes_with_what_a_killed_process_left_in_its_own(tmp_path):
    dead = tmp_path / f".out.work.{platform.node()}.999999999"
    dead.mkdir()
    (dead / "run-0").write_text("")
    with pytest.raises(KeyError), work_folder(tmp_path / "out") as folder:
        assert not dead.exists() and folder.parent == tmp_path
        (folder / "run-0").write_text("")
        write_atomic(tmp_path / "out", "text")
        raise KeyError
    assert [file.name for file in tmp_path.iterdir()] == ["out"]


def test_what_a_killed_process_left_is_deleted_by_the_next_write(tmp_path):
    host = platform.node()
    alive, dead = tmp_path / f".out.{host}.{os.getppid()}", tmp_path / f".out.{host}.999999999"
    others = [tmp_path / f".out.{host}.txt", tmp_path / f".output.{host}.999999999", tmp_path / ".out.elsewhere.999999999"]
    for path in (alive, dead, *others):
        path.write_text("")
    write_atomic(tmp_path / "out", "text")
    assert not dead.exists() and alive.exists() and all(path.exists() for path in others)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs Linux's device that is always full")
def test_torchs_error_on_a_full_disk_is_known(tmp_path):
    import torch

    with pytest.raises(RuntimeError) as found:
        torch.save(torch.zeros(100_000), "/dev/full")
    assert why_full(found.value) and why_full(RuntimeError("out of memory")) is None
    with pytest.raises(RuntimeError) as found:
        torch.save(torch.zeros(10), tmp_path)
    assert why_full(found.value) is None
