"""Commands that are killed at a random moment, or whose disk is full at a random byte.

The same command, run again, ends with what an undisturbed run writes, and leaves nothing else behind.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

import foredraft

# How many outputs of each command are disturbed; 50 take an hour on one core.
OUTPUTS = int(os.environ.get("FOREDRAFT_FAULTS", "50"))
# Starts a process for every line of its input, with the libraries imported already. From the first file that this process
# opens for writing in `folder`, it lives for `seconds`, or writes files of at most `size` bytes.
SERVER = """
import json, os, resource, signal, sys, threading, time
import foredraft.cli.main, foredraft.engine.load, foredraft.train.data.pseudo, foredraft.train.drafter.train_drafter

for line in sys.stdin:
    words, folder, seconds, size, log = json.loads(line)
    if not os.fork():
        break
    print(os.waitstatus_to_exitcode(os.wait()[1]), flush=True)
else:
    sys.exit()
os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 1)
os.dup2(1, 2)

def end():
    time.sleep(seconds)
    os.kill(os.getpid(), signal.SIGKILL)

begun = []
def audit(event, arguments):
    if event in ("open", "os.mkdir") and not begun and str(arguments[0]).startswith(folder) and (
            event == "os.mkdir" or (arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)):
        begun.append(True)
        if seconds >= 0:
            threading.Thread(target=end, daemon=True).start()
        if size >= 0:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))

sys.addaudithook(audit)
sys.argv = ["foredraft", *words]
foredraft.cli.main.main()
"""


class Ended(NamedTuple):
    """How a command ended, and all that it printed."""

    code: int
    text: str


@cache
def server() -> subprocess.Popen:
    paths = os.pathsep.join(filter(None, (str(Path(foredraft.__file__).parents[1]), os.environ.get("PYTHONPATH"))))
    return subprocess.Popen([sys.executable, "-c", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                            env=os.environ | {"PYTHONPATH": paths, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"})


def run(folder: Path, words: list[str], seconds: float = -1, size: int = -1) -> Ended:
    log = folder.with_name(f"{folder.name}.log")
    print(json.dumps([words, str(folder), seconds, size, str(log)]), file=server().stdin, flush=True)
    return Ended(int(server().stdout.readline()), log.read_text(errors="replace"))


@dataclass
class Case:
    """words: the command; IN and OUT are replaced by folders. seconds: how long it writes. result: what must be equal.

    once: a complete output is refused. A command may be killed after it has written all and before it ends.
    """

    words: list[str]
    seconds: float
    result: Callable[[Path], object]
    once: bool = False


def lines(out: Path) -> list:
    """The lines of summarize, each article once, in the articles' order."""
    found = sorted((json.loads(line) for line in (out / "o.jsonl").read_text().splitlines()), key=lambda one: one["index"])
    assert [one["index"] for one in found] == list(range(len(found)))
    return found


def shards(out: Path) -> list:
    return [path.read_text() for path in sorted((out / "p").glob("pseudo-*.jsonl"))]


def weights(out: Path) -> object:
    from safetensors import safe_open

    with safe_open(out / "t" / "model.safetensors", "pt") as stored:
        return {name: stored.get_tensor(name).tolist() for name in stored.keys()}  # noqa: SIM118


CASES = {
    "summarize": Case(["summarize", "--input", "IN/a.jsonl", "--output", "OUT/o.jsonl", "--target", "IN/model",
                       "--max-new-tokens", "8"], 0.4, lines),
    "pseudo": Case(["pseudo", "--data", "IN/a.jsonl", "--out", "OUT/p", "--target", "IN/model", "--shard-size", "4",
                    "--max-new-tokens", "8"], 1.0, shards),
    "train": Case(["train", "--drafter", "lstm", "--data", "IN/a.jsonl", "--validation", "IN/a.jsonl", "--out", "OUT/t",
                   "--target", "IN/model", "--loss", "1", "--kd-loss", "0", "--steps", "9", "--warmup-steps", "2",
                   "--eval-every", "3", "--save-every", "3", "--eval-articles", "4", "--batch-size", "4",
                   "--size", "hidden_size=8", "--cache", "IN/cache"], 2.5, weights),
    "ngram count": Case(["ngram", "count", "IN/b.jsonl", "--tokenizer", "IN/model", "--out", "OUT/c.counts",
                         "--memory", "1"], 1.0, lambda out: (out / "c.counts").read_bytes()),
    "convert": Case(["convert", "IN/model", "--out", "OUT/m", "--dtype", "bfloat16"], 0.1,
                    lambda out: (out / "m" / "model.safetensors").read_bytes(), once=True),
}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory, tiny_model_path) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    shutil.copytree(tiny_model_path, folder / "model")
    draw = random.Random(0)
    for name, count in (("a.jsonl", 24), ("b.jsonl", 20_000)):
        with open(folder / name, "w") as file:
            for i in range(count):
                words = [f"w{draw.randrange(3, 100)}" for _ in range(draw.randrange(5, 30))]
                file.write(json.dumps({"id": f"a{i}", "article": " ".join(words), "highlights": " ".join(words[:5])}) + "\n")
    return folder


