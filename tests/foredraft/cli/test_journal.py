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
    with Journal(path) as journal:
        assert journal.done == {}
        journal.append(record(3))
        journal.append(record(1))
    with Journal(path) as journal:
        assert journal.done == {3: "a3", 1: "a1"}
        journal.append(record(2))
    assert [json.loads(line) for line in path.read_text().splitlines()] == [record(3), record(1), record(2)]


@pytest.mark.parametrize("half", [b'{"id": "a2", "ind', b"x" * 200_000])
def test_a_half_written_last_line_is_cut_off(tmp_path, half):
    path = tmp_path / "out.jsonl"
    for whole in (b"", json.dumps(record(1)).encode() + b"\n"):
        path.write_bytes(whole + half)
        with Journal(path) as journal:
            assert len(journal.done) == (1 if whole else 0)
        assert path.read_bytes() == whole


def test_a_full_disk_leaves_whole_lines(tmp_path):
    path = tmp_path / "out.jsonl"
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    with Journal(path) as journal:
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
    with Journal("/dev/full") as journal, pytest.raises(UserError, match="/dev/full: no space left on device"):
        journal.append(record(0))


def test_one_writer_at_a_time_even_if_the_other_dies(tmp_path):
    path = tmp_path / "out.jsonl"
    hold = "import sys; from foredraft.cli.journal import Journal; j = Journal(sys.argv[1]); print(1, flush=True); input()"
    paths = os.pathsep.join(filter(None, (os.getcwd(), os.environ.get("PYTHONPATH"))))
    other = subprocess.Popen([sys.executable, "-c", hold, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                             env=os.environ | {"PYTHONPATH": paths})
    assert other.stdout.readline() == b"1\n"
    with pytest.raises(UserError, match="another run is writing it"):
        Journal(path)
    other.kill()
    other.communicate()
    Journal(path).close()


def test_a_strange_file_is_refused_and_left_alone(tmp_path):
    path = tmp_path / "out.jsonl"
    for text in ('{"article": "w1"}\n', "[1]\n", "words\n"):
        path.write_text(json.dumps(record(0)) + "\n" + text)
        with pytest.raises(UserError, match="out.jsonl, line 2: not a result of an earlier run"):
            Journal(path)
        assert path.read_text().endswith(text)
