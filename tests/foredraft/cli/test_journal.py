import json
import os
import resource
import subprocess
import sys

import pytest

from foredraft.cli.journal import Journal
from foredraft.errors import UserError


def record(index, **more):
    return {"id": f"a{index}", "index": index, "summary": "é" * 5, **more}


def test_lines_are_appended_and_known_again(tmp_path):
    path = tmp_path / "out.jsonl"
    with Journal(path, True) as journal:
        assert journal.done == {}
        journal.append(record(3))
        journal.append(record(1))
    with Journal(path, True) as journal:
        assert journal.done == {3: "a3", 1: "a1"}
        journal.append(record(2))
    assert [json.loads(line) for line in path.read_text().splitlines()] == [record(3), record(1), record(2)]


@pytest.mark.parametrize("half", [b'{"id": "a2", "ind', b'{"i', b'{"id": "' + b"x" * 200_000])
def test_a_half_written_last_line_is_cut_off(tmp_path, half):
    path = tmp_path / "out.jsonl"
    for whole in (b"", json.dumps(record(1)).encode() + b"\n"):
        path.write_bytes(whole + half)
        with Journal(path, True) as journal:
            assert len(journal.done) == (1 if whole else 0)
        assert path.read_bytes() == whole


@pytest.mark.parametrize(("text", "is_begun"), [
    (b"a text of the user's own", True), (b'{"article": "w1"}', True), (b'{"id": "a2", "ind', False),
    (json.dumps(record(1)).encode() + b"\nwords", True)])
def test_what_no_run_of_ours_wrote_is_never_cut_off(tmp_path, text, is_begun):
    path = tmp_path / "out.jsonl"
    path.write_bytes(text)
    with pytest.raises(UserError, match="not a result of an earlier run"):
        Journal(path, is_begun)
    assert path.read_bytes() == text


def test_a_full_disk_leaves_whole_lines(tmp_path):
    path = tmp_path / "out.jsonl"
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    with Journal(path, True) as journal:
        resource.setrlimit(resource.RLIMIT_FSIZE, (150, before[1]))
        try:
            journal.append(record(0))
            journal.append(record(1))
            # does not fit in what is left, so that a part of it is written first
            with pytest.raises(UserError, match="out.jsonl: file too large; all finished lines are written"):
                journal.append(record(2, long="z" * 80))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [json.loads(line) for line in path.read_text().splitlines()] == [record(0), record(1)]
    with Journal("/dev/full", False) as journal, pytest.raises(UserError, match="/dev/full: no space left on device"):
        journal.append(record(0))


def test_standard_output(capfd, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with Journal("-", False) as journal:
        journal.append(record(0))
    assert not journal.is_file and json.loads(capfd.readouterr().out) == record(0) and not list(tmp_path.iterdir())


def test_one_writer_at_a_time_even_if_the_other_dies(tmp_path):
    path = tmp_path / "out.jsonl"
    hold = ("import sys; from foredraft.cli.journal import Journal; j = Journal(sys.argv[1], True); print(1, flush=True); "
            "input()")
    paths = os.pathsep.join(filter(None, (os.getcwd(), os.environ.get("PYTHONPATH"))))
    other = subprocess.Popen([sys.executable, "-c", hold, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                             env=os.environ | {"PYTHONPATH": paths})
    assert other.stdout.readline() == b"1\n"
    with pytest.raises(UserError, match="another run is writing it"):
        Journal(path, True)
    other.kill()
    other.communicate()
    Journal(path, True).close()


def test_a_strange_file_is_refused_and_left_alone(tmp_path):
    path = tmp_path / "out.jsonl"
    for text in ('{"article": "w1"}\n', "[1]\n", "words\n"):
        path.write_text(json.dumps(record(0)) + "\n" + text)
        with pytest.raises(UserError, match="out.jsonl, line 2: not a result of an earlier run"):
            Journal(path, True)
        assert path.read_text().endswith(text)