def command(case: Case, inputs: Path, out: Path) -> list[str]:
    words = [word.replace("IN/", f"{inputs}/").replace("OUT/", f"{out}/") for word in case.words]
    # a training run that has a checkpoint is resumed by name
    return [*words, "--resume"] if list(out.glob("t/checkpoint-*")) else words


def names(out: Path) -> list[str]:
    """Every file of an output; a checkpoint's number depends on when a run was interrupted."""
    return sorted(path.relative_to(out).as_posix() for path in out.rglob("*") if "checkpoint-" not in path.as_posix())


@pytest.fixture(scope="module")
def undisturbed(inputs, tmp_path_factory):
    """result(name): the result and the files of a run of a case that nothing disturbs."""
    known = {}

    def result(name: str):
        if name not in known:
            out = tmp_path_factory.mktemp("undisturbed")
            done = run(out, command(CASES[name], inputs, out))
            assert done.code == 0, done.text
            known[name] = CASES[name].result(out), names(out)
        return known[name]

    return result


def check_continued(done: Ended, case: Case, inputs: Path, out: Path, expected) -> None:
    """A command that has failed runs once more; then the output is that of an undisturbed run."""
    if done.code and not (case.once and names(out) == expected[1]):
        done = run(out, command(case, inputs, out))
        assert done.code == 0, done.text
    assert (case.result(out), names(out)) == expected


def kill(name: str, kills: int, seed: int, inputs: Path, undisturbed, tmp_path: Path) -> int:
    """Kill a case again and again, beginning anew whenever it ends before; then let it end. Returns the kills."""
    case, draw, killed, expected = CASES[name], random.Random(f"{name} {seed}"), 0, undisturbed(name)
    for number in range(kills):
        out = tmp_path / str(number)
        out.mkdir()
        # up to three in one output
        for _ in range(draw.randint(1, 3)):
            done = run(out, command(case, inputs, out), seconds=draw.uniform(0, case.seconds))
            assert done.code in (0, -9) and "Traceback" not in done.text, done.text
            killed += done.code == -9
            if done.code == 0 or (case.once and names(out) == expected[1]):
                break
        check_continued(done, case, inputs, out, expected)
        shutil.rmtree(out)
    return killed


@pytest.mark.full
@pytest.mark.parametrize("name", [name for name in CASES if name != "train"])
def test_a_killed_command_continues(name, inputs, undisturbed, tmp_path):
    kill(name, 1, 1, inputs, undisturbed, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_50_kills(name, inputs, undisturbed, tmp_path):
    killed = kill(name, OUTPUTS, 0, inputs, undisturbed, tmp_path)
    print(f"{name}: {killed} kills in {OUTPUTS} outputs")
    assert killed >= OUTPUTS // 2


def fill(name: str, tries: int, seed: int, inputs: Path, undisturbed, tmp_path: Path) -> int:
    """Let files end at a random size, as a full disk does; the command says so in one line, and continues when there is
    room. Returns how often the disk was full."""
    case, draw, full, expected = CASES[name], random.Random(f"{name} {seed}"), 0, undisturbed(name)
    for number in range(tries):
        out = tmp_path / str(number)
        out.mkdir()
        done = run(out, command(case, inputs, out), size=int(10 ** draw.uniform(0, 5)))
        full += done.code != 0
        if done.code:
            assert "Traceback" not in done.text, done.text
        check_continued(done, case, inputs, out, expected)
        shutil.rmtree(out)
    return full


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_20_full_disks(name, inputs, undisturbed, tmp_path):
    full = fill(name, min(OUTPUTS, 20), 0, inputs, undisturbed, tmp_path)
    print(f"{name}: full in {full} of {min(OUTPUTS, 20)} outputs")
    assert full >= OUTPUTS // 10


@contextmanager
def file_system(folder: Path, size: int) -> Iterator[None]:
    """A file system in memory, of `size` bytes, at an empty folder; skips where one may not be mounted."""
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    if os.geteuid() or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("a file system can only be mounted by root")
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.slow
def test_20_small_file_systems(inputs, undisturbed, tmp_path):
    """train, whose checkpoints and weights take 5 MB, on file systems of up to 5 MB that are full in any of them."""
    draw, full, tries, expected = random.Random(0), 0, min(OUTPUTS, 20), undisturbed("train")
    for number in range(tries):
        out = tmp_path / str(number)
        out.mkdir()
        with file_system(out, draw.randrange(4096, 5_000_000)):
            done = run(out, command(CASES["train"], inputs, out))
            assert "Traceback" not in done.text, done.text
            full += done.code != 0
            subprocess.run(["mount", "-o", "remount,size=100m", str(out)], check=True)
            check_continued(done, CASES["train"], inputs, out, expected)
    print(f"train: full in {full} of {tries} small file systems")
    assert full >= tries // 2


@pytest.mark.full
def test_a_full_disk(inputs, undisturbed, tmp_path):
    fill("ngram count", 1, 3, inputs, undisturbed, tmp_path)
