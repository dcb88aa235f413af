import os
import subprocess
import sys
from pathlib import Path

import pytest

import foredraft
from foredraft.errors import UserError
from foredraft.output_lock import OutputLock, only_writer

HOLD = ("import sys; from foredraft.output_lock import OutputLock; lock = OutputLock(sys.argv[1]); "
        "print(lock.acquire(), flush=True); input()")
# each line of the file must be one process's alone
APPEND = """
import sys
from pathlib import Path
from foredraft.output_lock import OutputLock
for _ in range(10):
    lock = OutputLock(sys.argv[1])
    assert lock.acquire(wait=True)
    number = Path(sys.argv[1]).read_text() or 0
    Path(sys.argv[1]).write_text(str(int(number) + 1))
    lock.release()
"""


def start(script: str, path: Path) -> subprocess.Popen:
    paths = os.pathsep.join(filter(None, (str(Path(foredraft.__file__).parents[1]), os.environ.get("PYTHONPATH"))))
    return subprocess.Popen([sys.executable, "-c", script, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                            env=os.environ | {"PYTHONPATH": paths})


def test_one_process_has_the_right_until_it_ends(tmp_path):
    path = tmp_path / "new folder" / "out"
    other = start(HOLD, path)
    assert other.stdout.readline() == b"True\n"
    assert not OutputLock(path).acquire()
    with pytest.raises(UserError, match="--record .*out: another run is writing it"), only_writer(path, "--record"):
        pass
    other.kill()
    other.communicate()
    # the file of a killed process is in nobody's way, and goes with the next one's
    assert [file.name for file in path.parent.iterdir()] == [".out.lock"]
    with only_writer(path):
        # a lock of its own, as in another process
        assert not OutputLock(path).acquire()
    assert not list(path.parent.iterdir())


def test_a_failure_leaves_the_file(tmp_path):
    with pytest.raises(KeyError), only_writer(tmp_path / "out"):
        raise KeyError
    assert [file.name for file in tmp_path.iterdir()] == [".out.lock"]
    assert OutputLock(tmp_path / "out").acquire()


def test_processes_that_wait_have_the_right_one_after_the_other(tmp_path):
    path = tmp_path / "number"
    path.write_text("")
    others = [start(APPEND, path) for _ in range(2)]
    assert [other.wait() for other in others] == [0, 0]
    assert path.read_text() == "20" and [file.name for file in tmp_path.iterdir()] == ["number"]
