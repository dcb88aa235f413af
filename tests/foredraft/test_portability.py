"""What `import foredraft` and the decoding commands use exists on Windows and macOS too."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import foredraft

# Run before foredraft is imported: foredraft and its locks find no module and no function that other systems lack, no /proc
# and no /dev/shm. The other libraries have their own code for each system and keep both.
HIDE = """
import builtins, os, sys

OURS = ("foredraft", "filelock")
import_module = builtins.__import__

def find(name, globals=None, *rest, **more):
    if name in ("fcntl", "resource", "termios") and str((globals or {}).get("__name__")).startswith(OURS):
        raise ModuleNotFoundError(f"{name} is hidden")
    return import_module(name, globals, *rest, **more)

def audit(event, arguments):
    if event == "open" and str(arguments[0]).startswith(("/proc", "/dev/shm")):
        frame = sys._getframe(1)
        while frame and frame.f_globals.get("__name__") in ("pathlib", "io", "_io"):
            frame = frame.f_back
        if frame and frame.f_globals.get("__name__", "").startswith(OURS):
            raise FileNotFoundError(f"{arguments[0]} is hidden")

builtins.__import__ = find
sys.addaudithook(audit)
for name in ("pread", "pwrite", "sched_getaffinity", "mkfifo", "statvfs"):
    delattr(os, name)
"""
COMMAND = "import sys; sys.argv[0] = 'foredraft'\nfrom foredraft.cli.main import main\nmain()\n"


def run(script: str, *arguments: str | Path, **environment: str) -> subprocess.CompletedProcess:
    paths = os.pathsep.join(filter(None, (str(Path(foredraft.__file__).parents[1]), os.environ.get("PYTHONPATH"))))
    return subprocess.run([sys.executable, "-W", "ignore", "-c", script, *map(str, arguments)], capture_output=True,
                          text=True, env=os.environ | {"PYTHONPATH": paths, "HF_HUB_OFFLINE": "1"} | environment)


@pytest.mark.parametrize("line", [
    "import fcntl", "import resource", "from os import pread", "Path('/proc/self/status').read_text()",
    "open('/proc/cpuinfo')"])
def test_the_hook_hides(line):
    done = run(f"{HIDE}\n__name__ = 'foredraft.x'\nfrom pathlib import Path\n{line}")
    assert "hidden" in done.stderr or "ImportError" in done.stderr, done.stderr


def test_a_summary_on_a_cpu_does_not_import_triton(tiny_model_path):
    show = "import atexit, sys\natexit.register(lambda: print('triton' in sys.modules))"
    done = run(f"{show}\n{COMMAND}", "summarize", "--text", "w3 w4 w5", "--target", tiny_model_path, "--max-new-tokens", "4")
    assert done.stdout.splitlines()[-1] == "False", done


def test_texts_are_decoded_without_what_linux_alone_has(tmp_path, tiny_model_path):
    lines = [json.dumps({"article": f"w{i} w{i + 1} w{i + 2}"}) for i in range(3, 8)]
    (tmp_path / "in.jsonl").write_text("\n".join(lines))
    out = tmp_path / "out.jsonl"
    done = run(HIDE + COMMAND, "summarize", "--input", tmp_path / "in.jsonl", "--output", out, "--target", tiny_model_path,
               "--max-new-tokens", 5)
    assert done.returncode == 0, done.stderr
    assert sorted(json.loads(line)["index"] for line in out.read_text().splitlines()) == [0, 1, 2, 3, 4]
    assert sorted(file.name for file in tmp_path.iterdir()) == ["in.jsonl", "out.jsonl", "out.jsonl.settings.json"]


@pytest.mark.full
def test_a_home_that_cannot_be_written(tmp_path, tiny_model_path):
    """Everything is compiled in the process, and the command says so."""
    (tmp_path / "file").write_text("")
    home = str(tmp_path / "file" / "home")
    done = run(COMMAND, "summarize", "--text", "w3 w4", "--target", tiny_model_path, "--max-new-tokens", 3, HOME=home,
               XDG_CACHE_HOME=home, NUMBA_CACHE_DIR="", HF_HOME=home)
    assert done.returncode == 0 and "cannot be written" in done.stderr and "Traceback" not in done.stderr, done.stderr
